"""Running a graph of experts under autograd, for layers and for the tuner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autolora.graphs.experts.operators import stacked, unstacked, unstacked_wide
from autolora.graphs.experts.reference import merged
from autolora.graphs.experts.routing import Routing
from autolora.graphs.experts.source import ExpertsExecutable
from autolora.graphs.function import not_differentiable


def run_experts(
    executable: ExpertsExecutable,
    X: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    routing: Routing,
) -> Tensor:
    """Computes Y of one projection of experts; autocast must be off.

    Args:
        executable: the graph, compiled for these dtypes and gradients.
        X: ``(rows, in_features)``, sorted by expert.
        W: ``(experts, out_features, in_features)``, or its transpose in the layout ``"conv1d"``;
            frozen and in the dtype of X.
        b: ``(experts, out_features)`` or None, frozen.
        A: ``(experts × rank, in_features)``.
        B: ``(out_features, rank × experts)``.
        s: the scaling.
        routing: of the rows.
    """
    return _Experts.apply(X, W, b, A, B, s, routing, executable)  # type: ignore[no-any-return,no-untyped-call]


class _Experts(torch.autograd.Function):
    """Binds the forward and backward of an executable to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        routing: Routing,
        executable: ExpertsExecutable,
    ) -> Tensor:
        if not X.is_contiguous():
            X = X.contiguous()
        narrow, wide = stacked(A, B, routing.experts, X.dtype)
        sizes = A.shape[1], B.shape[0], narrow.shape[1]
        weights = _rows_first(W, executable)
        Y, saved = executable.forward(X, weights, b, narrow, wide, s, routing, *sizes)
        names = executable.saved_names
        kept = [each for name, each in zip(names, saved, strict=True) if name not in _GIVEN]
        ctx.save_for_backward(X if "X" in names else None, W, A, B, routing.ids, *kept)
        ctx.call = (executable, s, routing.ends, sizes)
        return Y

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        executable, s, ends, sizes = ctx.call
        X, W, A, B, ids, *kept = ctx.saved_tensors
        routing = Routing(len(ends), ids, ends)
        if not G.is_contiguous():
            G = G.contiguous()
        with torch.autocast(executable.problem.device, enabled=False):
            if torch.is_grad_enabled():  # create_graph=True
                return *_differentiable(executable, G, X, W, A, B, s, routing), None, None, None
            narrow, wide = stacked(A, B, routing.experts, W.dtype)
            given = {"X": X, "W": _rows_first(W, executable), "A": narrow, "B": wide}
            rest = iter(kept)
            names = executable.saved_names
            saved = [given[name] if name in given else next(rest) for name in names]
            dX, dA, dB = executable.backward(G, saved, s, routing, *sizes)
        return (
            dX,
            None,
            None,
            None if dA is None else unstacked(dA, A.dtype),
            None if dB is None else unstacked_wide(dB, B.dtype),
            None,
            None,
            None,
        )


_GIVEN = frozenset("XWAB")


def _rows_first(W: Tensor, executable: ExpertsExecutable) -> Tensor:
    """The weights as ``(experts, out_features, in_features)``."""
    return W.transpose(1, 2) if executable.problem.layout == "conv1d" else W


def _differentiable(
    executable: ExpertsExecutable,
    G: Tensor,
    X: Tensor | None,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    s: float,
    routing: Routing,
) -> tuple[Tensor | None, ...]:
    """The gradients of X, W, b, A and B by the defining equation, differentiable themselves."""
    if X is None:
        raise not_differentiable()
    V = merged(W, A, B, s, routing.experts, conv1d=executable.problem.layout == "conv1d")
    if executable.problem.layout == "conv1d":
        V = V.transpose(1, 2)
    Y = torch.cat([X[begin:end] @ V[e].t() for e, begin, end in routing.spans])
    leaves = {name: each for name, each in (("X", X), ("A", A), ("B", B))
              if name in executable.problem.gradients}  # fmt: skip
    found = torch.autograd.grad(Y, list(leaves.values()), G, create_graph=True)
    gradients = dict(zip(leaves, found, strict=True))
    return gradients.get("X"), None, None, gradients.get("A"), gradients.get("B")
