"""Which graph a layer runs: looked up once per problem, remembered, counted.

Each layer has a :class:`~autolora.nn.layer_state.LayerState`. On its first call with some token
count, dtypes and gradient needs the layer asks the timing cache; from then on the answer is one
dictionary look-up away. Nothing here ever times a graph.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.cache.lookup.choice import lacks
from autolora.cache.lookup.lookup import Answer, Lookup
from autolora.environment import Environment
from autolora.graphs.function import LayerTensors, run
from autolora.graphs.graph import REFERENCE, Graph
from autolora.graphs.source import executable
from autolora.graphs.space import find_graph
from autolora.nn.layer_state import MOST_SHARED, Choice, Chooser, LayerState, layer_states
from autolora.nn.layer_tensors import PLAIN, base_layout
from autolora.nn.strict import is_strict, miss_detail, miss_error
from autolora.nn.unmeasured import notice_lack, notice_miss, untuned_graph
from autolora.objective import Objective
from autolora.problem import DTYPES, Problem

if TYPE_CHECKING:
    from autolora.nn.snapshot import Snapshot

__all__ = [
    "Choice",
    "Chooser",
    "LayerState",
    "ask",
    "decide",
    "layout_of",
    "left",
    "pin",
    "problem_of",
    "refresh",
    "run_layer",
]

logger = logging.getLogger("autolora")

_TORCH_DTYPES = {getattr(torch, name): name for name in DTYPES}


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
    problem: Problem,
    environment: Environment,
    objective: Objective,
    *,
    elsewhere: bool = True,
) -> tuple[Graph | None, Answer]:
    """The valid graph that the timing cache names for a problem, None on a miss, and its answer.

    With ``elsewhere`` records of other environments may answer.
    """

    def valid(name: str) -> bool:
        return find_graph(name, problem) is not None

    answer = lookup.find(problem, environment, valid, objective, elsewhere=elsewhere)
    return (None if answer.graph is None else find_graph(answer.graph, problem)), answer


def problem_of(
    state: LayerState, x: Tensor, tensors: LayerTensors, p: float = 0.0
) -> Problem | str:
    """The problem that a call poses, or why it poses none that the graphs can answer."""
    W, b, A, B, c, M = tensors
    device = x.device.type
    grad = torch.is_grad_enabled()
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    quantised = not isinstance(W, Tensor)
    outer = autocast if autocast is not None and not quantised else x.dtype
    adapter = {t.dtype for t in (A, B, c, M) if t is not None}
    dtypes = {x.dtype, *adapter} | {t.dtype for t in (W, b) if isinstance(t, Tensor)}
    if x.dim() < 2 or x.shape[-1] != A.shape[1] or not x.numel():
        return "no tokens" if x.dim() > 1 else "input of one axis"
    if not {*dtypes, outer} <= _TORCH_DTYPES.keys():
        return f"dtypes {', '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))}"
    if autocast is not None and torch.float64 in dtypes:
        return "float64 under autocast"
    if autocast is None or quantised:
        if not quantised and x.dtype != W.dtype:
            return f"input is {x.dtype}, base weight {W.dtype}"
        if b is not None and x.dtype != b.dtype:
            return f"input is {x.dtype}, base bias {b.dtype}"
    if len(adapter) > 1:
        return f"lora_A is {A.dtype}, lora_B {B.dtype}" + (
            "" if A.dtype != B.dtype else ", its bias or magnitude of another dtype"
        )
    if grad and any(t.requires_grad for t in (W, b) if isinstance(t, Tensor)):
        return "the base layer is trained too"
    leaves = {"X": x, "A": A, "B": B, "c": c, "M": M} if grad else {}
    return Problem(
        in_features=A.shape[1],
        out_features=B.shape[0],
        tokens=x.numel() // x.shape[-1],
        rank=A.shape[0],
        dtype=_TORCH_DTYPES[outer],
        device=device,
        layout=layout_of(W),
        bias=b is not None,
        adapter_dtype=_TORCH_DTYPES[A.dtype],
        compute_dtype=_TORCH_DTYPES[state.compute_dtype or autocast or A.dtype],
        dropout=p > 0,
        adapter_bias=c is not None,
        variant="lora" if M is None else "dora",
        gradients=tuple(
            name for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad
        ),
    )


def layout_of(W: Any) -> str:
    """How a base weight is kept: quantised by its layer, or in the order of its memory."""
    if not isinstance(W, Tensor):
        return base_layout(W)
    return "linear" if W.is_contiguous() else "conv1d"


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


def _made(problem: Problem, graph: Graph, reason: str, *details: str) -> Choice:
    made = None if graph.forward == REFERENCE else executable(graph, problem)
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
    graph, answer = ask(lookup, problem, environment, objective, elsewhere=not strict)
    if graph is not None:
        logger.debug("%s: %s, %s %s", problem, graph.name, answer.reason, answer.detail)
        lack = lacks(answer.record, objective) if answer.record is not None else ""
        if lack and problem.gradients:
            notice_lack(problem, objective, lack)
        return _made(problem, graph, answer.reason, answer.detail, origin)
    graph, how = untuned_graph(problem, objective)
    if problem.gradients and not strict:
        notice_miss(problem, objective)
    return _made(problem, graph, "miss", "not tuned", miss_detail(problem, how, strict), origin)
