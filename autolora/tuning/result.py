"""What a tuning run tells: where it stands, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autolora.cache.records.record import Record
from autolora.cluster.share import Share
from autolora.problem import Problem
from autolora.tuning.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a tuning run stands.

    Args:
        done: problems finished.
        total: problems to be measured, as far as known.
        problem: the one at hand.
        seconds_left: estimate for the rest, None before the first is finished.
        stage: ``"screen"``, ``"race"`` or ``"done"``.
    """

    done: int
    total: int
    problem: Problem
    seconds_left: float | None
    stage: str


@dataclass(slots=True)
class TuneResult:
    """What a tuning run did.

    Args:
        path: the cache file written.
        records: measured now.
        skipped: already in the cache.
        unfinished: not measured, since the budget was spent or the run was interrupted.
        failed: could not be measured, each with the reason.
        interrupted: by Ctrl-C.
        estimates: what would run unmeasured, for the effort ``"estimate"``, which writes nothing.
        shares: what each rank did, where several shared the problems; then the records are those of
            this rank's environment. Rank 0 alone has them, and all records.
        parted: whether this rank had to write its records itself, since rank 0 was lost.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)
    unfinished: list[Problem] = field(default_factory=list)
    failed: list[tuple[Problem, str]] = field(default_factory=list)
    interrupted: bool = False
    estimates: list[Estimate] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    parted: bool = False

    @property
    def noisy(self) -> list[Record]:
        """Those measured now while the machine was too noisy to be sure of the winner."""
        return [record for record in self.records if record.conditions.get("noisy")]
