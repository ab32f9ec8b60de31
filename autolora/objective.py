"""An objective: what the timings of a cache are used for, and which graph that makes the answer.

Speed, accuracy or memory, with or without a limit on the bytes kept for the backward pass. Pure:
the options are given with their figures, and no graph, record or tensor is known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autolora.errors import AutoloraError

KINDS = ("accuracy", "memory", "time")

ALIKE = 1.1  # of the least inaccuracy; noise between equally accurate graphs is below that
# Where figures are as small as this, they are equal: rounding in float64, which the errors are
# taken against, and a thousandth of the adapter's effect.
_LEAST_ERROR = 1e-15
_LEAST_DISTANCE = 1e-3

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

Pair = tuple[float | None, float | None]


class Judged(Protocol):
    """The figures of a graph's numeric verdict, at two adapter sizes; None is not finite."""

    @property
    def ok(self) -> bool:
        """Whether the graph may be used."""

    @property
    def errors(self) -> Mapping[str, Pair]:
        """Relative error of each output."""

    @property
    def gain(self) -> Pair:
        """How much of the adapter's effect is kept; 1 is all of it."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a layer's graph is chosen for.

    Args:
        kind: ``"time"``: the fastest graph; ``"memory"``: the one that keeps the fewest bytes from
            forward to backward, the fastest of those that keep equally few; ``"accuracy"``: the
            fastest of the most accurate, see :func:`most_accurate`.
        max_saved_bytes: graphs that keep more in one call of a layer are passed over; where all do,
            it is the one that keeps least. None is no limit.

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
        """What candidates must have been chosen for to serve it: a limit needs lean ones too."""
        limited = () if self.max_saved_bytes is None else ("memory",)
        return tuple(sorted({"time", self.kind, *limited}))

    @property
    def raced(self) -> bool:
        """Whether the tuner lets exactly those race that it chooses the fastest of."""
        return self.kind != "time" and self.max_saved_bytes is None

    def admits(self, saved_bytes: int) -> bool:
        """Whether so many bytes are within the limit."""
        return self.max_saved_bytes is None or saved_bytes <= self.max_saved_bytes


_ALLOWED = ", ".join(reversed(KINDS))  # the default first
TIME = Objective()


@dataclass(frozen=True, slots=True)
class Option:
    """A graph to choose.

    Args:
        name: of the graph.
        time: of forward and backward, in any unit.
        saved_bytes: kept from forward to backward.
        verdict: its accuracy, None where it was not measured.
        reference: whether it is the reference graph, which needs nobody's leave.
        rounds: how long it stayed in a race for the objective; 0 where there was none.
    """

    name: str
    time: float
    saved_bytes: int
    verdict: Judged | None = None
    reference: bool = False
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Pick:
    """The option that an objective takes.

    Args:
        name: of the graph.
        detail: for people; ``""`` unless the limit could not be kept.
    """

    name: str
    detail: str = ""


def pick(options: Iterable[Option], objective: Objective, leader: str = "") -> Pick | None:
    """The option that serves an objective best; None where none may be used.

    Rejected options never win. Of those that remain the limit leaves the ones within it, or the
    leanest; of these the objective leaves all (time), the leanest (memory) or the most accurate
    (accuracy); the fastest of these wins. Where these raced against each other, the ones that
    dropped out earlier have lost already: their medians are of other rounds than the last one's.

    Args:
        options: to choose from.
        objective: what for.
        leader: the option that a race found to be the fastest, with care that medians alone do not
            take: it counts as faster than all others.
    """
    allowed = [o for o in options if o.reference or o.verdict is None or o.verdict.ok]
    if not allowed:
        return None
    left = [option for option in allowed if objective.admits(option.saved_bytes)]
    detail = ""
    if not left:
        left = _leanest(allowed)
        detail = beyond(objective, left[0].saved_bytes)
    if objective.kind == "memory":
        left = _leanest(left)
    elif objective.kind == "accuracy":
        baseline = next((option.verdict for option in allowed if option.reference), None)
        accurate = most_accurate({option.name: option.verdict for option in left}, baseline)
        left = [option for option in left if option.name in accurate]
    longest = max(option.rounds for option in left) if objective.raced else 0
    left = [option for option in left if option.rounds >= longest or option.name == leader]
    best = min(left, key=lambda option: (option.name != leader, option.time, option.name))
    return Pick(best.name, detail)


def beyond(objective: Objective, least: int) -> str:
    """That the limit of an objective cannot be kept, in words."""
    return f"none keeps at most {objective.max_saved_bytes} bytes; the leanest keeps {least}"


def most_accurate(
    verdicts: Mapping[str, Judged | None], reference: Judged | None
) -> frozenset[str]:
    """The names whose inaccuracy is within 10 % of the least.

    The inaccuracy of a graph is the mean of ``max(e, 1e-15) / max(e_ref, 1e-15)`` over the relative
    errors e of all its outputs, and of ``max(d, 1e-3) / max(d_ref, 1e-3)`` over the distances
    ``d = abs(gain − 1)`` of its adapter gain, all at both adapter sizes; ``e_ref`` and ``d_ref``
    are the reference graph's, which has 1. A figure that is not finite is infinitely far. Where one
    of the two was not measured, the ratio is 1.

    Args:
        verdicts: of each name, None where its accuracy was not measured.
        reference: the reference graph's.
    """
    found = {name: _inaccuracy(verdict, reference) for name, verdict in verdicts.items()}
    least = min(found.values(), default=0.0)
    return frozenset(name for name, figure in found.items() if figure <= ALIKE * least)


def _inaccuracy(verdict: Judged | None, reference: Judged | None) -> float:
    if verdict is None or reference is None:
        return 1.0
    shared = [output for output in verdict.errors if output in reference.errors]
    ratios = [
        _ratio(mine, theirs, _LEAST_ERROR)
        for output in shared
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


def _leanest(options: Sequence[Option]) -> list[Option]:
    least = min(option.saved_bytes for option in options)
    return [option for option in options if option.saved_bytes == least]


def lean_levels(saved_bytes: Iterable[int], below: int, limit: int | None = None) -> list[int]:
    """The numbers of saved bytes whose graphs are worth timing beside the fast ones, least first.

    They are the three least of those below what the fast ones keep, and with a limit the two
    largest within it.

    Args:
        saved_bytes: of all graphs.
        below: what the one predicted to be the fastest keeps.
        limit: of an objective.
    """
    lower = sorted({level for level in saved_bytes if level < below})
    within = [level for level in lower if limit is not None and level <= limit]
    return sorted({*lower[:3], *within[-2:]})


def kinds_of(objectives: Iterable[Objective], known: Collection[str] = ()) -> tuple[str, ...]:
    """What candidates must be chosen for to serve all of these, and kinds known before."""
    return tuple(sorted({"time", *known, *(kind for each in objectives for kind in each.kinds)}))


def bytes_from(text: str) -> int:
    """A number of bytes as people write it: ``1500000``, ``512K``, ``20M`` or ``1G``.

    K, M and G are 1024, 1024² and 1024³.

    Raises:
        AutoloraError: it is none.

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
