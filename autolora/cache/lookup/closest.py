"""How near another problem or environment is to the one that is asked about."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from autolora.cache.files.store import TimingCache
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.problem.base import BaseProblem

SAME_MINOR = "same device and torch minor"
OTHER_TORCH = "same device, another torch"
# What another environment may be to this one, the better first; any other answers nothing.
SIMILARITIES = (SAME_MINOR, OTHER_TORCH)

_MINOR = re.compile(r"\d+\.\d+", re.ASCII)


def similarity(wanted: Environment, found: Environment) -> str:
    """How similar another environment is, one of :data:`SIMILARITIES`; ``""`` if it is not.

    Another device, in type or in name, is a stranger: which graph wins there says nothing here.
    On the same device a winner mostly stays one. Other threads (``units``), another instruction
    set (``capability``), precision or BLAS change the times of all graphs more than their order,
    so these are graded no lower: among the records of a grade, those that differ in fewer fields
    come first. A minor release of torch may bring other kernels and another BLAS at once.
    """
    if (wanted.device, wanted.device_name) != (found.device, found.device_name):
        return ""
    return SAME_MINOR if _minor(wanted.torch) == _minor(found.torch) else OTHER_TORCH


def apart(tokens: int, wanted: int) -> float:
    """How many times more or fewer tokens."""
    return max(tokens, wanted) / min(tokens, wanted)


def differing(wanted: tuple[Any, ...], found: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the fields in which problems and environments differ, each once."""
    names = (
        name
        for one, other in zip(wanted, found, strict=True)
        for name in dict.fromkeys((*_names(one), *_names(other)))
        if getattr(one, name, None) != getattr(other, name, None)
    )
    return tuple(dict.fromkeys(names))


def closest(
    layers: Iterable[TimingCache], problem: BaseProblem, environment: Environment
) -> tuple[Record, tuple[str, ...]] | None:
    """The record that differs in the fewest fields, and the names of these.

    Of several, the one nearest in the sizes; None if there are no records at all.
    """
    measured = [(layer, *pair) for layer in layers for pair in layer.problems()]
    wanted = (problem, environment)
    measured.sort(key=lambda entry: _distance(wanted, entry[1:]))
    for layer, other, machine in measured:
        if (record := layer.find(other, machine)) is not None:
            return record, differing(wanted, (other, machine))
    return None


def _names(value: Any) -> list[str]:
    kind = ["kind"] if isinstance(value, BaseProblem) else []
    return kind + [field.name for field in fields(value)]


def _minor(version: str) -> str:
    """``"2.13"`` of ``"2.13.0+cpu"``; a version of another form is its own."""
    match = _MINOR.match(version)
    return version if match is None else match[0]


def _distance(
    wanted: tuple[BaseProblem, Environment], found: tuple[BaseProblem, Environment]
) -> tuple[int, float]:
    mine, theirs = wanted[0].sizes, found[0].sizes
    ratios = (apart(theirs[name], mine[name]) for name in mine.keys() & theirs)
    return len(differing(wanted, found)), sum(map(math.log, ratios))
