"""The reference graph: the defining equation in plain autograd, step by step as PEFT runs it.

:mod:`autolora.graphs.baseline` derives its cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from autolora.graphs.function import LayerTensors
from autolora.graphs.operators import dequantize


def reference(
    X: Tensor,
    tensors: LayerTensors,
    s: float,
    p: float = 0.0,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """``Y = X Wᵀ + b + s·((dropout(X) Aᵀ) Bᵀ + c)``, or DoRA's where there is a magnitude.

    As PEFT does, X is converted to the dtype of A first, even if autocast converts it again.

    Args:
        X: ``(..., in_features)``.
        tensors: the tensors of the layer.
        s: the scaling.
        p: the dropout probability.
        compute_dtype: of the adapter branch; by default that of A.
    """
    W, b, A, B, c, M = tensors
    compute_dtype = compute_dtype or A.dtype
    Y: Tensor = linear(X, W, b) if isinstance(W, Tensor) else W(X).clone()
    x = X.to(A.dtype)
    D = dropout(x, p) if p else x
    h = linear(D.to(compute_dtype), A.to(compute_dtype))
    U = linear(h, B.to(compute_dtype), None if c is None else c.to(compute_dtype))
    if M is None:
        return (Y + U * s).to(Y.dtype)
    weight = W.to(x.dtype) if isinstance(W, Tensor) else dequantize(W, x.dtype)
    identity = torch.eye(A.shape[1], device=A.device, dtype=compute_dtype)
    with torch.no_grad():
        update = linear(linear(identity, A.to(compute_dtype)), B.to(compute_dtype)).t()
        norms = torch.linalg.norm(weight + s * update.to(x.dtype), dim=1).to(x.dtype)
    g = M / norms
    alone = Y if b is None else Y - b
    base = linear(D.to(compute_dtype), weight.to(compute_dtype)) if p else alone
    result: Tensor = Y + ((g - 1) * base + g * U * s)
    return result.to(Y.dtype)
