"""PEFT's wrappers around the weights of a module of experts."""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners import lora

from autolora.nn.experts.call import AdaptedWeight
from autolora.nn.experts.chain import adapted_by, wrapped, wrappers_from
from autolora.nn.experts.module import is_experts, why_not
from autolora.nn.layer_tensors import base_layout
from autolora.nn.peft_internals import peft_factors

ParamWrapper: Any = getattr(lora, "ParamWrapper", None) or getattr(
    lora.layer, "ParamWrapper", None
)  # of PEFT since 0.17


def adapts_linear(wrapper: Any) -> bool:
    """Whether it adapts the weight of a linear layer, as a LoRA layer does."""
    base = wrapper._modules["base_layer"]
    return wrapper.parameter_name == "weight" and base_layout(base) == "linear"


def why_wrapper_left(wrapper: Any) -> str:
    """Why a wrapper cannot be accelerated, ``""`` if it can."""
    if adapts_linear(wrapper):
        return ""
    module = wrapped(wrapper, ParamWrapper)
    if not is_experts(module):
        return f"a parameter of a {type(module).__name__}"
    names = [each.parameter_name for each in wrappers_from(wrapper, ParamWrapper)]
    if reason := why_not(module, names):
        return reason
    swapped = getattr(wrapper, "_did_swap_in_out_features", None)
    if swapped is not (not module.is_transposed):
        return f"PEFT {peft.__version__} has the factors of experts the other way round"
    return ""


def adapted_weights(wrapper: Any) -> tuple[Any, dict[str, AdaptedWeight]] | str:
    """The module of experts inside, and the adapter of each of its weights, by name.

    Or why PEFT's path is to be used, ``""`` while an outer wrapper of PEFT's is running.
    """
    return adapted_by(wrapper, ParamWrapper, peft_factors)
