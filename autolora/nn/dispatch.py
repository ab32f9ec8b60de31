"""Which graph a layer runs: looked up once per problem, remembered, counted.

Each layer has a :class:`~autolora.nn.layer_state.LayerState`. On its first call with some token
count, dtypes and gradient needs the layer asks the timing cache; from then on the answer is one
dictionary look-up away. Nothing here ever times a graph.
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
from autolora.nn.strict import is_strict, miss_detail, miss_error
from autolora.nn.unmeasured import notice_lack, notice_miss
from autolora.objective import Objective
from autolora.problem import BaseProblem, Problem

if TYPE_CHECKING:
    from autolora.nn.snapshot import Snapshot

logger = logging.getLogger("autolora")


def run_layer(
    state: LayerState, x: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor | None:
    """Runs the layer along its graph, or gives None where it must take its own plain path.

    Args:
        state: the memory of the layer.
        x: its input.
        tensors: its tensors.
        s: the scaling.
        p: the probability of dropout; 0 where there is none now.
    """
    W, b, A, B, c, M = tensors
    kind = "cpu" if x.is_cpu else "cuda"
    if (
        type(x) not in PLAIN
        or not (x.is_cpu or x.is_cuda)
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
        or (p and not x.is_contiguous())  # the mask is drawn in the order of the memory
    ):
        return None
    given = x.dtype
    if quantised := type(W) not in PLAIN:  # it computes in its own dtype, whatever autocast says
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
    # The graph has its dtypes already, and autocast would change some of them.
    if not quantised:
        given = torch.get_autocast_dtype(kind)
        x, W, b = x.to(given), W.to(given), None if b is None else b.to(given)
    torch.set_autocast_enabled(kind, False)
    try:
        return run(choice.executable, x, (W, b, A, B, c, M), s, p).to(given)
    finally:
        torch.set_autocast_enabled(kind, True)


def left(state: LayerState, reason: str) -> None:
    """Notes that a call of the layer takes its own plain path, for :func:`~autolora.explain`."""
    key = ("left", reason)
    choice = state.choices.get(key)
    if choice is None:
        choice = _left(reason)
        state.remember(key, choice)
    choice.calls += 1


def pin(model: torch.nn.Module, chooser: Chooser | None) -> None:
    """Makes every layer of a model take its graph from ``chooser`` instead of the timing cache.

    For comparisons: ``pin(model, reference_graph)`` runs what PEFT runs, ``pin(model,
    flops_graph)`` what FLOPs alone would choose. ``None`` goes back to the cache.
    """
    for _, state in layer_states(model):
        state.chooser = chooser
        state.choices.clear()


def refresh(model: torch.nn.Module | None = None) -> None:
    """Reads the timing cache anew; the layers of ``model`` choose again at their next call.

    Those that are frozen do not: they stay with what they hold. One warning says so where the user
    froze them.
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

    A frozen layer has the records that it holds instead of the timing cache. Never raises, in
    strict mode neither.
    """
    if state.chooser is not None:
        return _made(problem, state.chooser(problem), "pinned")
    plan = None if state.snapshots is None else state.snapshots.of(device.type)
    made = _decide(problem, device, state.wanted, plan, is_strict())
    return replace(made)  # a copy: each layer counts its calls


def ask(
    lookup: Lookup,
    problem: BaseProblem,
    environment: Environment,
    objective: Objective,
    *,
    other_environments: bool = True,
) -> tuple[BaseGraph | None, Answer]:
    """The valid graph that the timing cache names for a problem, None on a miss, and its answer.

    With ``other_environments`` records of other environments may answer.
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


def _made(problem: Problem, graph: BaseGraph, reason: str, *details: str) -> Choice:
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
            notice_lack(problem, objective, lack)
        return _made(problem, graph, answer.reason, answer.detail, origin)
    chosen, how = unmeasured_graph(problem, objective)
    if problem.gradients and not strict:
        notice_miss(problem, objective)
    return _made(problem, chosen, "miss", "not tuned", miss_detail(problem, how, strict), origin)
