"""``autolora.merge``, ``unmerge`` and ``disable``: adapters in the weights, or out of use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import AutoloraError
from autolora.nn.adapter.layers import Layer, native_layers, some, weights_of
from autolora.nn.experts.chain import wrapped
from autolora.nn.experts.module import FLOATS
from autolora.nn.experts.native import LoRAExperts, without_autocast
from autolora.nn.layer_tensors import PLAIN, base_layout
from autolora.problem import QUANTISED

_MERGED = "its adapter is merged; autolora.unmerge(model) takes it out of the weight"


def merge(model: nn.Module) -> nn.Module:
    """Adds the adapters to the frozen weights in place: ``W += s·B A`` and, with a c, ``b += s·c``.

    Then a layer costs what its base does, in training too, where A and B get no gradients and
    dropout is left out. A and B are kept, for :func:`unmerge` and for ``save_adapter``. Rounds as
    ``merge_adapter`` of PEFT: s·B A to the dtype of B, and the sum to that of W.

    Args:
        model: with layers of ``add_lora``; all are merged, or none.

    Returns:
        The same model.

    Raises:
        AutoloraError: adapters are merged or disabled already, the base is quantised, lacks a bias
            for c or shares its weight with another layer, or a number is not finite.
    """
    layers = native_layers(model)
    owners = _owners(model)
    _refuse("merge", {path: _why_not_merged(layer, owners) for path, layer in layers})
    for _, layer in layers:
        _add(layer, 1)
        layer.merged = True
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Takes the adapters out of their weights again: ``W -= s·B A``, in place.

    As in PEFT, W is what it was up to the rounding of both sums.

    Args:
        model: whose adapters were merged, and are what they were then.

    Returns:
        The same model.

    Raises:
        AutoloraError: none is merged.
    """
    found = [(path, layer) for path, layer in native_layers(model) if layer.merged]
    if not found:
        raise AutoloraError(f"no adapter of this {type(model).__name__} is merged")
    for _, layer in found:
        _add(layer, -1)
        layer.merged = False
    return model


@contextmanager
def disable(model: nn.Module) -> Iterator[nn.Module]:
    """Runs a model without its adapters: ``with autolora.disable(model): ...``.

    Raises:
        AutoloraError: an adapter is merged.
    """
    found = native_layers(model)
    _refuse("disable", {path: _MERGED if layer.merged else "" for path, layer in found})
    before = [layer.disabled for _, layer in found]
    try:
        for _, layer in found:
            layer.disabled = True
        yield model
    finally:
        for (_, layer), disabled in zip(found, before, strict=True):
            layer.disabled = disabled


def _refuse(what: str, reasons: dict[str, str]) -> None:
    """Raises the first of the reasons against something, with the paths that it holds for.

    Raises:
        AutoloraError: there is one.
    """
    reason = next(filter(None, reasons.values()), "")
    if reason:
        paths = some([path for path, each in reasons.items() if each == reason])
        raise AutoloraError(f"cannot {what} {paths}: {reason}")


def _why_not_merged(layer: Layer, owners: dict[int, list[str]]) -> str:
    if layer.merged:
        return _MERGED
    if layer.disabled:
        return "its adapters are disabled; leave autolora.disable(model) first"
    base, name = _weight_of(layer)
    W = base._parameters.get(name)
    if (layout := base_layout(base)) in QUANTISED:
        return (
            f"its base is quantised ({layout}), and would be rounded anew; merge into a plain one"
        )
    if type(W) not in PLAIN:
        return f"its weight is {'no parameter' if W is None else f'a {type(W).__name__}'}"
    assert W is not None
    A, B, *c = weights_of(layer).values()
    if W.dtype not in FLOATS:
        return f"its weight is {W.dtype}"
    if A.dtype != B.dtype:
        return f"lora_A is {A.dtype}, lora_B {B.dtype}"
    if any(each.is_meta for each in (W, A, B)):
        return "its weights are on the meta device; load them first"
    if len(owners[id(W)]) > 1:
        return f"its weight is shared by {some(owners[id(W)])}; untie them first"
    if c and base._parameters.get("bias") is None:
        return "lora_B has a bias, and its base has none to add it to"
    if not all(bool(each.isfinite().all()) for each in (A, B, *c)):
        return "its adapter holds numbers that are not finite, which could not be taken out again"
    return ""


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The paths of the modules that hold each parameter, by its id."""
    found: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None:
                found[id(weight)].append(path)
    return found


def _weight_of(layer: Layer) -> tuple[Any, str]:
    """The module that holds the weight of a layer, and its name there."""
    if isinstance(layer, LoRAExperts):
        return wrapped(layer, LoRAExperts), layer.parameter_name
    return layer.base_layer, "weight"


def unmerged(layer: Layer, weight: Tensor) -> Tensor:
    """A weight of a layer's base as :func:`unmerge` would leave it."""
    changes = _changes(layer, -1) if layer.merged else []
    return next((held + change for held, change in changes if held is weight), weight).to(weight)


def _add(layer: Layer, sign: int) -> None:
    """Adds the adapter to the weights, or takes it out."""
    for held, change in _changes(layer, sign):
        with torch.no_grad():
            held.add_(change)


def _changes(layer: Layer, sign: int) -> list[tuple[Tensor, Tensor]]:
    """W, b and what is added to each, with the roundings of PEFT's."""
    base, name = _weight_of(layer)
    W, c = base._parameters[name], layer.lora_B.bias
    with torch.no_grad(), without_autocast(W.device.type):
        update = _update(layer, W)
        changes = [(W, update if sign > 0 else -update.to(W.dtype))]
        if c is not None:
            changes.append((base._parameters["bias"], c * layer.scaling * sign))
    return changes


def _update(layer: Layer, W: Tensor) -> Tensor:
    """``s·B A`` as W is stored, in the dtype of B, or of W for experts."""
    A, B = layer.lora_A.weight, layer.lora_B.weight
    if isinstance(layer, LoRAExperts):
        narrow = A.reshape(layer.num_experts, -1, A.shape[1])
        wide = B.reshape(B.shape[0], -1, layer.num_experts)
        conv1d = wrapped(layer, LoRAExperts).is_transposed
        stored = "eio" if conv1d else "eoi"
        return (torch.einsum(f"ore,eri->{stored}", wide, narrow) * layer.scaling).to(W.dtype)
    in_float32 = B.device.type == "cpu" and B.dtype.itemsize < 4
    update = B.float() @ A.float() if in_float32 else B @ A
    if base_layout(layer.base_layer) == "conv1d":
        update = update.T
    return (update * layer.scaling).to(B.dtype)
