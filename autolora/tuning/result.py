"""Progress and result of a tuning run, and estimates, for which nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from autolora.cache.records.record import Record
from autolora.cluster.share import Share
from autolora.graphs.kinds import reference_graph, unmeasured_graph
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem
from autolora.timing.conditions import disturbed
from autolora.timing.race import EVEN


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a tuning run.

    Args:
        done: number of problems finished.
        total: number of problems to be measured, as far as known.
        problem: the current one.
        seconds_left: estimate for the rest, None before the first is finished.
        stage: ``"screen"``, ``"race"`` or ``"done"``.
    """

    done: int
    total: int
    problem: BaseProblem
    seconds_left: float | None
    stage: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The unmeasured choice for a problem, compared with the reference graph.

    Args:
        problem: of a layer.
        graph: name of the graph.
        how: description of how it was chosen.
        flops: of forward and backward.
        reference_flops: of the reference graph.
        saved_bytes: for the backward pass.
        reference_saved_bytes: of the reference graph.
    """

    problem: BaseProblem
    graph: str
    how: str
    flops: int
    reference_flops: int
    saved_bytes: int
    reference_saved_bytes: int


def estimate(problem: BaseProblem, objective: Objective = TIME) -> Estimate:
    """The graph that a layer runs for a problem that is not in any cache."""
    graph, how = unmeasured_graph(problem, objective)
    reference = reference_graph(problem)
    return Estimate(
        problem,
        graph.name,
        how,
        graph.flops(problem),
        reference.flops(problem),
        graph.saved_bytes(problem),
        reference.saved_bytes(problem),
    )


@dataclass(slots=True)
class TuneResult:
    """The result of a tuning run.

    Args:
        path: of the cache file written.
        records: measured in this run; with several ranks those of this rank's environment.
        skipped: records that were in the cache.
        unfinished: problems not measured, since the budget was spent or the run was interrupted.
        failed: problems that could not be measured, each with the reason.
        interrupted: by Ctrl-C.
        estimates: graphs that run without measurements, for the effort ``"estimate"``.
        shares: what each rank did, if several shared the problems; only on rank 0, as are the
            records of all ranks.
        parted: whether this rank wrote its records itself because rank 0 was lost.
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
    def known(self) -> list[Record]:
        """All records of the problems: measured in this run, then those that were in the cache."""
        return [*self.records, *self.skipped]

    @property
    def noisy(self) -> list[Record]:
        """New records that are too noisy, so that the next run measures them again."""
        return [record for record in self.records if record.conditions.get("noisy")]

    @property
    def disturbed(self) -> list[Record]:
        """New records that were measured while other processes kept the machine busy."""
        return [r for r in self.records if disturbed(r.conditions, torch.device(r.problem.device))]

    @property
    def undecided(self) -> list[float]:
        """By how much another graph may be faster than an undisturbed winner, if more than 1 %."""
        busy = self.disturbed
        found = [r.conditions.get("within") for r in self.records if r not in busy]
        return [share for share in found if isinstance(share, float) and share > EVEN]
