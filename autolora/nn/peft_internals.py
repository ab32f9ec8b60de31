"""The private attributes of PEFT that autolora reads; no other module touches them.

:func:`unexpected` checks them once, when a model is accelerated, so that :func:`peft_tensors` can
read them at every call of a layer without checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peft
from torch import Tensor
from torch.nn import ModuleDict

from autolora.graphs.function import LayerTensors
from autolora.nn.layer_tensors import dropout_of, plain_tensors

try:
    from peft.tuners.lora import dora
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.variants import DoraLinearVariant
except ImportError:
    dora = DoraLinearLayer = DoraLinearVariant = None

_ATTRIBUTES: dict[str, tuple[type, ...]] = {
    "_disable_adapters": (bool,),
    "merged_adapters": (list,),
    "_active_adapter": (str, list, tuple),
    "cast_input_dtype_enabled": (bool,),
    "scaling": (dict,),
    "lora_variant": (dict,),
    "lora_A": (ModuleDict,),
    "lora_B": (ModuleDict,),
    "lora_dropout": (ModuleDict,),
    "lora_magnitude_vector": (ModuleDict,),
}
_dora_globals: dict[str, Any] = {} if dora is None else vars(dora)


def unexpected(layer: Any) -> str:
    """How a LoRA layer differs from those of the PEFT versions that autolora knows, or ``""``."""
    version = f"PEFT {peft.__version__}"
    for name, kinds in _ATTRIBUTES.items():
        if not hasattr(layer, name):
            return f"{version} has no {name} in its layers"
        kind = type(getattr(layer, name))
        if kind not in kinds:
            return f"{version} has a {name} of type {kind.__name__}"
    if layer.lora_variant and DoraLinearVariant is None:
        return f"{version} has no DoraLinearVariant or DoraLinearLayer"
    active = layer._active_adapter
    state = (layer._disable_adapters, [active] if type(active) is str else list(active))
    # the public properties that these attributes stand for
    if (layer.disable_adapters, list(layer.active_adapters)) != state or layer.merged != bool(
        layer.merged_adapters
    ):
        return f"{version} keeps its active and merged adapters elsewhere"
    return ""


def peft_tensors(layer: Any) -> tuple[LayerTensors, float, float] | str:
    """The tensors, scaling and dropout of a PEFT layer, or why it runs PEFT's ``forward`` now.

    Called at every call of an accelerated layer.

    Args:
        layer: one in which :func:`unexpected` finds nothing.
    """
    if layer._disable_adapters:
        return "its adapters are disabled"
    if layer.merged_adapters:
        return "its adapter is merged"
    active = layer._active_adapter
    if type(active) is not str:
        if len(active) != 1:
            return "several active adapters" if active else "no active adapter"
        active = active[0]
    modules = layer._modules
    magnitude = None
    if active in layer.lora_variant:
        variant = type(layer.lora_variant[active])
        if variant is not DoraLinearVariant or _dora_globals.get("ENABLE_DORA_CACHING"):
            return f"the variant {variant.__name__}"
        magnitude = modules["lora_magnitude_vector"]._modules.get(active)
        if type(magnitude) is not DoraLinearLayer:
            return f"a magnitude of type {type(magnitude).__name__}"
    lora_A = modules["lora_A"]._modules.get(active)
    if lora_A is None:
        return "no active adapter"
    if not layer.cast_input_dtype_enabled:
        return "its input casting is disabled"
    lora_B = modules["lora_B"]._modules.get(active)
    tensors = plain_tensors(modules["base_layer"], lora_A, lora_B, magnitude)
    if isinstance(tensors, str):
        return tensors
    p = dropout_of(modules["lora_dropout"]._modules.get(active))
    if isinstance(p, str):
        return p
    s = layer.scaling[active]
    if type(s) is not float and type(s) is not int:
        return f"a scaling of type {type(s).__name__}"
    return tensors, s, p


def peft_factors(wrapper: Any) -> tuple[Any, Any, Any] | str | None:
    """The layers lora_A and lora_B of a wrapper's active adapter, and its scaling.

    None if it has no active adapter, or why it runs PEFT's ``forward`` now.

    Args:
        wrapper: PEFT's, of a single parameter; one in which :func:`unexpected` finds nothing.
    """
    if wrapper._disable_adapters:
        return "its adapters are disabled"
    if wrapper.merged_adapters:
        return "its adapter is merged"
    active = wrapper._active_adapter
    if type(active) is not str:
        if len(active) > 1:
            return "several active adapters"
        active = active[0] if active else ""
    modules = wrapper._modules
    lora_A = modules["lora_A"]._modules.get(active)
    if lora_A is None:
        return None
    return lora_A, modules["lora_B"]._modules.get(active), wrapper.scaling[active]


def adapter_weights(layer: Any) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors of a layer, each with the name of its adapter."""
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        for name, weight in part.named_parameters():
            yield name.partition(".")[0], weight


def training_dropout(layer: Any) -> float:
    """The dropout probability of a layer's active adapter in training."""
    return float(getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0.0))
