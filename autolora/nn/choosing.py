"""Choosing the graph of a problem: pinned, from the timing cache, or unmeasured on a miss.

Graphs are never timed here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from autolora.cache.lookup.choice import not_tuned_for
from autolora.cache.lookup.lookup import Answer, Lookup
from autolora.environment import Environment
from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.graph import Graph
from autolora.graphs.kinds import executable, find_graph, unmeasured_graph
from autolora.nn.advice import in_dtype_of_base, notice_compute_dtype, runs_in_float32
from autolora.nn.layer_state import (
    MOST_SHARED,
    Choice,
    Chooser,
    Policy,
    choose_anew,
    layer_states,
)
from autolora.nn.strict import (
    are_misses_expected,
    is_strict,
    miss_detail,
    miss_error,
    notice_unmeasured,
)
from autolora.objective import Objective
from autolora.problem import BaseProblem

if TYPE_CHECKING:
    from autolora.nn.freezing.snapshot import Snapshot

MEASURED = ("exact", "interpolated", "nearest")  # reasons of records of one's own environment

logger = logging.getLogger("autolora")


def pin(model: torch.nn.Module, chooser: Chooser | None) -> None:
    """Makes the layers of a model run the graphs that ``chooser`` returns for their problems.

    For comparisons: ``pin(model, reference_graph)`` runs PEFT's graphs and ``pin(model,
    flops_graph)`` those with the fewest FLOPs. None restores the choice by the timing cache.
    """
    choose_anew((state for _, state in layer_states(model)), chooser=chooser)


def refresh(model: torch.nn.Module | None = None) -> None:
    """Reads the timing cache again; the layers of ``model`` choose again at their next call.

    Frozen layers keep their choices; if the user froze them, one warning says so.
    """
    _lookup.cache_clear()
    _decide.cache_clear()
    states = [] if model is None else [state for _, state in layer_states(model)]
    plans = [state.policy.snapshots for state in states]
    if any(plan is not None and plan.lasting for plan in plans):
        logger.warning(
            "autolora: the model is frozen and runs what it ran before; new timings are used once "
            "autolora.freeze(model) is called again, in a process group on every rank"
        )
    choose_anew(state for state in states if state.policy.snapshots is None)


def decide(problem: BaseProblem, device: torch.device, policy: Policy) -> Choice:
    """The graph for a problem on a device: pinned, from the timing cache, or analytic on a miss.

    Frozen layers use their own copy of the records. Never raises, not even in strict mode.
    """
    if policy.chooser is not None:
        return _choice(problem, policy.chooser(problem), "pinned")
    plan = None if policy.snapshots is None else policy.snapshots.of(device.type)
    choice = _decide(problem, device, policy.wanted, plan, is_strict())
    return replace(choice)  # a copy, since each layer counts its own calls


def decide_and_report(problem: BaseProblem, device: torch.device, policy: Policy) -> Choice:
    """As :func:`decide`, for a call: a problem without timings is reported once.

    Raises:
        MissError: in strict mode, if the call needs gradients.
    """
    choice = decide(problem, device, policy)
    if not problem.gradients or choice.reason == "pinned":
        return choice
    if runs_in_float32(problem) and not are_misses_expected():
        notice_compute_dtype(problem, lambda: gain_of_compute_dtype(problem, device, policy))
    wanted = policy.wanted
    if choice.reason == "miss" and is_strict():
        plan = policy.snapshots and policy.snapshots.of(device.type)
        lookup, origin = (plan.lookup, plan.origin) if plan else (_lookup(), "")
        raise miss_error(problem, Environment.of(device), wanted, lookup, origin)
    if choice.reason == "miss" or choice.lack:
        _, how = unmeasured_graph(problem, wanted)
        notice_unmeasured(problem, wanted, how, choice.lack)
    return choice


def ask(
    lookup: Lookup,
    problem: BaseProblem,
    environment: Environment,
    objective: Objective,
    *,
    strict: bool = False,
) -> tuple[BaseGraph | None, Answer]:
    """The valid graph that the timing cache has for a problem, None on a miss, and the answer.

    Args:
        lookup: of the timing cache.
        problem: of the layer.
        environment: of its device.
        objective: what the graph is chosen for.
        strict: whether only records of this mode and environment may answer.
    """

    def valid(name: str) -> bool:
        return find_graph(name, problem) is not None

    answer = lookup.find(problem, environment, valid, objective, strict=strict)
    return (None if answer.graph is None else find_graph(answer.graph, problem)), answer


def gain_of_compute_dtype(
    problem: BaseProblem, device: torch.device, policy: Policy
) -> float | None:
    """How many times as fast a layer is with its branch in the dtype of its base, if measured."""
    lookup = _lookup() if policy.snapshots is None else policy.snapshots.of(device.type).lookup
    environment = Environment.of(device)
    _, now = ask(lookup, problem, environment, policy.wanted)
    _, then = ask(lookup, in_dtype_of_base(problem), environment, policy.wanted)
    if not (now.nanoseconds and then.nanoseconds and {now.reason, then.reason} <= {*MEASURED}):
        return None
    return now.nanoseconds / then.nanoseconds


def without_graph(reason: str) -> Choice:
    """The choice of a call that has no graphs."""
    return Choice(None, Graph(REFERENCE), "left", reason)


def _choice(
    problem: BaseProblem, graph: BaseGraph, reason: str, *details: str, lack: str = ""
) -> Choice:
    made = None if graph.is_apart or graph.is_reference else executable(graph, problem)
    detail = "; ".join(filter(None, details))
    return Choice(problem, graph, reason, detail, executable=made, lack=lack)


@lru_cache(maxsize=1)
def _lookup() -> Lookup:
    return Lookup()


@lru_cache(maxsize=MOST_SHARED)
def _decide(
    problem: BaseProblem,
    device: torch.device,
    objective: Objective,
    plan: Snapshot | None,
    strict: bool,
) -> Choice:
    lookup, origin = (_lookup(), "") if plan is None else (plan.lookup, plan.origin)
    environment = Environment.of(device)
    graph, answer = ask(lookup, problem, environment, objective, strict=strict)
    if graph is not None:
        logger.debug("%s: %s, %s %s", problem, graph.name, answer.reason, answer.detail)
        lack = not_tuned_for(answer.record, objective) if answer.record is not None else ""
        choice = _choice(problem, graph, answer.reason, answer.detail, origin, lack=lack)
        own = answer.reason in MEASURED
        return replace(choice, saved_ns=answer.saved_ns) if own else choice
    chosen, how = unmeasured_graph(problem, objective)
    return _choice(problem, chosen, "miss", "not tuned", miss_detail(problem, how, strict), origin)
