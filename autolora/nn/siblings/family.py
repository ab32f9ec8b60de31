"""Families: layers that got the very same tensor when they first ran, and how they run together."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.graphs.function import LayerTensors
from autolora.graphs.siblings.function import SiblingCall, Token
from autolora.graphs.siblings.source import SiblingExecutable
from autolora.nn.choosing import decide
from autolora.nn.layer_state import UNDECIDED, Choice, LayerState
from autolora.nn.siblings.inputs import SharedInputs
from autolora.nn.statement import Layer, layer_facts, problem_of_call
from autolora.nn.strict import is_strict
from autolora.problem import Problem, Siblings

_MOST_MISSES = 3  # calls in a row that not all joined, after which a family is given up
_MOST_GROUPS = 256  # of one family: ever new token counts pose ever new problems
_FASTER = "faster without its siblings"
_NOT_ALL = "its siblings did not all get its input"

Marks = tuple[tuple[int, int], ...]


class _Inputs(threading.local):
    """The inputs of the layers that ran last in this thread."""

    def __init__(self) -> None:
        self.shared: SharedInputs[Member] = SharedInputs()


_inputs = _Inputs()


@dataclass(slots=True, eq=False, repr=False)
class Member:
    """A layer of a family; the family does not keep it alive."""

    state: weakref.ref[LayerState]
    module: weakref.ref[Any]


@dataclass(slots=True, eq=False, repr=False)
class Family:
    """Layers that got the very same tensor, in the order of their calls.

    Args:
        members: the layers.
        groups: how they run together, by all that decides it; None where they do not.
        pending: the call that some have begun and not all have joined, by thread.
        misses: calls in a row that not all have joined.
        given_up: why they run one by one from now on.
        traced_apart: whether they do so in compiled code.
        traced_x: while torch.compile traces them, the input of those that have run.
        traced_at: of that input, in which trace, and how often it had been changed in place.
        traced_outputs: Y of those that have not.
    """

    members: tuple[Member, ...] = ()
    groups: dict[Any, Group | None] = field(default_factory=dict)
    pending: dict[int, Pending] = field(default_factory=dict)
    misses: int = 0
    given_up: str = ""
    traced_apart: bool = False
    traced_x: Tensor | None = None
    traced_at: tuple[int, int] = (0, 0)
    traced_outputs: tuple[Tensor | None, ...] = ()

    def grow(self, members: Sequence[Member]) -> None:
        """Sets the members; what was decided for fewer is decided again."""
        self.members, self.misses, self.given_up = tuple(members), 0, ""
        for place, member in enumerate(members):
            if (state := member.state()) is not None:
                state.family, state.place = self, place
        self.decide_again()

    def decide_again(self) -> None:
        """Has every layer decide at its next call how it runs."""
        self.groups.clear()
        for member in self.members:
            if (state := member.state()) is not None:
                for choice in state.choices.values():
                    choice.group = UNDECIDED

    def tensors(self) -> list[tuple[LayerTensors, float, float]] | str:
        """The tensors, scaling and dropout of each layer now, or why one has none."""
        found = []
        for member in self.members:
            module, state = member.module(), member.state()
            if state is None or getattr(module, "_autolora", None) is not state or module is None:
                return "a sibling was removed or restored"
            now = module._tensors_now()
            if isinstance(now, str):
                return f"a sibling: {now}"
            if now[0][2].dim() != 2 or now[0][3].dim() != 2:
                return "the weights of a sibling are not there now"
            found.append(now)
        return found

    def miss(self, pending: Pending) -> None:
        """Ends a call that not all have joined."""
        if self.pending.get(pending.thread) is not pending:
            return
        del self.pending[pending.thread]
        if not pending.again:
            pending.group.alone = _NOT_ALL
            self.misses += 1
            self.given_up = _NOT_ALL if self.misses >= _MOST_MISSES else ""


@dataclass(slots=True, eq=False, repr=False)
class Group:
    """How a family runs one problem together.

    Args:
        family: of the layers.
        choice: the graph, and why.
        executable: of the graph.
        facts: of each layer's tensors, which decide its problem.
        calls: of each layer.
        alone: why they ran one by one the last time that they did.
    """

    family: Family
    choice: Choice
    executable: SiblingExecutable
    facts: tuple[Layer, ...]
    calls: list[int]
    alone: str = ""


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Pending:
    """A call of a family that not all have joined.

    Args:
        group: that runs.
        call: what serves all, and the carriers of the gradients of the others.
        x: their input.
        version: of the input.
        marks: by which the tensors of each layer are known again.
        held: these tensors, so that no other tensor gets their memory.
        thread: that began the call.
        stream: that the call was begun on, of a GPU.
        missing: numbers of the layers that have not joined.
        again: whether a checkpointed region runs again, which may end before all have joined.
        token: when it is gone, so is the graph of the first layer, and nobody waits for others.
    """

    group: Group
    call: SiblingCall
    x: Tensor
    version: int
    marks: list[Marks]
    held: list[LayerTensors]
    thread: int
    stream: object
    missing: set[int]
    again: bool
    token: weakref.ref[Token] | None = None


def note_input(state: LayerState, module: Any, x: Tensor) -> None:
    """Notes what a layer that has no siblings yet was called with in training."""
    if not (state.policy.siblings and torch.is_grad_enabled()):
        return
    members = _inputs.shared.note(x, Member(weakref.ref(state), weakref.ref(module)))
    if len(members) == 1:
        return
    first = members[0].state()
    family = None if first is None else first.family
    known = () if family is None else family.members
    before = tuple(members[:-1])
    if any(each.state() is state for each in before) or (known and known != before):
        members.pop()  # called twice, or with other siblings
        return
    (family or Family()).grow(members)


def families(model: nn.Module) -> list[tuple[str, ...]]:
    """The paths of the layers of each family that was seen in a model's own calls."""
    states = {
        id(state): (name, state)
        for name, module in model.named_modules()
        if isinstance(state := getattr(module, "_autolora", None), LayerState)
    }
    found: dict[int, tuple[str, ...]] = {}
    for _, state in states.values():
        if (family := state.family) is not None and id(family) not in found:
            members = (states.get(id(member.state())) for member in family.members)
            found[id(family)] = tuple(each[0] for each in members if each is not None)
    return list(found.values())


def make_families(model: nn.Module, siblings: Iterable[Sequence[str]]) -> None:
    """Makes families of layers that are in none, from their paths in the order of their calls."""
    for names in siblings:
        members = []
        for name in names:
            module = model.get_submodule(name)
            state = getattr(module, "_autolora", None)
            if isinstance(state, LayerState) and state.family is None and state.policy.siblings:
                members.append(Member(weakref.ref(state), weakref.ref(module)))
        if len(members) == len(names) > 1:
            Family().grow(members)


def decide_group(state: LayerState, choice: Choice, x: Tensor) -> Group | None:
    """How the siblings of a layer run together; None where they run one by one."""
    family: Family = state.family
    if state.policy.chooser is not None:
        return None
    posed = _posed(family, state, x)
    if isinstance(posed, str):
        choice.alone = posed
        return None
    problem, facts = posed
    key = (state.policy.key, is_strict(), problem, facts)
    if key not in family.groups:
        if len(family.groups) >= _MOST_GROUPS:
            family.groups.clear()
        made = decide(problem, x.device, state.policy)
        group = None
        if made.executable is not None:
            group = Group(family, made, made.executable, facts, [0] * len(facts))
            family.misses, family.given_up = 0, ""
        choice.alone = "" if group is not None or made.reason == "miss" else _FASTER
        return family.groups.setdefault(key, group)  # another thread may have been first
    return family.groups.get(key)


def _posed(
    family: Family, state: LayerState, x: Tensor
) -> tuple[Siblings, tuple[Layer, ...]] | str:
    """The problem of a family's layers and the facts that it follows from, or why there is none."""
    now = family.tensors()
    if isinstance(now, str):
        return now
    problems: list[Problem] = []
    for member, (tensors, _, p) in zip(family.members, now, strict=True):
        own = member.state()
        if own is None or own.policy is not state.policy:
            return "a sibling chooses its graphs in another way"
        problem = problem_of_call(x, tensors, p, state.policy.compute_dtype)
        if isinstance(problem, str):
            return f"a sibling: {problem}"
        problems.append(problem)
    if len({getattr(tensors[0], "compute_dtype", None) for tensors, *_ in now}) > 1:
        return "siblings: quantised layers that compute in other dtypes"
    found = Siblings.of(problems)
    facts = tuple(layer_facts(tensors) for tensors, _, _ in now)
    return f"siblings: {found}" if isinstance(found, str) else (found, facts)


def together_of(choice: Choice, state: LayerState) -> Choice | None:
    """The choice that a layer has run together with its siblings, with its own number of calls."""
    group = choice.group
    if not isinstance(group, Group):
        return None
    choice.alone = group.alone
    calls = group.calls[state.place]
    return replace(group.choice, calls=calls) if calls else None
