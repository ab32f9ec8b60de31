"""The memory of a layer: what it runs for each problem that it was called with, and how often.

Sequences of endless lengths must not fill the memory of a training, be it of hundreds of layers: a
layer keeps only so many choices, and layers that are called alike share what is equal in theirs.
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

MOST_CHOICES = 2048  # that one layer remembers
MOST_SHARED = 16384  # that all layers together have in common


@dataclass(slots=True)
class Choice:
    """What a layer runs for one problem, and why.

    Args:
        problem: the problem, None where the layer's call cannot be stated as one.
        graph: the graph; the reference graph is the layer's own plain path.
        reason: how it was chosen: a grade of :mod:`autolora.cache.lookup.lookup`, ``"pinned"`` or
            ``"left"``.
        detail: the same in words.
        executable: the graph made to run, None for the reference graph.
        calls: how often it was used.
    """

    problem: BaseProblem | None
    graph: BaseGraph
    reason: str
    detail: str = ""
    executable: Executable | None = None
    calls: int = 0


@dataclass(slots=True, weakref_slot=True, eq=False)
class LayerState:
    """The memory of one layer.

    Args:
        compute_dtype: in which the adapter branch runs, None for what PEFT would do.
        objective: what its graphs are chosen for, None for what the environment variables say.
        chooser: overrides the timing cache, see :func:`~autolora.nn.dispatch.pin`.
        choices: what it runs, by all that decides which problem a call poses.
        snapshots: the records that it was frozen on, None for the files of the search path. A
            copy of the layer is not frozen.
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
        """The objective that holds now."""
        if self.objective is not None:
            return self.objective
        return default_objective() if self.snapshots is None else self.snapshots.objective

    def remember(self, key: Key, choice: Choice) -> None:
        """Keeps a choice; where there are too many, the half that was made first goes."""
        if len(self.choices) >= MOST_CHOICES:
            for old in list(self.choices)[: len(self.choices) // 2]:
                self.choices.pop(old, None)  # another thread may have been faster
        self.choices[_shared(key)] = choice

    def __reduce__(self) -> tuple[type[LayerState], tuple[torch.dtype | None, Objective | None]]:
        return LayerState, (self.compute_dtype, self.objective)  # the rest belongs to this process


_all: WeakSet[LayerState] = WeakSet()
_lock = threading.Lock()  # a set that grows while it is read fails


def layer_states(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, LayerState]]:
    """The layers of a model that have a memory, with that."""
    for module in model.modules():
        state = getattr(module, "_autolora", None)
        if isinstance(state, LayerState):
            yield module, state


def forget(reasons: Collection[str]) -> None:
    """Makes every layer choose anew what it chose for one of these reasons."""
    with _lock:
        states = list(_all)
    for state in states:
        for key, choice in list(state.choices.items()):
            if choice.reason in reasons:
                state.choices.pop(key, None)


@lru_cache(maxsize=MOST_SHARED)
def _shared(key: Key) -> Key:
    """The key itself, the same object for all that are equal: a key is larger than a choice."""
    return key
