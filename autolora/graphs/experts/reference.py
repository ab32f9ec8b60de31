"""The reference graph of experts: PEFT's merged weights in plain autograd.

It is what one projection costs on PEFT's path, with each of transformers' implementations of
experts, on rows that are sorted already.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from autolora.graphs.experts.operators import grouped_mm, onto_slices
from autolora.graphs.experts.routing import Routing


def merged(W: Tensor, A: Tensor, B: Tensor, s: float, experts: int, *, conv1d: bool) -> Tensor:
    """``W_e + s·B_e A_e`` of every expert, stored as W is.

    Args:
        W: ``(experts, out_features, in_features)``, or its transpose if ``conv1d``.
        A: ``(experts × rank, in_features)``.
        B: ``(out_features, rank × experts)``.
        s: the scaling.
        experts: their number.
        conv1d: how W is stored.
    """
    narrow = A.reshape(experts, -1, A.shape[1])
    wide = B.reshape(B.shape[0], -1, experts).permute(2, 0, 1)
    left, right = (narrow.transpose(1, 2), wide.transpose(1, 2)) if conv1d else (wide, narrow)
    return torch.baddbmm(W, left.to(W.dtype), right.to(W.dtype), alpha=s)


def reference(
    X: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    routing: Routing,
    implementation: str,
    *,
    conv1d: bool,
) -> Tensor:
    """``Y_e = X_e (W_e + s·B_e A_e)ᵀ + b_e`` of every expert.

    Args:
        X: ``(rows, in_features)``, sorted by expert.
        W: as in :func:`merged`, and so are A, B, s and conv1d.
        b: ``(experts, out_features)``, or None.
        A: of all experts.
        B: of all experts.
        s: the scaling.
        routing: of the rows.
        implementation: transformers' name of it.
        conv1d: how W is stored.
    """
    V = merged(W, A, B, s, routing.experts, conv1d=conv1d)
    return projected(X, V, b, routing, implementation, conv1d=conv1d)


def projected(
    X: Tensor,
    V: Tensor,
    b: Tensor | None,
    routing: Routing,
    implementation: str,
    *,
    conv1d: bool,
) -> Tensor:
    """``Y_e = X_e V_eᵀ + b_e``, as an implementation of transformers computes it."""
    if implementation == "eager":
        made = []
        for e, begin, end in routing.spans:
            weight = V[e].t() if conv1d else V[e]
            made.append(linear(X[begin:end], weight, None if b is None else b[e]))
        return torch.cat(made) if made else torch.mm(X, V[0] if conv1d else V[0].t())
    if implementation == "batched_mm":
        own = V[routing.ids]
        if conv1d:
            Y = torch.bmm(X.unsqueeze(1), own).squeeze(1)
        else:
            Y = torch.bmm(own, X.unsqueeze(2)).squeeze(2)
    else:
        Y = grouped_mm(X, V if conv1d else V.transpose(1, 2), routing)
    return Y if b is None else onto_slices(Y, b, routing)
