"""Running a layer along the graph of its family.

The first layer that is called begins a call of all (see :mod:`autolora.graphs.siblings.function`);
the others join it if they are called with the same tensor, unchanged, in the same thread and on the
same CUDA stream. In every other case a layer runs by itself, as it would without siblings.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.function import LayerTensors
from autolora.graphs.siblings.function import SiblingCall, Token
from autolora.nn.layer_state import LayerState
from autolora.nn.siblings.checkpoints import as_in_forward
from autolora.nn.siblings.family import Group, Marks, Pending
from autolora.nn.statement import layer_facts


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
    family, number = group.family, state.place
    family.traced_x, family.traced_outputs = None, ()  # of a trace that not all were in
    if family.members[number].state() is not state:  # of a copy that shares the state
        return None
    together, again = as_in_forward(group, not family.given_up)
    if not together:
        return None
    if (pending := family.pending.get(threading.get_ident())) is not None:
        if pending.x is x and number in pending.missing:
            return _joined(pending, group, number, x, tensors, s)
        family.miss(pending)
    return _begun(group, number, x, tensors, dtype, again=again)


def _begun(
    group: Group, number: int, x: Tensor, tensors: LayerTensors, dtype: torch.dtype, *, again: bool
) -> Tensor | None:
    """Begins a call with the layer of this number."""
    family = group.family
    now = family.tensors()
    if isinstance(now, str):
        group.alone = now
        return None
    held = [found for found, _, _ in now]
    marks = list(map(_marks, held))
    if (
        any(p for _, _, p in now)
        or tuple(map(layer_facts, held)) != group.facts
        or marks[number] != _marks(tensors)
        or any(found[2].device != x.device for found in held)
    ):
        group.alone = "a sibling has changed"
        return None
    given = [_converted(found, dtype) for found in held]
    call = SiblingCall(group.executable, x.to(dtype), given, [s for _, s, _ in now])
    thread, token = threading.get_ident(), Token()
    missing = set(range(len(now))) - {number}
    found = Pending(group, call, x, x._version, marks, held, thread, _stream(x), missing, again)
    call.start(token)
    Y = call.join(number, token)
    group.calls[number] += 1
    found.token = weakref.ref(token, _Dropped(weakref.ref(found)))
    family.pending[thread] = found
    return Y


def _joined(
    pending: Pending, group: Group, number: int, x: Tensor, tensors: LayerTensors, s: float
) -> Tensor | None:
    """Joins a call, unless anything has changed since it was begun."""
    call, family = pending.call, group.family
    token = None if pending.token is None else pending.token()
    if (
        pending.group is not group
        or token is None
        or token.spent
        or pending.version != x._version
        or pending.stream != _stream(x)  # which does not wait for what serves all
        or call.scalings[number] != s
        or pending.marks[number] != _marks(tensors)
    ):
        group.alone = "its input or a sibling has changed between their calls"
        return None
    Y = call.join(number)
    group.calls[number] += 1
    pending.missing.discard(number)
    if not pending.missing:
        del family.pending[pending.thread]
        family.misses = 0
    return Y


@dataclass(frozen=True, slots=True)
class _Dropped:
    """Ends a call whose first layer has no graph any more."""

    pending: weakref.ref[Pending]

    def __call__(self, _: Any) -> None:
        if (pending := self.pending()) is not None:
            pending.group.family.miss(pending)


def _stream(x: Tensor) -> object:
    """The CUDA stream that a layer runs on; None on the CPU."""
    return torch.cuda.current_stream(x.device) if x.is_cuda else None


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
