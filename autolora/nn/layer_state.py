"""The state of a layer: the graph that it runs for each problem, and the number of calls.

The memory is bounded even if sequences have ever new lengths: the number of choices of a layer is
limited, and layers share equal keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from autolora.graphs.base import BaseGraph
from autolora.graphs.source import Executable
from autolora.nn.defaults import default_objective
from autolora.objective import Objective
from autolora.problem import BaseProblem, Problem

if TYPE_CHECKING:
    from autolora.nn.snapshot import Snapshots

Chooser = Callable[[Problem], BaseGraph]
Key = tuple[Any, ...]

MOST_CHOICES = 2048  # of one layer
MOST_SHARED = 16384  # keys, of all layers together


@dataclass(slots=True)
class Choice:
    """The graph that a layer runs for one problem, and why.

    Args:
        problem: None if no graph applies to the call.
        graph: for the reference graph the layer's own ``forward`` is used.
        reason: a grade of :mod:`autolora.cache.lookup.lookup`, ``"pinned"`` or ``"left"``.
        detail: more about the reason.
        executable: of the graph, None for the reference graph.
        calls: number of calls.
    """

    problem: BaseProblem | None
    graph: BaseGraph
    reason: str
    detail: str = ""
    executable: Executable | None = None
    calls: int = 0


@dataclass(slots=True, weakref_slot=True, eq=False)
class LayerState:
    """The state of one layer.

    Args:
        compute_dtype: of the adapter branch, None for PEFT's.
        objective: of the layer, None to use the environment variables.
        chooser: overrides the timing cache, see :func:`~autolora.nn.dispatch.pin`.
        choices: by everything that determines the problem of a call.
        snapshots: the plan that the layer is frozen on, None if it is not frozen. Copies of the
            layer are not frozen.
    """

    compute_dtype: torch.dtype | None = None
    objective: Objective | None = None
    chooser: Chooser | None = None
    choices: dict[Key, Choice] = field(default_factory=dict)
    snapshots: Snapshots | None = None

    def __post_init__(self) -> None:
        with _lock:
            _all.add(self)

    @property
    def wanted(self) -> Objective:
        """The objective in effect: the layer's, the plan's, or the environment variables'."""
        if self.objective is not None:
            return self.objective
        return default_objective() if self.snapshots is None else self.snapshots.objective

    def remember(self, key: Key, choice: Choice) -> None:
        """Stores a choice; if there are too many, drops the older half."""
        if len(self.choices) >= MOST_CHOICES:
            for old in list(self.choices)[: len(self.choices) // 2]:
                self.choices.pop(old, None)  # another thread may have dropped it
        self.choices[_shared(key)] = choice

    def __reduce__(self) -> tuple[type[LayerState], tuple[torch.dtype | None, Objective | None]]:
        return LayerState, (self.compute_dtype, self.objective)  # the rest is not copied


_all: WeakSet[LayerState] = WeakSet()
_lock = threading.Lock()  # a set must not grow during iteration


def layer_states(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, LayerState]]:
    """The layers of a model that have a state, each with it."""
    for module in model.modules():
        state = getattr(module, "_autolora", None)
        if isinstance(state, LayerState):
            yield module, state


def forget(reasons: Collection[str]) -> None:
    """Drops the choices of all layers that have one of these reasons."""
    with _lock:
        states = list(_all)
    for state in states:
        for key, choice in list(state.choices.items()):
            if choice.reason in reasons:
                state.choices.pop(key, None)


@lru_cache(maxsize=MOST_SHARED)
def _shared(key: Key) -> Key:
    """Returns the same object for equal keys, which take more memory than a choice."""
    return key
