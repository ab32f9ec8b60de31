"""Sharded parameters as they are in the forward pass, without their numbers.

Outside of it ``fully_shard`` leaves ``DTensor`` parameters in the modules, and
``FullyShardedDataParallel`` pieces of flattened ones. What a layer computes depends on neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autolora.nn.layer_tensors import PLAIN
from autolora.nn.sharding.units import is_flat_unit, is_split, is_unit

_Place = tuple[
    dict[str, Any], str, nn.Parameter
]  # a module's parameters, a name, what to put there


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Replaces the sharded parameters of a model by stand-ins on the meta device.

    These have the shape and dtype, and need a gradient, as in the forward pass. Nothing is sent
    between ranks.

    Args:
        model: the units of FSDP are looked for in it; parameters of units around it stay sharded.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for unit in model.modules():
            for parameters, name, whole in _stand_ins(unit):
                kept.append((parameters, name, parameters[name]))
                parameters[name] = whole
        yield
    finally:
        for parameters, name, sharded in kept:
            parameters[name] = sharded


def device_of(tensor: Tensor) -> torch.device:
    """The device that a tensor is on, or that the parameter is on for which it stands in."""
    return getattr(tensor, "_autolora_device", tensor.device)


def numbers_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that this rank has, also of the parameter for which it stands in."""
    found: Any = getattr(tensor, "_autolora_shard", tensor)
    with torch.no_grad():
        return found.to_local() if is_split(found) else found  # type: ignore[no-any-return]


def _stand_ins(unit: Any) -> Iterator[_Place]:
    if is_unit(unit):
        return _of_fully_shard(unit)
    return _of_flat_parameter(unit) if is_flat_unit(unit) else iter(())


def _of_fully_shard(unit: Any) -> Iterator[_Place]:
    state = unit._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before torch 2.12
        groups = [state._fsdp_param_group]
    for group in filter(None, groups):
        for each in group.fsdp_params:
            info = each._module_info
            sharded = info.module._parameters.get(info.param_name)
            # others are whole now, or will not be plain tensors in the forward pass either
            if not is_split(sharded) or each.is_dtensor or type(numbers_of(sharded)) not in PLAIN:
                continue
            dtype = sharded.dtype
            if dtype.is_floating_point and group.mp_policy.param_dtype is not None:
                dtype = group.mp_policy.param_dtype
            like = torch.empty_strided(sharded.shape, sharded.stride(), dtype=dtype, device="meta")
            whole = _stand_in(like, sharded, sharded.requires_grad, group.device)
            modules = (info.module, *info.shared_modules)
            names = (info.param_name, *info.shared_param_names)
            for module, name in zip(modules, names, strict=True):
                yield module._parameters, name, whole


def _of_flat_parameter(unit: Any) -> Iterator[_Place]:
    handle = unit._handle
    if handle is None:
        return
    flat = handle.flat_param
    for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
        parameters, name = info.module._parameters, info.param_name
        piece = parameters.get(name)
        # in the forward pass it is no parameter, but a part of the flat one
        if isinstance(piece, nn.Parameter) and not hasattr(piece, "_autolora_shard"):
            like = torch.empty(shape, dtype=handle._fwd_bwd_param_dtype, device="meta")
            whole = _stand_in(like, piece, flat.requires_grad, handle.device)
            whole._fsdp_flattened = True  # type: ignore[attr-defined]
            yield parameters, name, whole


def _stand_in(
    like: Tensor, sharded: Tensor, needs_gradient: bool, device: torch.device
) -> nn.Parameter:
    whole = nn.Parameter(like, needs_gradient)
    whole._autolora_shard, whole._autolora_device = sharded, device  # type: ignore[attr-defined]
    return whole
