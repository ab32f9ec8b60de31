"""PEFT's wrappers around the weights of a module of experts, one inside the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peft
from peft.tuners import lora
from torch import nn

from autolora.nn.experts.module import is_experts, why_not
from autolora.nn.experts.running import AdaptedWeight
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import plain_tensors

ParamWrapper: Any = getattr(lora, "ParamWrapper", None) or getattr(
    lora.layer, "ParamWrapper", None
)  # of PEFT since 0.17


def wrappers_from(wrapper: Any) -> Iterator[Any]:
    """The wrapper and those inside it, the outermost first."""
    while isinstance(wrapper, ParamWrapper):
        yield wrapper
        wrapper = wrapper._modules["base_layer"]


def wrapped(wrapper: Any) -> Any:
    """The module whose parameters the wrappers adapt."""
    *_, innermost = wrappers_from(wrapper)
    return innermost._modules["base_layer"]


def adapts_linear(wrapper: Any) -> bool:
    """Whether it adapts the weight of a linear layer, as a LoRA layer does."""
    base = wrapper._modules["base_layer"]
    return wrapper.parameter_name == "weight" and type(base) is nn.Linear


def why_wrapper_left(wrapper: Any) -> str:
    """Why a wrapper cannot be accelerated, ``""`` if it can."""
    if adapts_linear(wrapper):
        return ""
    module = wrapped(wrapper)
    if not is_experts(module):
        return f"a parameter of a {type(module).__name__}"
    names = [each.parameter_name for each in wrappers_from(wrapper)]
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
    module = wrapped(wrapper)
    if hasattr(module, "parametrizations"):
        return ""
    found: dict[str, AdaptedWeight] = {}
    for each in wrappers_from(wrapper):
        if each is not wrapper and (each._forward_hooks or each._forward_pre_hooks):
            return "hooks on its parts"
        if each._disable_adapters:
            return "its adapters are disabled"
        if each.merged_adapters:
            return "its adapter is merged"
        active = each._active_adapter
        if type(active) is not str:
            if len(active) > 1:
                return "several active adapters"
            active = active[0] if active else ""
        modules = each._modules
        lora_A = modules["lora_A"]._modules.get(active)
        if lora_A is None:
            continue
        tensors = plain_tensors(lora_A, lora_A, modules["lora_B"]._modules.get(active))
        if isinstance(tensors, str):
            return tensors
        _, _, A, B, c, _ = tensors
        s = each.scaling[active]
        if type(s) is not float and type(s) is not int:
            return f"a scaling of type {type(s).__name__}"
        if c is not None:
            return "a bias in lora_B"
        state = getattr(each, "_autolora", None) or LayerState()
        found[each.parameter_name] = AdaptedWeight(state, A, B, s)
    return (module, found) if found else "no active adapter"
