"""The state of a layer: the graph that it runs for each problem, and the number of calls.

The memory is bounded even if sequences have ever new lengths: the number of choices of a layer is
limited, and layers share equal keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

import torch

from autolora.graphs.base import BaseGraph
from autolora.nn.defaults import default_objective
from autolora.objective import Objective
from autolora.problem import COMPILED, BaseProblem

if TYPE_CHECKING:
    from autolora.nn.freezing.snapshot import Snapshots

Chooser = Callable[[Any], BaseGraph]
Key = tuple[Any, ...]

UNDECIDED = object()  # the group of a choice whose layer has siblings, before its next call
MOST_CHOICES = 2048  # of one layer
MOST_SHARED = 16384  # keys, of all layers together

_PARTS = ("compute_dtype", "objective", "siblings", "chooser", "snapshots")  # of a policy


@dataclass(slots=True)
class Choice:
    """The graph that a layer runs for one problem, and why.

    Args:
        problem: None if no graph applies to the call.
        graph: for the reference graph the layer's own ``forward`` is used.
        reason: a grade of :mod:`autolora.cache.lookup.lookup`, ``"pinned"`` or ``"left"``.
        detail: more about the reason.
        executable: of the graph, as its kind of problem compiles it; None for the reference graph
            and for siblings that run one by one.
        lack: what the graph was not tuned for though the objective needs it, in words.
        saved_ns: by which a call is faster than along the reference graph, by the records of its
            own environment and mode; 0 where they do not say.
        calls: number of calls.
        group: how the layer runs together with its siblings, None if it does not.
        alone: why it does not, though it has siblings.
    """

    problem: BaseProblem | None
    graph: BaseGraph
    reason: str
    detail: str = ""
    executable: Any = None
    lack: str = ""
    saved_ns: float = 0.0
    calls: int = 0
    group: Any = None
    alone: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether it was made while the layer was compiled; then no calls are counted."""
        return self.problem is not None and self.problem.mode == COMPILED


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Policy:
    """How layers choose their graphs; one object for all layers that choose alike.

    Args:
        compute_dtype: of the adapter branch, None for PEFT's.
        objective: None to use the environment variables.
        siblings: whether layers with one input may run together.
        chooser: overrides the timing cache, see :func:`~autolora.nn.choosing.pin`.
        snapshots: the plan that the layers are frozen on, None if they are not frozen.
        key: names the policy in compiled code, which compares it at every call, so that layers with
            a new policy are compiled again.
        traced: the choices made while layers were compiled, by everything that determined them.
    """

    compute_dtype: torch.dtype | None = None
    objective: Objective | None = None
    siblings: bool = True
    chooser: Chooser | None = None
    snapshots: Snapshots | None = None
    key: str = ""
    traced: dict[Key, Choice] = field(default_factory=dict)

    @property
    def wanted(self) -> Objective:
        """The objective in effect: its own, the plan's, or the environment variables'."""
        if self.objective is not None:
            return self.objective
        return default_objective() if self.snapshots is None else self.snapshots.objective

    def traced_for(self, layer: object) -> list[Choice]:
        """The choices made while layers with these facts were compiled, see ``statement``."""
        return [c for (like, *_), c in self.traced.items() if like == layer or layer in like]

    @staticmethod
    def shared(
        compute_dtype: torch.dtype | None = None,
        objective: Objective | None = None,
        siblings: bool = True,
        chooser: Chooser | None = None,
        snapshots: Snapshots | None = None,
    ) -> Policy:
        """The policy of these parts in the current generation."""
        parts = (compute_dtype, objective, siblings, chooser, snapshots)
        key = repr((_generation, compute_dtype, objective, siblings, id(chooser), id(snapshots)))
        with _lock:
            found = _policies.get(key)
            if found is None:
                found = _policies[key] = Policy(*parts, key)
        return found


class LayerState:
    """The state of one layer; copies of a layer are neither pinned nor frozen.

    Args:
        compute_dtype: of the adapter branch, None for PEFT's.
        objective: of the layer, None to use the environment variables.
        siblings: whether the layer may run together with others that have its input.
    """

    __slots__ = ("__weakref__", "choices", "family", "on_drop", "place", "policy")

    def __init__(
        self,
        compute_dtype: torch.dtype | None = None,
        objective: Objective | None = None,
        siblings: bool = True,
    ) -> None:
        self.policy = Policy.shared(compute_dtype, objective, siblings)
        self.choices: dict[Key, Choice] = {}  # by everything that determines a call's problem
        self.family: Any = None  # of siblings, once it is known
        self.place = 0  # in the family
        self.on_drop: Callable[[LayerState], None] | None = None  # before its choices are dropped
        with _lock:
            _all.add(self)

    def chooses(
        self, compute_dtype: torch.dtype | None, objective: Objective | None, siblings: bool
    ) -> bool:
        """Whether the layer chooses in this way, and is neither pinned nor frozen by the user."""
        policy = self.policy
        if policy.snapshots is not None and policy.snapshots.lasting:
            return False
        asked = compute_dtype, objective, siblings, None
        return asked == (policy.compute_dtype, policy.objective, policy.siblings, policy.chooser)

    def remember(self, key: Key, choice: Choice) -> None:
        """Stores a choice; if there are too many, drops the older half."""
        if len(self.choices) >= MOST_CHOICES:
            for old in list(self.choices)[: len(self.choices) // 2]:
                self.choices.pop(old, None)  # another thread may have dropped it
        self.choices[_shared(key)] = choice

    def __reduce__(self) -> tuple[type[LayerState], tuple[Any, ...]]:
        policy = self.policy
        return LayerState, (policy.compute_dtype, policy.objective, policy.siblings)  # no more


_generation = 0
_policies: WeakValueDictionary[str, Policy] = WeakValueDictionary()
_all: WeakSet[LayerState] = WeakSet()
_lock = threading.Lock()  # neither must change during iteration


def layer_states(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, LayerState]]:
    """The layers of a model that have a state, each with it."""
    for module in model.modules():
        state = getattr(module, "_autolora", None)
        if isinstance(state, LayerState):
            yield module, state


def policy_named(key: str) -> Policy:
    """The policy with this key; layers hold it."""
    return _policies[key]


def choose_anew(states: Iterable[LayerState], **changes: Any) -> None:
    """Drops the choices of layers, compiled ones too, and changes parts of their policies."""
    global _generation
    _generation += 1
    states = list(states)
    for state in states:
        if state.on_drop is not None:
            state.on_drop(state)
    for state in states:
        old = state.policy
        parts = {name: getattr(old, name) for name in _PARTS}
        state.policy = Policy.shared(**parts | changes)
        state.choices.clear()
        if state.family is not None:
            state.family.decide_again()


def forget(reasons: Collection[str]) -> None:
    """Drops the choices of all layers that have one of these reasons."""
    with _lock:
        states = list(_all)
    for state in states:
        for key, choice in list(state.choices.items()):
            if choice.reason in reasons:
                state.choices.pop(key, None)
        if state.family is not None:
            state.family.decide_again()
    choose_anew(
        state
        for state in states
        if any(choice.reason in reasons for choice in state.policy.traced.values())
    )


@lru_cache(maxsize=MOST_SHARED)
def _shared(key: Key) -> Key:
    """Returns the same object for equal keys, which take more memory than a choice."""
    return key
