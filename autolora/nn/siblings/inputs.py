"""Which layers got the very same tensor, seen as they are called."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

_CLOSE = 2  # calls from one sibling to the next: at most one of another layer is in between


@dataclass(slots=True)
class _Input(Generic[T]):
    """A tensor and the layers that were called with it, the last time at ``call``."""

    x: weakref.ref[Tensor]
    version: int
    layers: list[T]
    call: int


class SharedInputs(Generic[T]):
    """The last inputs, each with the layers that were called with it, in the order of the calls.

    The very same tensor means: the same object, not changed in place since. Layers far apart, such
    as those of all decoder blocks that read the encoder's output, are not siblings: together they
    would keep the gradients of the last until the first has its own.
    """

    def __init__(self) -> None:
        self._last: deque[_Input[T]] = deque(maxlen=_CLOSE)
        self._calls = 0

    def note(self, x: Tensor, layer: T) -> list[T]:
        """The layers that were called with a tensor just now, to which one is added."""
        self._calls += 1
        for known in self._last:
            if known.x() is x and known.version == x._version:
                if self._calls - known.call > _CLOSE:
                    break
                known.call = self._calls
                known.layers.append(layer)
                return known.layers
        self._last.append(_Input(weakref.ref(x), x._version, [layer], self._calls))
        return self._last[-1].layers
