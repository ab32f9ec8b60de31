"""Wrappers around the weights of a module of experts, one inside the other, PEFT's or autolora's.

Each has a ``parameter_name`` and wraps, as its ``base_layer``, the module or the next wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from autolora.nn.experts.call import AdaptedWeight
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import changed, plain_tensors

Factors = tuple[Any, Any, Any]  # the layers lora_A and lora_B, and the scaling
Kind = type[Any]


def wrappers_from(wrapper: Any, kind: Kind) -> Iterator[Any]:
    """The wrapper and those inside it, the outermost first.

    Args:
        wrapper: one of that kind, or what such wrappers are around.
        kind: the class of the wrappers.
    """
    while isinstance(wrapper, kind):
        yield wrapper
        wrapper = wrapper._modules["base_layer"]


def wrapped(wrapper: Any, kind: Kind) -> Any:
    """The module whose parameters the wrappers adapt; itself if it is no wrapper."""
    while isinstance(wrapper, kind):
        wrapper = wrapper._modules["base_layer"]
    return wrapper


def adapted_by(
    wrapper: Any, kind: Kind, factors_of: Callable[[Any], Factors | str | None]
) -> tuple[Any, dict[str, AdaptedWeight]] | str:
    """The module of experts inside, and the adapter of each of its weights, by name.

    Or why the wrapper's own path is to be used, ``""`` while an outer wrapper of PEFT's is running.

    Args:
        wrapper: the outermost.
        kind: its class.
        factors_of: the factors of one wrapper, None if it has none now, or why there is no graph.
    """
    module = wrapped(wrapper, kind)
    if hasattr(module, "parametrizations"):
        return ""
    found: dict[str, AdaptedWeight] = {}
    for each in wrappers_from(wrapper, kind):
        if each is not wrapper:
            if reason := changed(each):
                return reason
            if hasattr(wrapper, "_autolora") and not hasattr(each, "_autolora"):
                return "the adapter of another of its weights is left as it is"
        factors = factors_of(each)
        if factors is None:
            continue
        if isinstance(factors, str):
            return factors
        lora_A, lora_B, s = factors
        tensors = plain_tensors(lora_A, lora_A, lora_B)
        if isinstance(tensors, str):
            return tensors
        _, _, A, B, c, _ = tensors
        if type(s) is not float and type(s) is not int:
            return f"a scaling of type {type(s).__name__}"
        if c is not None:
            return "a bias in lora_B"
        state = getattr(each, "_autolora", None) or LayerState()
        found[each.parameter_name] = AdaptedWeight(state, A, B, s)
    return (module, found) if found else "no active adapter"
