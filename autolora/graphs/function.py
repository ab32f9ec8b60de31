"""Running a graph under autograd: :func:`run` is the one way that a layer or the tuner does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autolora.graphs.quantised import dense
from autolora.graphs.source import Executable

# W and b of the base, A and B, the bias of lora_B, DoRA's magnitude. W is the base layer itself
# where that is quantised.
LayerTensors = tuple[Any, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]


def run(
    executable: Executable, X: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor:
    """Y along one graph; autocast must be off, as it is in the tuner.

    Args:
        executable: the graph, compiled for these dtypes and gradient needs.
        X: ``(..., in_features)``, of at least two axes.
        tensors: W ``(out_features, in_features)`` in the dtype of X or a quantised layer, b
            ``(out_features,)`` or None, both frozen; A ``(rank, in_features)``, B ``(out_features,
            rank)``; c and M ``(out_features,)``, None where the problem has none.
        s: the scaling.
        p: the probability of dropout, where the problem has it.

    Returns:
        Y, ``(..., out_features)``, in the dtype of X.
    """
    if not X.is_contiguous():
        X = X.contiguous()
    if executable.problem.gradients:
        return _LoRA.apply(X, *tensors, s, p, executable)  # type: ignore[no-any-return,no-untyped-call]
    return executable.forward(X, *tensors, s, p)[0]


class _LoRA(torch.autograd.Function):
    """Binds the two functions of an executable graph to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        W: Any,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        c: Tensor | None,
        M: Tensor | None,
        s: float,
        p: float,
        executable: Executable,
    ) -> Tensor:
        Y, saved = executable.forward(X, W, b, A, B, c, M, s, p)
        ctx.save_for_backward(*saved)
        ctx.call = (executable, s, p, X.shape, None if isinstance(W, Tensor) else W)
        return Y

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        executable, s, p, shape, Q = ctx.call
        device = executable.problem.device
        rows = G if len(shape) == 2 else G.reshape(-1, G.shape[-1])
        if torch.is_grad_enabled():  # create_graph=True: the gradients will be differentiated
            gradients = _differentiable(executable, rows, ctx.saved_tensors, Q, s, p)
        else:
            if not rows.is_contiguous():
                rows = rows.contiguous()
            with_autocast = torch.is_autocast_enabled(device)
            if with_autocast:
                torch.set_autocast_enabled(device, False)
            try:
                gradients = executable.backward(rows, ctx.saved_tensors, Q, s, p)
            finally:
                if with_autocast:
                    torch.set_autocast_enabled(device, True)
        dX, dA, dB, dc, dM = gradients
        if dX is not None and len(shape) != 2:
            dX = dX.view(shape)
        return dX, None, None, dA, dB, dc, dM, None, None, None


def _differentiable(
    executable: Executable, G: Tensor, saved: tuple[Tensor, ...], Q: Any, s: float, p: float
) -> tuple[Tensor | None, ...]:
    """The gradients by their defining equations, in operations that autograd can follow."""
    problem, needs = executable.problem, executable.problem.gradients
    held = dict(zip(executable.keeps, saved, strict=True))
    compute = getattr(torch, problem.compute_dtype)
    stored = getattr(torch, problem.adapter_dtype)
    if problem.variant == "dora" or "V" in held or ("D" in held and "X" in needs):
        raise _not_twice()
    g = G.to(compute)
    A, B = (held[name].to(compute) if name in held else None for name in ("A", "B"))
    D = held["X"].flatten(0, -2).to(compute) if "X" in held else held.get("D")
    scale = s / (1 - p) if problem.dropout else s  # D goes without dropout's factor
    if problem.dropout and D is not None and "X" in held:
        D = D * held["K"]
    dX = dA = dB = None
    if "X" in needs:
        assert A is not None  # every route to dX reads both
        assert B is not None
        update = (scale * (g @ B) @ A).to(G.dtype)
        W = held["W"] if Q is None else dense(Q, G.dtype)
        dX = G @ W + (update * held["K"] if problem.dropout else update)
    if "A" in needs:
        assert B is not None
        assert D is not None
        dA = ((scale * (g @ B)).t() @ D).to(stored)
    if "B" in needs:
        if D is not None and A is not None:
            h = D @ A.t()
        elif "X" not in needs:
            h = held["h"]  # made of what needs no gradient
        else:
            raise _not_twice()
        dB = (scale * g.t() @ h).to(stored)
    dc = (s * g.sum(0)).to(stored) if "c" in needs else None
    return dX, dA, dB, dc, None


def _not_twice() -> RuntimeError:
    return RuntimeError(
        "the gradient of this LoRA layer cannot be differentiated again along its graph, which "
        "keeps too little for that (lora_A is frozen, there is dropout or DoRA, or the merged "
        "weight was kept); call autolora.restore(model) to train this model with create_graph=True"
    )
