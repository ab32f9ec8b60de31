"""The tensors of a LoRA layer, or the reason why it cannot run as a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

from autolora.graphs.function import LayerTensors
from autolora.graphs.operators import quant_state_of
from autolora.nn.sharding.units import SPLIT, is_split, why_apart

PLAIN = (Parameter, Tensor)  # subclasses may redefine products
# subclasses of torch.nn.Linear that compute what it computes, and whether with a bias as well
AS_LINEAR = {
    ("torch.nn.modules.linear", "NonDynamicallyQuantizableLinear"): True,
    ("transformers.models.esm.modeling_esmfold", "EsmFoldLinear"): True,
    # it adds its bias to Y: autocast then gives the dtype of the bias
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): False,
}


def plain_tensors(base: Any, lora_A: Any, lora_B: Any, magnitude: Any = None) -> LayerTensors | str:
    """The tensors of a layer, or the reason why its modules may not compute what a graph does.

    Called in every forward pass; for speed it reads the modules' dictionaries.

    Args:
        base: a linear layer, a ``Conv1D`` of transformers or a quantised layer of bitsandbytes.
        lora_A: a linear layer without bias.
        lora_B: a linear layer.
        magnitude: DoRA's module with the magnitude vector.
    """
    if type(base) is not Linear or magnitude is not None:
        return _special_tensors(base, lora_A, lora_B, magnitude)
    for part in (base, lora_A, lora_B):
        if type(part) is not Linear:
            return why_apart(part) or f"a part of type {type(part).__name__}"
        if (
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or part._backward_pre_hooks
        ):
            return why_apart(part) or "hooks on its parts"
        if "forward" in part.__dict__:
            return why_apart(part) or "a replaced forward on its parts"
    if (
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    ):
        return "global module hooks"
    own, narrow, wide = base._parameters, lora_A._parameters, lora_B._parameters
    W, b, A, B = own.get("weight"), own.get("bias"), narrow.get("weight"), wide.get("weight")
    c = wide.get("bias")
    if not (type(W) in PLAIN and type(A) in PLAIN and type(B) in PLAIN):
        return _why_not_plain(W, A, B)
    if (b is not None and type(b) not in PLAIN) or (c is not None and type(c) not in PLAIN):
        return _why_not_plain(b, c)
    if narrow.get("bias") is not None:
        return "a bias in lora_A"
    return W, b, A, B, c, None


def _special_tensors(base: Any, lora_A: Any, lora_B: Any, magnitude: Any) -> LayerTensors | str:
    """As :func:`plain_tensors`, for other bases than ``torch.nn.Linear`` and for DoRA."""
    found = plain_tensors(lora_A, lora_A, lora_B)  # checks the adapter
    if isinstance(found, str):
        return found
    if reason := changed(base) or ("" if magnitude is None else changed(magnitude)):
        return reason
    W, b, M = _base_weight(base), base._parameters.get("bias"), None
    if isinstance(W, str):
        return W
    _, _, A, B, c, _ = found
    if magnitude is not None:
        M = magnitude._parameters.get("weight")
        if type(M) not in PLAIN:
            return _why_not_plain(M)
        if c is not None:
            return "DoRA with a bias in lora_B"
        if base_layout(base) == "int8":
            return "DoRA on 8-bit weights"
    if (type(W) not in PLAIN and W is not base) or (b is not None and type(b) not in PLAIN):
        return _why_not_plain(W, b)
    return W, b, A, B, c, M


def base_layout(base: Any) -> str:
    """The layout of a base layer's weight, ``""`` if there are no graphs for it."""
    if type(base) is Linear:
        return "linear"
    module, name = type(base).__module__, type(base).__name__
    with_bias = AS_LINEAR.get((module, name))
    if with_bias or (with_bias is False and base.bias is None):
        return "linear"
    if name == "Conv1D" and module == "transformers.pytorch_utils":
        return "conv1d"
    if module == "bitsandbytes.nn.modules" and name in ("Linear4bit", "Linear8bitLt"):
        return {"Linear4bit": "nf4", "Linear8bitLt": "int8"}[name]
    return ""


def dropout_of(layer: Any) -> float | str:
    """The current probability of a dropout layer, or the reason why there are no graphs for it."""
    kind = type(layer)
    if kind is torch.nn.Identity:
        return "hooks on its parts" if layer._forward_hooks or layer._forward_pre_hooks else 0.0
    if kind is not torch.nn.Dropout:
        return f"a dropout of type {kind.__name__}"
    if reason := changed(layer):
        return reason
    p = layer.p
    if not layer.training or not p:
        return 0.0
    return float(p) if 0 < p < 1 else f"dropout {p:g} while training"


def changed(module: Any) -> str:
    """Why a module may not compute what its class does, ``""`` if nothing about it was changed."""
    if module._forward_hooks or module._forward_pre_hooks:
        return why_apart(module) or "hooks on its parts"
    if module._backward_hooks or module._backward_pre_hooks:
        return why_apart(module) or "hooks on its parts"
    if "forward" in module.__dict__:
        return why_apart(module) or "a replaced forward on its parts"
    return ""


def _base_weight(base: Any) -> Any:
    """W ``(out_features, in_features)``, the layer if it is quantised, or why there is none."""
    layout, weight = base_layout(base), base._parameters.get("weight")
    if layout == "linear":
        return weight
    if layout == "conv1d":
        return weight.t() if type(weight) in PLAIN else _why_not_plain(weight)
    if layout == "nf4":
        state = quant_state_of(base)
        if state is None or base.compute_dtype is None:
            return "a weight that is not quantised yet"
        if state.quant_type != "nf4":
            return f"a weight quantised as {state.quant_type}"
        if getattr(state, "packing_format_for_cpu", False):
            return "a weight packed for inference"
        if tuple(state.shape) != (base.out_features, base.in_features):
            return "a quantised weight of another shape than the layer's"
        return base
    if layout == "int8":
        if base.state.has_fp16_weights or weight.device.type != "cpu" or not base.training:
            return "8-bit products that round the input too"
        if weight.CB is None and base.state.CB is None:
            return "a weight that is not quantised yet"
        return base
    return why_no_layout(base)


def why_no_layout(base: Any) -> str:
    """Why there are no graphs for a base layer for which :func:`base_layout` has no name."""
    kind = type(base)
    bias = " with a bias" if (kind.__module__, kind.__name__) in AS_LINEAR else ""
    return why_apart(base) or f"its base is a {kind.__name__}{bias}"


def _why_not_plain(*tensors: Any) -> str:
    """Why the graphs cannot compute with tensors, of which some are no plain tensors."""
    odd = [each for each in tensors if each is not None and type(each) not in PLAIN]
    if not odd:
        return "missing weights"
    if is_split(odd[0]):
        return SPLIT
    kind = type(odd[0])
    if kind.__module__.partition(".")[0] == "torchao":
        return "a torchao layer"
    return f"weights of type {kind.__name__}"
