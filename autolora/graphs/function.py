"""Running a graph under autograd.

:func:`run` is the one way that a layer or the tuner runs an executable graph;
:func:`reference` is the defining equation in plain autograd, step by step as PEFT runs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from autolora.graphs.source import Executable


def run(
    executable: Executable, X: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float
) -> Tensor:
    """``Y = X Wᵀ + b + s·(X Aᵀ) Bᵀ`` along one graph; autocast must be off, as it is in the tuner.

    Args:
        executable: the graph, compiled for these dtypes and gradient needs.
        X: ``(..., in_features)``, of at least two axes.
        W: ``(out_features, in_features)``, frozen, in the dtype of X.
        b: ``(out_features,)`` or None, frozen.
        A: ``(rank, in_features)``.
        B: ``(out_features, rank)``.
        s: the scaling.

    Returns:
        Y, ``(..., out_features)``, in the dtype of X.
    """
    if not X.is_contiguous():
        X = X.contiguous()
    if executable.gradients:
        return _LoRA.apply(X, W, b, A, B, s, executable)  # type: ignore[no-any-return,no-untyped-call]
    return executable.forward(X, W, b, A, B, s)[0]


def reference(
    X: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    compute_dtype: torch.dtype,
) -> Tensor:
    """The defining equation as PEFT runs it, with the adapter branch in ``compute_dtype``.

    PEFT converts X to the dtype of A first, also where autocast converts it again.
    """
    Y = linear(X, W, b)
    h = linear(X.to(A.dtype).to(compute_dtype), A.to(compute_dtype))
    return (Y + linear(h, B.to(compute_dtype)) * s).to(Y.dtype)


class _LoRA(torch.autograd.Function):
    """Binds the two functions of an executable graph to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        executable: Executable,
    ) -> Tensor:
        Y, saved = executable.forward(X, W, b, A, B, s)
        ctx.save_for_backward(*saved)
        ctx.call = (executable, s, X.shape)
        return Y

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        executable, s, shape = ctx.call
        rows = G if len(shape) == 2 else G.reshape(-1, G.shape[-1])
        if torch.is_grad_enabled():  # create_graph=True: the gradients will be differentiated
            dX, dA, dB = _differentiable(executable, rows, ctx.saved_tensors, s)
        else:
            if not rows.is_contiguous():
                rows = rows.contiguous()
            with_autocast = torch.is_autocast_enabled(executable.device)
            if with_autocast:
                torch.set_autocast_enabled(executable.device, False)
            try:
                dX, dA, dB = executable.backward(rows, ctx.saved_tensors, s)
            finally:
                if with_autocast:
                    torch.set_autocast_enabled(executable.device, True)
        if dX is not None and len(shape) != 2:
            dX = dX.view(shape)
        return dX, None, None, dA, dB, None, None


def _differentiable(
    executable: Executable, G: Tensor, saved: tuple[Tensor, ...], s: float
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by their defining equations, in operations that autograd can follow."""
    held = dict(zip(executable.graph.saved, saved, strict=True))
    dtype, needs = executable.compute_dtype, executable.gradients
    g = G.to(dtype)
    A, B = (held[name].to(dtype) if name in held else None for name in ("A", "B"))
    X = held["X"].flatten(0, -2).to(dtype) if "X" in held else None
    dX = dA = dB = None
    if "X" in needs:
        assert A is not None  # every route to dX reads both
        assert B is not None
        dX = (G @ held["W"] + s * (g @ B) @ A).to(G.dtype)
    if "A" in needs:
        assert B is not None
        assert X is not None
        dA = ((s * (g @ B)).t() @ X).to(executable.adapter_dtype)
    if "B" in needs:
        if X is not None and A is not None:
            h = X @ A.t()
        elif "X" not in needs:
            h = held["h"]  # made of what needs no gradient
        else:
            raise RuntimeError(
                "the gradient of a LoRA layer with a frozen lora_A cannot be differentiated again; "
                "call autolora.restore(model) to train this model with create_graph=True"
            )
        dB = (s * g.t() @ h).to(executable.adapter_dtype)
    return dX, dA, dB
