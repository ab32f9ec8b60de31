"""Running a module of experts along the graphs of its projections.

The rows are sorted by expert once; gate, activation, normalisation and weighting are the module's
own, as in transformers' implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.graphs.experts.function import run_experts
from autolora.graphs.experts.reference import projected, reference
from autolora.graphs.experts.routing import Routing
from autolora.nn.choosing import decide_and_report
from autolora.nn.dispatch import left
from autolora.nn.experts.module import FLOATS, implementation_of, projections_of, why_not
from autolora.nn.experts.statement import state_experts
from autolora.nn.layer_state import Choice, LayerState
from autolora.nn.layer_tensors import PLAIN
from autolora.problem import DEVICES, Experts

_COMPILED = "compiled: there are no graphs for compiled experts"


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
    module: Any, adapted: Mapping[str, AdaptedWeight], call: Call, routing: Routing
) -> dict[str, Experts] | str:
    """The problem of each adapted weight in a call, or why it has none; in the order of use."""
    x, implementation = call.x, implementation_of(module)
    grad = torch.is_grad_enabled()
    W = module._parameters[projections_of(module)[0]]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        if dtype != W.dtype and implementation != "grouped_mm":
            return f"experts in {W.dtype} under autocast"
    elif x.dtype != W.dtype:
        return f"input is {x.dtype}, experts are {W.dtype}"
    if W.dtype == torch.float64 and implementation == "grouped_mm":
        return "torch has no grouped products in float64"
    found: dict[str, Experts] = {}
    needs = x.requires_grad
    for name in projections_of(module):
        W, b = module._parameters[name], module._parameters.get(f"{name}_bias")
        if grad and (W.requires_grad or (b is not None and b.requires_grad)):
            return "the base layer is trained too"
        if W.dtype != module._parameters[projections_of(module)[0]].dtype:
            return "experts of several dtypes"
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
            tokens=x.shape[0],
            top_k=call.ids.shape[1],
            device=x.device.type,
            load=routing.load(call.ids.shape[1]),
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
    return problems_of(module, adapted, call, routing)


def run_wrapped(
    found: tuple[Any, Mapping[str, AdaptedWeight]] | str,
    state: LayerState,
    x: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor | None:
    """The output of a call of wrapped experts along their graphs; None if there are none for it.

    Args:
        found: the module and its adapters, or why the wrapper's own path is to be used.
        state: of the wrapper, which counts calls without graphs.
        x: the first argument of the call.
        args: the others.
        kwargs: those given by name.
    """
    if not isinstance(found, str):
        call = call_of(x, args, kwargs)
        if not isinstance(call, str):
            return run_module(*found, call)
        found = call
    if found:
        left(state, found)
    return None


def leave_compiled(found: tuple[Any, Mapping[str, AdaptedWeight]] | str) -> None:
    """Notes for :func:`~autolora.explain` that experts are compiled as they are without graphs."""
    if isinstance(found, str):
        return
    from autolora.nn.tracing import leave_traced

    module, adapted = found
    for name, each in adapted.items():
        W, b = module._parameters[name], module._parameters.get(f"{name}_bias")
        leave_traced(each.state, (W, b, each.A, each.B, None, None), _COMPILED)


def run_module(module: Any, adapted: Mapping[str, AdaptedWeight], call: Call) -> Tensor | None:
    """The output of a module of experts along its graphs; None if its own path is to be used.

    Args:
        module: of transformers.
        adapted: its weights that have adapters, by name.
        call: its arguments.
    """
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
    ):
        return None
    x, top_k = call.x, call.ids.shape[1]
    if reason := why_not(module, adapted):
        _left(adapted, reason)
        return None
    routing, order = Routing.sorted_by(call.ids.reshape(-1), module.num_experts)
    problems = problems_of(module, adapted, call, routing)
    if isinstance(problems, str):
        _left(adapted, problems)
        return None
    choices = {name: _choice(adapted[name].state, problems[name], x) for name in problems}
    for choice in choices.values():
        choice.calls += 1
    if all(choice.graph.is_reference for choice in choices.values()):
        return None
    rows: Tensor = _Dispatch.apply(x, order, top_k)  # type: ignore[no-untyped-call]
    first, second = projections_of(module)
    rows = _projected(module, first, rows, routing, adapted, choices)
    rows = module._apply_gate(rows) if module.has_gate else module.act_fn(rows)
    rows = _projected(module, second, rows, routing, adapted, choices)
    if getattr(module, "has_post_expert_norm", False):
        rows = module.post_expert_norm(rows)
    weighted = rows * call.weights.reshape(-1).index_select(0, order).unsqueeze(1)
    every = _unsorted(weighted, order, call.ids.numel())
    return every.view(*call.ids.shape, -1).sum(1).to(x.dtype)


def _projected(
    module: Any,
    name: str,
    rows: Tensor,
    routing: Routing,
    adapted: Mapping[str, AdaptedWeight],
    choices: Mapping[str, Choice],
) -> Tensor:
    """Y of one projection, with the adapter that it has or without."""
    W, b = module._parameters[name], module._parameters.get(f"{name}_bias")
    how, conv1d = implementation_of(module), bool(module.is_transposed)
    rows = rows.to(W.dtype)
    device = rows.device.type
    autocast = torch.is_autocast_enabled(device)
    if autocast:
        torch.set_autocast_enabled(device, False)
    try:
        if name not in choices:
            return projected(rows, W, b, routing, how, conv1d=conv1d)
        each, made = adapted[name], choices[name].executable
        if made is None:
            return reference(rows, W, b, each.A, each.B, each.s, routing, how, conv1d=conv1d)
        return run_experts(made, rows, W, b, each.A, each.B, each.s, routing)
    finally:
        if autocast:
            torch.set_autocast_enabled(device, True)


def _choice(state: LayerState, problem: Experts, x: Tensor) -> Choice:
    key = (problem, x.device)
    choice = state.choices.get(key)
    if choice is None:
        choice = decide_and_report(problem, x.device, state.policy)
        state.remember(key, choice)
    return choice


def _left(adapted: Mapping[str, AdaptedWeight], reason: str) -> None:
    for each in adapted.values():
        left(each.state, reason)


class _Dispatch(torch.autograd.Function):
    """Sends each token to its experts: the rows in the order of their experts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.shape = (x.shape[0], top_k)
        return x.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        tokens, top_k = ctx.shape
        every = _unsorted(G, order, tokens * top_k)
        return every.view(tokens, top_k, -1).sum(1), None, None


def _unsorted(rows: Tensor, order: Tensor, number: int) -> Tensor:
    """The rows in the order of the tokens; zeros for those that no expert got."""
    if len(order) < number:
        return rows.new_zeros((number, rows.shape[1])).index_copy(0, order, rows)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(number, device=order.device)
    return rows.index_select(0, inverse)
