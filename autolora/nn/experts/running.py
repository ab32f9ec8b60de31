"""Running a module of experts along the graphs of its projections.

The rows are sorted by expert once; gate, activation, normalisation and weighting are the module's
own, as in transformers' implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.graphs.experts.function import run_experts
from autolora.graphs.experts.reference import projected, reference
from autolora.graphs.experts.routing import Routing
from autolora.nn.choosing import decide, decide_and_report
from autolora.nn.dispatch import left
from autolora.nn.experts.call import AdaptedWeight, Call, call_of, problems_of
from autolora.nn.experts.module import (
    implementation_of,
    projections_of,
    why_not,
)
from autolora.nn.layer_state import Choice, LayerState
from autolora.problem import LOADS, Experts, at_loads

_COMPILED = "compiled: there are no graphs for compiled experts"


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
    problems = why_not(module, adapted) or problems_of(module, adapted, call, LOADS[0])
    if isinstance(problems, str):
        _left(adapted, problems)
        return None
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        _left(adapted, "a CUDA graph is being captured, which cannot wait for the router")
        return None
    routing = None
    if not _is_reference_at_any_load(adapted, problems, x.device):
        routing, order = Routing.sorted_by(call.ids.reshape(-1), module.num_experts)
        if len(order) < call.ids.numel():
            _left(adapted, "rows of no expert")
            return None
        load = routing.load(top_k)
        problems = {name: replace(problem, load=load) for name, problem in problems.items()}
    choices = {n: _choice(adapted[n].state, problems[n], x.device) for n in problems}
    for choice in choices.values():
        choice.calls += 1
    if routing is None or all(choice.graph.is_reference for choice in choices.values()):
        return None
    rows: Tensor = _Dispatch.apply(x, order, top_k)  # type: ignore[no-untyped-call]
    first, second = projections_of(module)
    rows = _projected(module, first, rows, routing, adapted, choices)
    rows = module._apply_gate(rows) if module.has_gate else module.act_fn(rows)
    rows = _projected(module, second, rows, routing, adapted, choices)
    if getattr(module, "has_post_expert_norm", False):
        rows = module.post_expert_norm(rows)
    weighted = rows * call.weights.reshape(-1).index_select(0, order).unsqueeze(1)
    every = _unsorted(weighted, order)
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


def _choice(state: LayerState, problem: Experts, device: torch.device) -> Choice:
    key = (problem, device)
    choice = state.choices.get(key)
    if choice is None:
        choice = decide_and_report(problem, device, state.policy)
        state.remember(key, choice)
    return choice


def _is_reference_at_any_load(
    adapted: Mapping[str, AdaptedWeight], problems: Mapping[str, Experts], device: torch.device
) -> bool:
    """Whether the module's own path runs, however the tokens are spread: rows need no sorting."""
    return all(
        decide(each, device, adapted[name].state.policy).graph.is_reference
        for name, problem in problems.items()
        for each in at_loads(problem)
    )


def _unsorted(rows: Tensor, order: Tensor) -> Tensor:
    """The rows in the order of the tokens."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return rows.index_select(0, inverse)


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
        every = _unsorted(G, order)
        return every.view(tokens, top_k, -1).sum(1), None, None
