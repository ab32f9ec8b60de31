"""Sibling layers while torch.compile traces them.

The first layer that is traced computes every Y, and the others take theirs if they are traced with
the same tensor, unchanged. The code below is traced too, see :mod:`autolora.nn.tracing`: what it
keeps between two layers is dropped before the trace ends, so that the compiled code keeps nothing.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.comptime import ComptimeContext, comptime

from autolora.graphs.function import LayerTensors
from autolora.graphs.siblings.function import run_siblings_traced
from autolora.graphs.siblings.source import SiblingExecutable

_numbers = itertools.count(1)  # of traces
_at = (0, 0)  # the trace, and how often its input was changed in place


def taken_traced(family: Any, place: int, x: Tensor) -> Tensor | None:
    """Y of a layer that an earlier one has computed.

    None if the layer has another input, or it was changed; then they run one by one from now on.

    Args:
        family: of the layer.
        place: of the layer in it.
        x: its input.
    """
    comptime(_note_input)
    outputs = family.traced_outputs
    Y = None
    if family.traced_x is x and family.traced_at == _noted():
        Y = outputs[place]
    left = tuple([None if n == place else each for n, each in enumerate(outputs)])
    if Y is None:
        family.traced_apart = True
    if Y is None or all([each is None for each in left]):
        family.traced_x = None
        family.traced_outputs = ()
    else:
        family.traced_outputs = left
    return Y


def computed_traced(
    family: Any,
    place: int,
    x: Tensor,
    executable: SiblingExecutable,
    layers: list[tuple[LayerTensors, float]],
    dtype: torch.dtype,
) -> Tensor:
    """Computes every Y; that of the layer that is traced, the others are kept for theirs."""
    comptime(_note_input)
    given = []
    for (W, b, A, B, c, M), _ in layers:
        given.append((W.to(dtype), None if b is None else b.to(dtype), A, B, c, M))
    scalings = [s for _, s in layers]
    outputs = run_siblings_traced(executable, x.to(dtype), given, scalings)
    family.traced_x = x
    family.traced_at = _noted()
    family.traced_outputs = tuple([None if n == place else each for n, each in enumerate(outputs)])
    return outputs[place]


def tensors_traced(family: Any) -> list[tuple[LayerTensors, float]] | None:
    """The tensors and scaling of every layer, None if one runs by itself."""
    found = []
    for member in family.members:
        module = member.module()
        if module is None or not hasattr(module, "_tensors_now"):
            return None
        now = module._tensors_now()
        if isinstance(now, str) or now[2] > 0:
            return None
        found.append((now[0], now[1]))
    return found


def _note_input(context: ComptimeContext) -> None:
    """Notes the trace, and how often its input was changed in place."""
    global _at
    fake: Any = context.get_local("x").as_fake()
    trace = vars(context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output)
    _at = (trace.setdefault("autolora_number", next(_numbers)), fake._version)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _noted() -> tuple[int, int]:
    return _at
