"""Base weights as bitsandbytes keeps them, and their dense form.

bitsandbytes is imported nowhere here: a layer of its own brings the functions along.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def dense(layer: Any, dtype: torch.dtype) -> Tensor:
    """A new tensor ``(out_features, in_features)`` with the weight of a quantised layer.

    Args:
        layer: a ``bitsandbytes.nn.Linear4bit`` or ``Linear8bitLt``.
        dtype: of the result. The numbers are those that the layer's own forward computes with.
    """
    parameters = layer._parameters
    weight = parameters["weight"]
    state = getattr(weight, "quant_state", None)
    if state is not None:
        functional = sys.modules["bitsandbytes.functional"]
        return functional.dequantize_4bit(weight.data, state).to(dtype)  # type: ignore[no-any-return]
    state = layer.state  # the weight moves there at the layer's first own call
    given = weight if weight.CB is not None else state
    return given.CB.to(dtype).mul_(given.SCB.unsqueeze(1).mul(1.0 / 127.0))  # type: ignore[no-any-return]
