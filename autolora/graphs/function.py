"""Running a graph under autograd, in eager mode and in a trace, for layers and for the tuner.

Nothing may change in place in a trace of torch.compile, and products by oneDNN are operators there
that the compiler takes as they are; the source of a compiled problem sees to both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autolora.graphs.operators import dequantize
from autolora.graphs.source import Executable

# W, b, A, B, c (the bias of lora_B) and M (DoRA's magnitude); W is the base layer if quantised.
LayerTensors = tuple[Any, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]


def run(
    executable: Executable, X: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor:
    """Computes Y by a graph; autocast must be off.

    Args:
        executable: the graph, compiled for these dtypes and gradients.
        X: ``(..., in_features)``, of at least two axes.
        tensors: W ``(out_features, in_features)`` in the dtype of X or a quantised layer, b
            ``(out_features,)`` or None, both frozen; A ``(rank, in_features)``, B ``(out_features,
            rank)``; c and M ``(out_features,)``, None where the problem has none.
        s: the scaling.
        p: the dropout probability, if the problem has dropout.

    Returns:
        Y, ``(..., out_features)``, in the dtype of X.
    """
    if not X.is_contiguous():
        X = X.contiguous()
    if executable.problem.gradients:
        return _LoRA.apply(X, *tensors, s, p, executable)  # type: ignore[no-any-return,no-untyped-call]
    return executable.forward(X, *tensors, s, p)[0]


def run_traced(
    executable: Executable, X: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor:
    """Computes Y by a graph of a compiled problem, as :func:`run` does.

    Autocast may be on: the graph converts by itself.
    """
    if not X.is_contiguous():
        X = X.contiguous()
    with torch.autocast(executable.problem.device, enabled=False):
        if executable.problem.gradients:
            return _TracedLoRA.apply(X, *tensors, s, p, executable)  # type: ignore[no-any-return,no-untyped-call]
        return executable.forward(X, *tensors, s, p)[0]


class _LoRA(torch.autograd.Function):
    """Binds the forward and backward of an executable to autograd."""

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
        if torch.is_grad_enabled():  # create_graph=True
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


class _TracedLoRA(_LoRA):
    """The same for a trace, in which autocast is switched by contexts alone."""

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        executable, s, p, shape, Q = ctx.call
        rows = G if G.dim() == 2 else G.reshape(-1, G.shape[-1])
        with torch.autocast(executable.problem.device, enabled=False):
            gradients = executable.backward(rows.contiguous(), ctx.saved_tensors, Q, s, p)
        dX, dA, dB, dc, dM = gradients
        if dX is not None and G.dim() != 2:
            dX = dX.reshape(shape)
        return dX, None, None, dA, dB, dc, dM, None, None, None


def _differentiable(
    executable: Executable, G: Tensor, saved: tuple[Tensor, ...], Q: Any, s: float, p: float
) -> tuple[Tensor | None, ...]:
    """The gradients by their defining equations, in differentiable operations."""
    problem, needs = executable.problem, executable.problem.gradients
    tensors = dict(zip(executable.saved_names, saved, strict=True))
    compute = getattr(torch, problem.compute_dtype)
    stored = getattr(torch, problem.adapter_dtype)
    if problem.variant == "dora" or "V" in tensors or ("D" in tensors and "X" in needs):
        raise not_differentiable()
    g = G.to(compute)
    A, B = (tensors[name].to(compute) if name in tensors else None for name in ("A", "B"))
    D = tensors["X"].flatten(0, -2).to(compute) if "X" in tensors else tensors.get("D")
    scale = s / (1 - p) if problem.dropout else s  # D goes without dropout's factor
    if problem.dropout and D is not None and "X" in tensors:
        D = D * tensors["K"]
    dX = dA = dB = None
    if "X" in needs:
        assert A is not None  # every route to dX reads both
        assert B is not None
        update = (scale * (g @ B) @ A).to(G.dtype)
        W = tensors["W"] if Q is None else dequantize(Q, G.dtype)
        dX = G @ W + (update * tensors["K"] if problem.dropout else update)
    if "A" in needs:
        assert B is not None
        assert D is not None
        dA = ((scale * (g @ B)).t() @ D).to(stored)
    if "B" in needs:
        if D is not None and A is not None:
            h = D @ A.t()
        elif "X" not in needs:
            h = tensors["h"]  # a function of constants
        else:
            raise not_differentiable()
        dB = (scale * g.t() @ h).to(stored)
    dc = (s * g.sum(0)).to(stored) if "c" in needs else None
    return dX, dA, dB, dc, None


def not_differentiable() -> RuntimeError:
    """The error of a backward pass that cannot be differentiated again."""
    return RuntimeError(
        "the gradient of this LoRA layer cannot be differentiated again along its graph, which "
        "keeps too little for that (lora_A is frozen, there is dropout or DoRA, or the merged "
        "weight was kept); call autolora.restore(model) to train this model with create_graph=True"
    )
