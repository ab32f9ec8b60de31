"""What a tuning run tells: where it stands, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from autolora.cache.records.record import Record
from autolora.cluster.share import Share
from autolora.problem import BaseProblem
from autolora.timing.conditions import disturbed
from autolora.timing.race import EVEN
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
    problem: BaseProblem
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
    unfinished: list[BaseProblem] = field(default_factory=list)
    failed: list[tuple[BaseProblem, str]] = field(default_factory=list)
    interrupted: bool = False
    estimates: list[Estimate] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    parted: bool = False

    @property
    def noisy(self) -> list[Record]:
        """Those measured now that the next run measures again."""
        return [record for record in self.records if record.conditions.get("noisy")]

    @property
    def disturbed(self) -> list[Record]:
        """Those measured now while other processes kept the machine busy."""
        return [r for r in self.records if disturbed(r.conditions, torch.device(r.problem.device))]

    @property
    def undecided(self) -> list[float]:
        """By which share another graph may be faster than a winner, each above 1 %, undisturbed."""
        busy = self.disturbed
        found = [r.conditions.get("within") for r in self.records if r not in busy]
        return [share for share in found if isinstance(share, float) and share > EVEN]
