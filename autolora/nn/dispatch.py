"""Choosing the graph that a layer runs.

The first call of a layer with a given token count, dtypes and gradient needs looks up the timing
cache and stores the choice in the :class:`~autolora.nn.layer_state.LayerState` of the layer; later
calls find it there. Graphs are never timed here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.cache.lookup.choice import not_tuned_for
from autolora.cache.lookup.lookup import Answer, Lookup
from autolora.environment import Environment
from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.function import LayerTensors, run
from autolora.graphs.graph import Graph
from autolora.graphs.kinds import find_graph, unmeasured_graph
from autolora.graphs.source import executable
from autolora.nn.layer_state import MOST_SHARED, Choice, Chooser, LayerState, layer_states
from autolora.nn.layer_tensors import PLAIN
from autolora.nn.statement import problem_of
from autolora.nn.strict import is_strict, miss_detail, miss_error, notice_unmeasured
from autolora.objective import Objective
from autolora.problem import BaseProblem, Problem

if TYPE_CHECKING:
    from autolora.nn.snapshot import Snapshot

logger = logging.getLogger("autolora")


def run_layer(
    state: LayerState, x: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor | None:
    """Runs the layer along its graph; None if its own ``forward`` has to be used.

    Args:
        state: of the layer.
        x: input ``(..., in_features)``.
        tensors: of the layer.
        s: scaling.
        p: dropout probability; 0 if dropout is not active.
    """
    W, b, A, B, c, M = tensors
    kind = "cpu" if x.is_cpu else "cuda"
    if (
        type(x) not in PLAIN
        or not (x.is_cpu or x.is_cuda)
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
        or (p and not x.is_contiguous())  # the mask is drawn in memory order
    ):
        return None
    given = x.dtype
    if quantised := type(W) not in PLAIN:  # it ignores autocast and computes in its own dtype
        own = getattr(W, "compute_dtype", None)
        x = x if own is None else x.to(own)
    autocast = torch.is_autocast_enabled(kind)
    key = (
        x.numel(),
        x.dim() > 1,
        x.dtype,
        x.requires_grad,
        torch.is_grad_enabled(),
        torch.get_autocast_dtype(kind) if autocast else None,
        b.dtype if quantised and b is not None else quantised or W.dtype,
        quantised or W.requires_grad,
        A.shape[0],
        A.dtype,
        A.requires_grad,
        B.requires_grad,
        c is not None and c.requires_grad,
        M is not None and M.requires_grad,
        p > 0,
        x.device,
    )
    choice = state.choices.get(key)
    if choice is None:
        choice = _choose(state, x, tensors, p)
        state.remember(key, choice)
    choice.calls += 1
    if choice.executable is None:
        return None
    if not autocast:
        Y = run(choice.executable, x, tensors, s, p)
        return Y.to(given) if quantised else Y
    # The graph casts explicitly; autocast would change some of its dtypes.
    if not quantised:
        given = torch.get_autocast_dtype(kind)
        x, W, b = x.to(given), W.to(given), None if b is None else b.to(given)
    torch.set_autocast_enabled(kind, False)
    try:
        return run(choice.executable, x, (W, b, A, B, c, M), s, p).to(given)
    finally:
        torch.set_autocast_enabled(kind, True)


def left(state: LayerState, reason: str) -> None:
    """Counts a call in which the layer uses its own ``forward``, for :func:`~autolora.explain`."""
    key = ("left", reason)
    choice = state.choices.get(key)
    if choice is None:
        choice = _left(reason)
        state.remember(key, choice)
    choice.calls += 1


def pin(model: torch.nn.Module, chooser: Chooser | None) -> None:
    """Makes the layers of a model run the graphs that ``chooser`` returns for their problems.

    For comparisons: ``pin(model, reference_graph)`` runs PEFT's graphs and ``pin(model,
    flops_graph)`` those with the fewest FLOPs. None restores the choice by the timing cache.
    """
    for _, state in layer_states(model):
        state.chooser = chooser
        state.choices.clear()


def refresh(model: torch.nn.Module | None = None) -> None:
    """Reads the timing cache again; the layers of ``model`` choose again at their next call.

    Frozen layers keep their choices; if the user froze them, one warning says so.
    """
    _lookup.cache_clear()
    _decide.cache_clear()
    states = [] if model is None else [state for _, state in layer_states(model)]
    if any(state.snapshots is not None and state.snapshots.lasting for state in states):
        logger.warning(
            "autolora: the model is frozen and runs what it ran before; new timings are used once "
            "autolora.freeze(model) is called again, in a process group on every rank"
        )
    for state in states:
        if state.snapshots is None:
            state.choices.clear()


def decide(problem: Problem, device: torch.device, state: LayerState) -> Choice:
    """The graph for a problem on a device: pinned, from the timing cache, or analytic on a miss.

    Frozen layers use their own copy of the records. Never raises, not even in strict mode.
    """
    if state.chooser is not None:
        return _choice(problem, state.chooser(problem), "pinned")
    plan = None if state.snapshots is None else state.snapshots.of(device.type)
    choice = _decide(problem, device, state.wanted, plan, is_strict())
    return replace(choice)  # a copy, since each layer counts its own calls


def ask(
    lookup: Lookup,
    problem: BaseProblem,
    environment: Environment,
    objective: Objective,
    *,
    other_environments: bool = True,
) -> tuple[BaseGraph | None, Answer]:
    """The valid graph that the timing cache has for a problem, None on a miss, and the answer.

    Args:
        lookup: of the timing cache.
        problem: of the layer.
        environment: of its device.
        objective: what the graph is chosen for.
        other_environments: whether records of other environments may be used.
    """

    def valid(name: str) -> bool:
        return find_graph(name, problem) is not None

    answer = lookup.find(
        problem, environment, valid, objective, other_environments=other_environments
    )
    return (None if answer.graph is None else find_graph(answer.graph, problem)), answer


def _choose(state: LayerState, x: Tensor, tensors: LayerTensors, p: float) -> Choice:
    problem = problem_of(state, x, tensors, p)
    if isinstance(problem, str):
        return _left(problem)
    choice = decide(problem, x.device, state)
    if choice.reason == "miss" and problem.gradients and is_strict():
        snapshots = state.snapshots and state.snapshots.of(x.device.type)
        lookup, plan = (snapshots.lookup, snapshots.origin) if snapshots else (_lookup(), "")
        raise miss_error(problem, Environment.of(x.device), state.wanted, lookup, plan)
    return choice


def _left(reason: str) -> Choice:
    return Choice(None, Graph(REFERENCE), "left", reason)


def _choice(problem: Problem, graph: BaseGraph, reason: str, *details: str) -> Choice:
    made = None
    if isinstance(graph, Graph) and not graph.is_reference:
        made = executable(graph, problem)
    return Choice(problem, graph, reason, "; ".join(filter(None, details)), made)


@lru_cache(maxsize=1)
def _lookup() -> Lookup:
    return Lookup()


@lru_cache(maxsize=MOST_SHARED)
def _decide(
    problem: Problem,
    device: torch.device,
    objective: Objective,
    plan: Snapshot | None,
    strict: bool,
) -> Choice:
    lookup, origin = (_lookup(), "") if plan is None else (plan.lookup, plan.origin)
    environment = Environment.of(device)
    graph, answer = ask(lookup, problem, environment, objective, other_environments=not strict)
    if graph is not None:
        logger.debug("%s: %s, %s %s", problem, graph.name, answer.reason, answer.detail)
        lack = not_tuned_for(answer.record, objective) if answer.record is not None else ""
        if lack and problem.gradients:
            notice_unmeasured(problem, objective, lack)
        return _choice(problem, graph, answer.reason, answer.detail, origin)
    chosen, how = unmeasured_graph(problem, objective)
    if problem.gradients and not strict:
        notice_unmeasured(problem, objective)
    return _choice(problem, chosen, "miss", "not tuned", miss_detail(problem, how, strict), origin)
