"""Operators of other libraries that graphs call: oneDNN's products, and bitsandbytes' weights.

torch's CPU builds carry oneDNN beside BLAS. For float32 torch uses BLAS (MKL on x86), which is
10-50 % slower on some processors. For 16-bit dtypes it uses oneDNN where the processor has
instructions for them, and plain loops elsewhere: with AVX2 alone these take 5 to 100 times as long
as the same product in float32. The operator is the one that torch.compile emits for linear layers.
bitsandbytes is never imported here.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Whether this torch traces graphs rightly, as the tests say that run on it; an older one compiles
# PEFT's path.
LEAST_TORCH = (2, 13)
TRACEABLE = tuple(map(int, torch.__version__.split(".")[:2])) >= LEAST_TORCH
UNTRACEABLE = (
    f"compiled by torch {torch.__version__.partition('+')[0]}; graphs are compiled from "
    f"{'.'.join(map(str, LEAST_TORCH))} on"
)


def onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left · rightᵀ [+ bias]`` by oneDNN, or by torch's default where that is not available.

    Args:
        left: ``(rows, inner)``, float32 on the CPU.
        right: ``(columns, inner)``.
        bias: ``(columns,)``.
    """
    operator = _operator()
    if operator is None:
        return torch.nn.functional.linear(left, right, bias)
    return operator(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


def _shape_of_onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


# What :func:`onednn` is in compiled code: an operator that a trace takes as it is. A call of it in
# eager mode would take ten microseconds more.
torch.library.define("autolora::onednn", "(Tensor left, Tensor right, Tensor? bias=None) -> Tensor")
torch.library.impl("autolora::onednn", "cpu", onednn)
torch.library.register_fake("autolora::onednn", _shape_of_onednn)
traced_onednn = torch.ops.autolora.onednn.default


@lru_cache(maxsize=1)
def _operator() -> Any:
    """The operator, None where this build or processor lacks it or computes with another one."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
        left, right = torch.arange(12.0).view(3, 4), torch.arange(8.0).view(4, 2).t()
        made = operator(left, right, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return operator if torch.equal(made, left @ right.t()) else None


def quant_state_of(layer: Any) -> Any:
    """The state of a layer's 4-bit weight, None if it has none; of sharded weights the layer's."""
    state = getattr(layer._parameters["weight"], "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state


def dequantize(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a quantised layer, ``(out_features, in_features)``, as its forward uses it.

    Args:
        layer: a ``bitsandbytes.nn.Linear4bit`` or ``Linear8bitLt``.
        dtype: of the result, which is a new tensor.
    """
    parameters = layer._parameters
    weight = parameters["weight"]
    state = quant_state_of(layer)
    if state is not None:
        functional = sys.modules["bitsandbytes.functional"]
        return functional.dequantize_4bit(weight.data, state).to(dtype)  # type: ignore[no-any-return]
    state = layer.state  # the weight moves there at the layer's first own call
    given = weight if weight.CB is not None else state
    return given.CB.to(dtype).mul_(given.SCB.unsqueeze(1).mul(1.0 / 127.0))  # type: ignore[no-any-return]
