"""Running a layer along the graph of its family.

The first layer that is called begins a call of all (see :mod:`autolora.graphs.siblings.function`);
the others join it if they are called with the same tensor, unchanged, in the same thread. In every
other case a layer runs by itself, as it would without siblings.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.function import LayerTensors
from autolora.graphs.siblings.function import SiblingCall
from autolora.nn.layer_state import LayerState
from autolora.nn.siblings.checkpoints import as_in_forward
from autolora.nn.siblings.family import Group, Marks, Pending
from autolora.nn.statement import layer_facts

_NOT_ALL = "its siblings did not all get its input"


def run_group(
    group: Group, state: LayerState, x: Tensor, tensors: LayerTensors, s: float, dtype: torch.dtype
) -> Tensor | None:
    """Y of a layer along the graph of its family; None if it runs by itself this time.

    Args:
        group: of the layer.
        state: of the layer.
        x: its input.
        tensors: its tensors.
        s: its scaling.
        dtype: of the base product; autocast is off.
    """
    family = group.family
    number = state.place
    found, again = as_in_forward(family, None if family.given_up else group)
    if (pending := family.pending) is not None:
        if pending.x is x and number in pending.missing and found is not None:
            return _joined(pending, found, number, x, tensors, s)
        if pending.thread == threading.get_ident():
            family.miss(_NOT_ALL)
    return None if found is None else _begun(found, number, x, dtype, again=again)


def _begun(
    group: Group, number: int, x: Tensor, dtype: torch.dtype, *, again: bool
) -> Tensor | None:
    """Begins a call with the layer of this number."""
    family = group.family
    now = family.tensors()
    if isinstance(now, str):
        group.alone = now
        return None
    held = [tensors for tensors, _, _ in now]
    if any(p for _, _, p in now) or list(map(layer_facts, held)) != group.facts:
        group.alone = "a sibling has changed"
        return None
    given = [_converted(tensors, dtype) for tensors in held]
    call = SiblingCall(group.executable, x.to(dtype), given, [s for _, s, _ in now])
    version, marks = x._version, list(map(_marks, held))
    Y = call.start(number)
    group.calls[number] += 1
    missing = set(range(len(now))) - {number}
    found = Pending(group, call, x, version, marks, held, threading.get_ident(), missing, again)
    found.output = weakref.ref(Y, _Dropped(weakref.ref(found)))
    family.pending = found
    return Y


def _joined(
    pending: Pending, group: Group, number: int, x: Tensor, tensors: LayerTensors, s: float
) -> Tensor | None:
    """Joins a call, unless anything has changed since it was begun."""
    call, family = pending.call, group.family
    if (
        pending.group is not group
        or pending.version != x._version
        or pending.thread != threading.get_ident()
        or call.scalings[number] != s
        or pending.marks[number] != _marks(tensors)
    ):
        group.alone = "its input or a sibling has changed between their calls"
        return None
    Y = call.join(number)
    group.calls[number] += 1
    pending.missing.discard(number)
    if not pending.missing:
        family.pending, family.misses = None, 0
    return Y


@dataclass(frozen=True, slots=True)
class _Dropped:
    """Ends a call whose first output is gone."""

    pending: weakref.ref[Pending]

    def __call__(self, _: Any) -> None:
        pending = self.pending()
        if pending is not None and pending.group.family.pending is pending:
            pending.group.family.miss(_NOT_ALL)


def _converted(tensors: LayerTensors, dtype: torch.dtype) -> LayerTensors:
    """The tensors of a layer with its frozen ones in the dtype of the base product."""
    W, b, *adapter = tensors
    if not isinstance(W, Tensor) or (W.dtype == dtype and (b is None or b.dtype == dtype)):
        return tensors
    return W.to(dtype), None if b is None else b.to(dtype), *adapter  # type: ignore[return-value]


def _marks(tensors: LayerTensors) -> Marks:
    """Where the tensors of a layer are, and how often each was changed in place."""
    return tuple(
        (each.data_ptr(), each._version) if isinstance(each, Tensor) else (id(each), 0)
        for each in tensors
    )
