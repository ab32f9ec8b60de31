"""One call of a module of experts: its arguments, its adapters, and the problems that it poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.experts.routing import Routing
from autolora.nn.experts.module import (
    FLOATS,
    implementation_of,
    projections_of,
    why_not,
    why_not_in,
)
from autolora.nn.experts.statement import state_experts
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import PLAIN
from autolora.problem import DEVICES, Experts


@dataclass(frozen=True, slots=True)
class AdaptedWeight:
    """The adapter of one stacked weight.

    Args:
        state: of its layer.
        A: ``(experts × rank, in_features)``.
        B: ``(out_features, rank × experts)``.
        s: the scaling.
    """

    state: LayerState
    A: Tensor
    B: Tensor
    s: float


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module of experts.

    Args:
        x: ``(tokens, hidden)``.
        ids: the experts of each token, ``(tokens, top_k)``.
        weights: of these, ``(tokens, top_k)``.
    """

    x: Tensor
    ids: Tensor
    weights: Tensor


def call_of(x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str:
    """The arguments of a call of such a module, or why it is not one."""
    names = ("top_k_index", "top_k_weights")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > 2 or given.keys() != set(names):
        return "its forward was given other arguments than ids and weights"
    ids, weights = given["top_k_index"], given["top_k_weights"]
    if any(type(each) not in PLAIN for each in (x, ids, weights)):
        return "tensor subclasses"
    if x.dim() != 2 or ids.dim() != 2 or ids.shape != weights.shape or ids.shape[0] != x.shape[0]:
        return "an input that is not one row for each token"
    if x.device.type not in DEVICES:
        return f"the device {x.device.type}"
    return Call(x, ids, weights) if ids.numel() else "no tokens"


def problems_of(
    module: Any, adapted: Mapping[str, AdaptedWeight], call: Call, load: str
) -> dict[str, Experts] | str:
    """The problem of each adapted weight in a call, or why it has none; in the order of use."""
    x, kind = call.x, call.x.device.type
    grad = torch.is_grad_enabled()
    dtypes = {module._parameters[name].dtype for name in projections_of(module)}
    dtype = next(iter(dtypes))
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if len(dtypes) > 1:
        return "experts of several dtypes"
    if autocast is None and x.dtype != dtype:
        return f"input is {x.dtype}, experts are {dtype}"
    if reason := why_not_in(implementation_of(module), dtype, autocast):
        return reason
    if grad and any(parameter.requires_grad for parameter in module.parameters()):
        return "the base layer is trained too"
    found: dict[str, Experts] = {}
    needs = x.requires_grad
    for name in projections_of(module):
        if name not in adapted:
            continue
        A, B = adapted[name].A, adapted[name].B
        if A.dtype != B.dtype or A.dtype not in FLOATS:
            return f"lora_A is {A.dtype}, lora_B {B.dtype}"
        leaves = {"X": needs, "A": A.requires_grad, "B": B.requires_grad}
        found[name] = state_experts(
            module,
            A,
            B,
            dtype=dtype,
            tokens=x.shape[0],
            top_k=call.ids.shape[1],
            device=x.device.type,
            load=load,
            gradients=(leaf for leaf, needed in leaves.items() if needed and grad),
        )
        needs = needs or A.requires_grad or B.requires_grad
    return found


def problems_of_call(
    module: Any, adapted: Mapping[str, AdaptedWeight], call: Call
) -> dict[str, Experts] | str:
    """The problem of each adapted weight in a call, or why it has none, without running it."""
    if reason := why_not(module, adapted):
        return reason
    routing, _ = Routing.sorted_by(call.ids.reshape(-1), module.num_experts)
    return problems_of(module, adapted, call, routing.load(call.ids.shape[1]))
