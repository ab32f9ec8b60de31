"""A record: a problem, an environment, the winning graph, and the evidence for it.

Records check themselves when they are made, so that whatever is a record can be written, and
whatever was read is as good as what was measured. :func:`better` is the order in which they
replace each other; it makes merging a join. Graph names mean nothing in this room.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autolora.cache.records.candidate import Candidate
from autolora.cache.records.checks import dumps, members, real, text, whole
from autolora.cache.records.precedence import EFFORTS, Precedence
from autolora.environment import Environment
from autolora.objective import KINDS
from autolora.problem.base import BaseProblem
from autolora.problem.kinds import problem_from_json

Scalar = str | int | float | bool | None

_MOST_CONDITIONS = 64
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)

_RECORD = (  # the members of a record in a file, in the order in which they are written
    "problem",
    "environment",
    "effort",
    "objectives",
    "winner",
    "reference",
    "flops_choice",
    "floor_ns",
    "measured_at",
    "seconds",
    "conditions",
    "autolora",
    "candidates",
)


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured for one problem in one environment.

    Args:
        problem: what was computed.
        environment: on which machine, with which libraries.
        effort: how hard it was measured, of :data:`EFFORTS`.
        objectives: what its candidates were chosen for, of :data:`~autolora.objective.KINDS`,
            sorted; ``"time"`` is always among them.
        winner: name of the fastest accurate graph.
        reference: name of the graph that PEFT runs.
        flops_choice: name of the graph that FLOPs alone would choose.
        candidates: the graphs that took part, sorted by name; those three are among them, timed.
        floor_ns: time of the same layer without an adapter, None if it was not taken.
        measured_at: UTC, as ``"2026-01-01T00:00:00Z"``.
        seconds: what the measurement cost.
        conditions: the machine's state meanwhile, such as its load and clocks.
        autolora: the version that measured.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    problem: BaseProblem
    environment: Environment
    effort: str
    objectives: tuple[str, ...]
    winner: str
    reference: str
    flops_choice: str
    candidates: tuple[Candidate, ...]
    floor_ns: int | None
    measured_at: str
    seconds: float
    conditions: Mapping[str, Scalar]
    autolora: str

    def __post_init__(self) -> None:
        for name, size in self.problem.sizes.items():
            whole(f"problem.{name}", size, least=1)
        if self.environment.device != self.problem.device:
            raise ValueError("problem.device and environment.device must be the same")
        if self.effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(EFFORTS)}")
        object.__setattr__(self, "objectives", _objectives(self.objectives))
        ordered = tuple(sorted(self.candidates, key=lambda candidate: candidate.graph))
        object.__setattr__(self, "candidates", ordered)
        if len({candidate.graph for candidate in ordered}) < len(ordered):
            raise ValueError("candidates must not name a graph twice")
        for role in ("winner", "reference", "flops_choice"):
            candidate = self.candidate(getattr(self, role))
            if candidate is None or candidate.median_ns is None:
                raise ValueError(f"{role} must be among the candidates, timed")
        rejected = (verdict := self._timed(self.winner).verdict) is not None and not verdict.ok
        if rejected and self.winner != self.reference:  # the reference needs nobody's leave
            raise ValueError("winner must not be a rejected candidate")
        if self.floor_ns is not None:
            whole("floor_ns", self.floor_ns, least=1)
        _moment("measured_at", self.measured_at)
        object.__setattr__(self, "seconds", real("seconds", self.seconds))
        object.__setattr__(self, "conditions", _conditions(self.conditions))
        text("autolora", self.autolora)

    @property
    def rounds(self) -> int:
        """How many times the winner was timed."""
        return self._timed(self.winner).rounds

    @property
    def median_ns(self) -> int:
        """The winner's time."""
        return _median(self._timed(self.winner))

    @property
    def reference_ns(self) -> int:
        """The reference graph's time."""
        return _median(self._timed(self.reference))

    @property
    def speedup(self) -> float:
        """Time of the reference graph over the winner's."""
        return self.reference_ns / self.median_ns

    @property
    def flops_speedup(self) -> float:
        """Time of the graph that FLOPs alone would choose over the winner's."""
        return _median(self._timed(self.flops_choice)) / self.median_ns

    @property
    def overhead_removed(self) -> float | None:
        """Share of the LoRA overhead that the winner saves: 1 is all of it, 0 nothing.

        None where the floor is missing or not below the reference's time.
        """
        reference = self.reference_ns
        if self.floor_ns is None or self.floor_ns >= reference:
            return None
        return (reference - self.median_ns) / (reference - self.floor_ns)

    @property
    def usable(self) -> list[Candidate]:
        """The candidates that were timed and may be used; the reference needs nobody's leave."""
        return [
            candidate
            for candidate in self.candidates
            if candidate.median_ns is not None
            and (
                candidate.graph == self.reference
                or candidate.verdict is None
                or candidate.verdict.ok
            )
        ]

    @property
    def precedence(self) -> Precedence:
        """What decides whether it replaces another record, see :func:`better`."""
        winner = self._timed(self.winner)
        return Precedence(
            EFFORTS.index(self.effort),
            len(self.objectives),
            winner.rounds,
            -(winner.spread_ns or 0) / self.median_ns,
            self.measured_at,
        )

    @property
    def line(self) -> str:
        """The record as one line of a file, without the line's end."""
        return dumps(self.to_json())

    def candidate(self, graph: str) -> Candidate | None:
        """The candidate of that name."""
        return next((c for c in self.candidates if c.graph == graph), None)

    def _timed(self, graph: str) -> Candidate:
        candidate = self.candidate(graph)
        assert candidate is not None  # by __post_init__, for winner, reference and flops_choice
        return candidate

    @classmethod
    def from_json(cls, value: object, environments: Mapping[str, Environment]) -> Record:
        """Reads what :meth:`to_json` wrote.

        Args:
            value: a parsed JSON value, whatever it be.
            environments: those of the file, by id.

        Raises:
            ValueError: it is no record; the message names the field.
        """
        fields = members("record", value, _RECORD)
        problem, environment = fields["problem"], fields["environment"]
        if not isinstance(problem, Mapping):
            raise ValueError("problem must be an object")
        if not isinstance(environment, str) or environment not in environments:
            raise ValueError("environment must be the id of one in the same file")
        if not isinstance(fields["candidates"], list):
            raise ValueError("candidates must be a list")
        made = problem_from_json(problem)
        if made.to_json() != problem:  # "" for a dtype, or gradients in another order
            raise ValueError("problem must be written in full and in order")
        return cls(
            **{
                **fields,
                "problem": made,
                "environment": environments[environment],
                "candidates": tuple(map(Candidate.from_json, fields["candidates"])),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The fields in the order of the file; the environment is its id."""
        return {
            **{name: getattr(self, name) for name in _RECORD},
            "problem": self.problem.to_json(),
            "environment": self.environment.id,
            "objectives": list(self.objectives),
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


def better(a: Record, b: Record) -> Record:
    """Which of two records of one problem and environment replaces the other.

    Higher effort, then more objectives, then more rounds, then smaller relative spread, then newer,
    then the text. A total order, so that merging is commutative, associative and idempotent.
    """
    if a.precedence != b.precedence:
        return max(a, b, key=lambda record: record.precedence)
    return max(a, b, key=lambda record: record.line)


def _median(candidate: Candidate) -> int:
    assert candidate.median_ns is not None  # as in Record._timed
    return candidate.median_ns


def _objectives(value: object) -> tuple[str, ...]:
    given = tuple(value) if isinstance(value, tuple | list) else ()
    if "time" not in given or given != tuple(kind for kind in KINDS if kind in given):
        raise ValueError(f"objectives must be distinct, sorted, of {', '.join(KINDS)}, with time")
    return given


def _moment(name: str, value: object) -> None:
    problem = f"{name} must be a moment in UTC like 2026-01-01T00:00:00Z"
    if not isinstance(value, str) or not _UTC.fullmatch(value):
        raise ValueError(problem)
    try:
        datetime.fromisoformat(value)
    except ValueError:  # the 30th of February
        raise ValueError(problem) from None


def _conditions(value: object) -> dict[str, Scalar]:
    if not isinstance(value, Mapping) or len(value) > _MOST_CONDITIONS:
        raise ValueError(f"conditions must be an object of at most {_MOST_CONDITIONS} members")
    for name, condition in value.items():
        text("a name in conditions", name)
        if isinstance(condition, str):
            text("a text in conditions", condition, least=0)
        elif condition is not None and not isinstance(condition, bool):
            real("a number in conditions", condition, signed=True)
    return {name: value[name] for name in sorted(value)}
