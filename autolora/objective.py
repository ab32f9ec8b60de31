"""Objectives: which of several graphs to choose, for speed, accuracy or memory."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autolora.errors import AutoloraError

KINDS = ("accuracy", "memory", "time")

_TOLERANCE = 1.1  # of the least inaccuracy, above the noise between equally accurate graphs
# Figures below these count as equal: float64's rounding, and a thousandth of the adapter's effect.
_LEAST_ERROR = 1e-15
_LEAST_DISTANCE = 1e-3

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

Pair = tuple[float | None, float | None]


class Accuracy(Protocol):
    """The accuracy of a graph at two adapter sizes; None is a figure that is not finite."""

    @property
    def ok(self) -> bool:
        """Whether the graph may be used."""

    @property
    def errors(self) -> Mapping[str, Pair]:
        """Relative error of each output."""

    @property
    def gain(self) -> Pair:
        """The fraction of the adapter's effect in Y."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What the graph of a layer is chosen for.

    Args:
        kind: ``"time"``: the fastest graph; ``"memory"``: the fastest of those that save the fewest
            bytes for the backward pass; ``"accuracy"``: the fastest of the most accurate ones, see
            :func:`most_accurate`.
        max_saved_bytes: limit on the bytes that a graph saves in one call; if all graphs exceed it,
            the one that saves least is chosen. None is no limit.

    Raises:
        AutoloraError: a value that is not allowed.
    """

    kind: str = "time"
    max_saved_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AutoloraError(f"objective must be one of {_ALLOWED}, not {self.kind!r}")
        limit = self.max_saved_bytes
        if limit is not None and (type(limit) is not int or limit < 1):
            raise AutoloraError(
                f"max_saved_bytes must be a whole number of at least 1, or None, not {limit!r}"
            )

    def __str__(self) -> str:
        if self.max_saved_bytes is None:
            return self.kind
        return f"{self.kind} within {self.max_saved_bytes} bytes"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that a record must be tuned for; a limit needs those for memory too."""
        limited = () if self.max_saved_bytes is None else ("memory",)
        return tuple(sorted({"time", self.kind, *limited}))

    @property
    def raced(self) -> bool:
        """Whether the tuner races exactly those graphs of which the fastest is chosen."""
        return self.kind != "time" and self.max_saved_bytes is None

    def admits(self, saved_bytes: int) -> bool:
        """Whether so many bytes are within the limit."""
        return self.max_saved_bytes is None or saved_bytes <= self.max_saved_bytes


_ALLOWED = ", ".join(reversed(KINDS))  # the default first
TIME = Objective()


@dataclass(frozen=True, slots=True)
class Option:
    """A graph to choose from.

    Args:
        name: of the graph.
        time: of forward and backward, in any unit.
        saved_bytes: saved for the backward pass.
        verdict: its accuracy, None if not measured.
        reference: whether it is the reference graph, which is always allowed.
        rounds: how long it stayed in a race for the objective; 0 without a race.
    """

    name: str
    time: float
    saved_bytes: int
    verdict: Accuracy | None = None
    reference: bool = False
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Pick:
    """The chosen option.

    Args:
        name: of the graph.
        detail: for people; ``""`` unless all options exceed the limit.
    """

    name: str
    detail: str = ""


def pick(options: Iterable[Option], objective: Objective, leader: str = "") -> Pick | None:
    """The best option for an objective, None if all are rejected.

    It is the fastest of the options within the limit (or those that save least) that the objective
    allows: all for time, those that save least for memory, the most accurate for accuracy. If these
    raced against each other, those that left the race early are out: their medians are of other
    rounds.

    Args:
        options: to choose from.
        objective: what the graph is chosen for.
        leader: the winner of a race, which counts as faster than all others.
    """
    allowed = [o for o in options if o.reference or o.verdict is None or o.verdict.ok]
    if not allowed:
        return None
    left = [option for option in allowed if objective.admits(option.saved_bytes)]
    detail = ""
    if not left:
        left = _least_saved(allowed)
        detail = over_limit(objective, left[0].saved_bytes)
    if objective.kind == "memory":
        left = _least_saved(left)
    elif objective.kind == "accuracy":
        baseline = next((option.verdict for option in allowed if option.reference), None)
        accurate = most_accurate({option.name: option.verdict for option in left}, baseline)
        left = [option for option in left if option.name in accurate]
    longest = max(option.rounds for option in left) if objective.raced else 0
    left = [option for option in left if option.rounds >= longest or option.name == leader]
    best = min(left, key=lambda option: (option.name != leader, option.time, option.name))
    return Pick(best.name, detail)


def over_limit(objective: Objective, least: int) -> str:
    """Says that all graphs exceed the limit."""
    return f"none keeps at most {objective.max_saved_bytes} bytes; the leanest keeps {least}"


def most_accurate(
    verdicts: Mapping[str, Accuracy | None], reference: Accuracy | None
) -> frozenset[str]:
    """The names whose inaccuracy is within 10 % of the least.

    The inaccuracy of a graph is the mean of ``max(e, 1e-15) / max(e_ref, 1e-15)`` over the relative
    errors e of its outputs and of ``max(d, 1e-3) / max(d_ref, 1e-3)`` over the distances
    ``d = abs(gain − 1)``, at both adapter sizes, where ``e_ref`` and ``d_ref`` are the reference
    graph's. A figure that is not finite counts as infinite. The inaccuracy is 1 if either graph was
    not measured.

    Args:
        verdicts: by name, None if not measured.
        reference: that of the reference graph.
    """
    found = {name: _inaccuracy(verdict, reference) for name, verdict in verdicts.items()}
    least = min(found.values(), default=0.0)
    return frozenset(name for name, figure in found.items() if figure <= _TOLERANCE * least)


def _inaccuracy(verdict: Accuracy | None, reference: Accuracy | None) -> float:
    if verdict is None or reference is None:
        return 1.0
    ratios = [
        _ratio(mine, theirs, _LEAST_ERROR)
        for output in verdict.errors
        if output in reference.errors
        for mine, theirs in zip(verdict.errors[output], reference.errors[output], strict=True)
    ]
    ratios += [
        _ratio(_distance(mine), _distance(theirs), _LEAST_DISTANCE)
        for mine, theirs in zip(verdict.gain, reference.gain, strict=True)
    ]
    return sum(ratios) / len(ratios)


def _ratio(mine: float | None, theirs: float | None, least: float) -> float:
    if mine is None or theirs is None:
        return 1.0 if mine is theirs else math.inf if mine is None else 0.0
    return max(mine, least) / max(theirs, least)


def _distance(gain: float | None) -> float | None:
    return None if gain is None else abs(gain - 1)


def _least_saved(options: Sequence[Option]) -> list[Option]:
    least = min(option.saved_bytes for option in options)
    return [option for option in options if option.saved_bytes == least]


def low_memory_levels(
    saved_bytes: Iterable[int], below: int, limit: int | None = None
) -> list[int]:
    """The numbers of saved bytes whose graphs are worth timing beside the fast ones, ascending.

    These are the three least of those below ``below``, and the two largest within the limit.

    Args:
        saved_bytes: of all graphs.
        below: saved bytes of the graph predicted to be the fastest.
        limit: of an objective.
    """
    lower = sorted({level for level in saved_bytes if level < below})
    within = [level for level in lower if limit is not None and level <= limit]
    return sorted({*lower[:3], *within[-2:]})


def kinds_of(objectives: Iterable[Objective], known: Collection[str] = ()) -> tuple[str, ...]:
    """The kinds that a record must be tuned for to serve all objectives, and ``known``."""
    return tuple(sorted({"time", *known, *(kind for each in objectives for kind in each.kinds)}))


def bytes_from(text: str) -> int:
    """Parses a number of bytes: ``1500000``, ``512K``, ``20M`` or ``1G``, in powers of 1024.

    Raises:
        AutoloraError: it is not one.

    >>> bytes_from("512K")
    524288
    """
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text.strip().upper())
    number = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if not number:
        raise AutoloraError(
            f"must be a whole number of bytes such as 1500000, 512K, 20M or 1G, not {text!r}"
        )
    return number
