"""The second matrix library of a CPU: oneDNN, beside the BLAS that torch takes for float32.

torch's CPU builds carry both. For bfloat16 torch takes oneDNN itself; for float32 it takes BLAS
(MKL on x86), which on some processors is slower by 10-50 %. Which one is faster for a product is
measured like everything else. The operator is the one that torch.compile emits for linear layers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left · rightᵀ [+ bias]`` by oneDNN, or as torch chooses where it cannot be called.

    Args:
        left: ``(rows, inner)``, float32 on the CPU.
        right: ``(columns, inner)``.
        bias: ``(columns,)``.
    """
    operator = _operator()
    if operator is None:
        return torch.nn.functional.linear(left, right, bias)
    return operator(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _operator() -> Any:
    """The operator, None where this build or processor lacks it or does not compute with it."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
        left, right = torch.arange(12.0).view(3, 4), torch.arange(8.0).view(4, 2).t()
        made = operator(left, right, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return operator if torch.equal(made, left @ right.t()) else None
