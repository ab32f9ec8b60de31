"""Choosing the graph of a layer while torch.compile traces it.

The code below runs once, when a layer is compiled, under Dynamo: it must consist of what Dynamo can
trace. What it cannot, reading the timing cache above all, stands in functions whose results are
constants of the compiled code. Each is named by text or a number, since Dynamo compares those by
value: so layers that are alike share their compiled code. A layer is compiled again when its
policy changes, as it does when new timings are read.

Imported when a layer is traced, since it imports torch._dynamo.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.comptime import ComptimeContext, comptime

from autolora.cache.lookup.crossovers import change_points
from autolora.graphs.function import LayerTensors, run_traced
from autolora.graphs.operators import UNTRACEABLE
from autolora.nn.choosing import decide, decide_and_report, without_graph
from autolora.nn.layer_state import LayerState, Policy, policy_named
from autolora.nn.statement import (
    Call,
    Layer,
    call_facts,
    layer_facts,
    problem_of,
    problem_of_siblings,
)
from autolora.problem import COMPILED, DEVICES, Problem, Siblings

Layers = tuple[Layer, ...]  # with one X

_MOST_TOKENS = 1 << 24  # beyond which the graph is that of so many

# The executables of compiled code are attributes, by name: Dynamo copies a dictionary when it first
# sees it, and would miss those that are added during the same trace.
_executables = SimpleNamespace()
_tokens: int | None = None  # of the call that is traced, None if their number is dynamic
_state: LayerState | None = None  # of the layer that is traced, None if Dynamo does not tell it


def run_layer_traced(
    state: LayerState, x: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor | None:
    """As :func:`~autolora.nn.dispatch.run_layer`, in code that is being compiled."""
    if x.device.type not in DEVICES or (p and not x.is_contiguous()):
        return None
    if torch.compiler.is_exporting():  # what is exported runs where autolora is not
        return None
    given = x.dtype
    W, b, A, B, c, M = tensors
    quantised = not isinstance(W, Tensor)
    own = getattr(W, "compute_dtype", None) if quantised else None
    x = x if own is None else x.to(own)
    call = call_facts(x, tensors, p)
    if state.family is not None and not quantised and call[7] and p == 0:
        Y = _run_together(state, x, call)
        if Y is not None:
            return Y
    made = _executable(state, x, layer_facts(tensors), call)
    if made is None:
        return None
    autocast = call[6]
    if autocast is not None and not quantised:
        given = autocast
        x, W, b = x.to(given), W.to(given), None if b is None else b.to(given)
    return run_traced(made, x, (W, b, A, B, c, M), s, p).to(given)


def _run_together(state: LayerState, x: Tensor, call: Call) -> Tensor | None:
    """Y of a layer along the graph of its siblings, None if it runs by itself."""
    from autolora.nn.siblings.traced import computed_traced, taken_traced, tensors_traced

    family, place = state.family, state.place
    if family.traced_apart or not state.policy.siblings:
        return None
    if family.traced_x is not None:
        return taken_traced(family, place, x)
    layers = tensors_traced(family)
    if layers is None:
        return None
    facts = tuple([layer_facts(tensors) for tensors, _ in layers])
    made = _executable(state, x, facts, call)
    if made is None:
        return None
    dtype = x.dtype if call[6] is None else call[6]
    return computed_traced(family, place, x, made, layers, dtype)


def _executable(state: LayerState, x: Tensor, layer: Layer | Layers, call: Call) -> Any:
    """What a layer, or all of several siblings, run; None if they run PEFT's way or by itself."""
    key = state.policy.key
    tokens = x.numel() // x.shape[-1]
    comptime(_note_call)
    piece = 0
    for last in _last_tokens(key, layer, call, x.device):
        if tokens <= last:  # of a dynamic count a guard
            break
        piece += 1
    name = _chosen(key, layer, call, x.device, piece)
    return getattr(_executables, name) if name else None


def leave_traced(state: LayerState, tensors: LayerTensors, reason: str = UNTRACEABLE) -> None:
    """Notes for :func:`~autolora.explain` why the layer's own ``forward`` is compiled."""
    _leave(state.policy.key, layer_facts(tensors), reason)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _leave(key: str, layer: Layer, reason: str) -> bool:
    policy_named(key).traced[layer, "untraceable"] = without_graph(reason)
    return True


def _note_call(context: ComptimeContext) -> None:
    """Notes for the functions below what of the call that is traced must not be compared later."""
    global _state, _tokens
    tokens, state = context.get_local("tokens"), context.get_local("state")
    _tokens = tokens.as_python_constant() if tokens.is_python_constant() else None
    tracker = getattr(state, "_i_will_not_complain_if_bc_breaks_VariableTracker", lambda: None)
    value = getattr(tracker(), "value", None)
    _state = value if isinstance(value, LayerState) else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _last_tokens(
    key: str, layer: Layer | Layers, call: Call, device: torch.device
) -> tuple[int, ...]:
    """The last counts of the pieces between which the graph changes; none if it is static."""
    return () if _tokens is not None else _pieces(policy_named(key), layer, call, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(key: str, layer: Layer | Layers, call: Call, device: torch.device, piece: int) -> str:
    """The name of the executable that a layer runs, ``""`` if its own ``forward`` is used.

    Of siblings that of all together, ``""`` if they run one by one.

    Raises:
        MissError: in strict mode, if there are no timings and gradients are needed.
    """
    global _state, _tokens
    policy, tokens, state, where = policy_named(key), _tokens, _state, ""
    _state = _tokens = None  # other ways of tracing than Dynamo's note nothing
    if tokens is None:
        last = _pieces(policy, layer, call, device)
        tokens = last[piece - 1] + 1 if piece else 1
        where = f"to {last[piece]} tokens" if piece < len(last) else "and more tokens"
    problem = _problem(policy, layer, call, tokens)
    if isinstance(problem, str):
        choice = without_graph(problem)
    else:
        if isinstance(problem, Problem):
            choice = decide_and_report(problem, device, policy)
        elif (choice := decide(problem, device, policy)).executable is None:
            return ""  # one by one
        choice.detail = "; ".join(filter(None, (where, choice.detail)))
    policy.traced[layer, call, tokens] = choice
    if state is not None:
        state.remember(("traced", layer, call, tokens), choice)
    made = choice.executable
    if made is None:
        return ""
    name = f"{made.graph.name} {made.problem!r}"
    setattr(_executables, name, made)
    return name


def _problem(
    policy: Policy, layer: Layer | Layers, call: Call, tokens: int
) -> Problem | Siblings | str:
    if isinstance(layer[0], tuple):
        return problem_of_siblings(layer, call, tokens, policy.compute_dtype, COMPILED)
    return problem_of(layer, call, tokens, policy.compute_dtype, COMPILED)


@lru_cache(maxsize=128)
def _pieces(
    policy: Policy, layer: Layer | Layers, call: Call, device: torch.device
) -> tuple[int, ...]:
    """The last token count of each range with one graph but the last, ascending."""
    if isinstance(_problem(policy, layer, call, 1), str):
        return ()

    def graph(tokens: int) -> str:
        problem = _problem(policy, layer, call, tokens)
        assert not isinstance(problem, str)
        return decide(problem, device, policy).graph.name

    counts = [1 << power for power in range(_MOST_TOKENS.bit_length())]
    return tuple(
        first - 1 for low, high in pairwise(counts) for first in change_points(low, high, graph)
    )
