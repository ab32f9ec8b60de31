"""The list of problems to be measured, and the claims of the ranks on them.

Without a cluster one process measures all of them. In a cluster each rank goes through the same
list and *claims* one problem after the other; the first rank to claim a problem measures it. A fast
rank thus measures more problems, and a rank that dies loses only the problem that it is measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autolora.cache.records.checks import dumps
from autolora.cache.records.record import Record
from autolora.cluster.ranks import Cluster
from autolora.environment import Environment
from autolora.graphs.kinds import reference_graph
from autolora.objective import Objective
from autolora.problem import BaseProblem
from autolora.tuning.budget import Budget


@dataclass(frozen=True, slots=True)
class Job:
    """A problem to be measured, and how; see :func:`~autolora.timing.measurement.measure_problem`.

    Args:
        step: estimated nanoseconds of a step along the reference graph; 0 if not needed.
        weight: number of layers that pose the problem.
        seconds: limit given by a budget.
    """

    problem: BaseProblem
    place: torch.device
    environment: Environment
    effort: str
    objectives: tuple[Objective, ...]
    known: Record | None
    also: frozenset[str]
    step: float
    weight: int
    seconds: float | None = None

    @property
    def gain(self) -> float:
        """What measuring it may gain, see :class:`~autolora.tuning.budget.Budget`."""
        return self.weight * self.step


class Claims:
    """The list of problems to be measured.

    Args:
        budget: for all of them.
        cluster: the ranks that share them.
    """

    def __init__(self, budget: Budget | None, cluster: Cluster | None) -> None:
        self.budget, self.cluster = budget, cluster
        self.late = False  # whether a job was skipped for lack of time
        self._jobs: list[Job] = []
        self._gain = 0.0  # of the jobs on the list

    def add(self, job: Job) -> None:
        """Puts a job at the end of the list."""
        self._jobs.append(job)

    def sort(self) -> None:
        """Sorts by gain if there is a budget, else by cost if there is a cluster.

        The most expensive job comes first, so that no rank begins it last while the others wait.
        Problems that consist of others come last, since they build on the records of those.
        """
        if self.budget is not None:
            self._jobs.sort(key=lambda job: job.gain, reverse=True)
        elif self.cluster is not None:
            self._jobs.sort(key=lambda job: cost(job.problem), reverse=True)
        self._jobs.sort(key=lambda job: bool(job.problem.parts))
        self._gain = sum(job.gain for job in self._jobs)

    @property
    def place(self) -> torch.device | None:
        """The device of the next job, None if the list is empty."""
        return self._jobs[0].place if self._jobs else None

    def next(self, place: torch.device) -> Job | None:
        """Removes and returns the next job that this process claims.

        None if there is none, or if a job on another device comes first.
        """
        while self._jobs and self._jobs[0].place == place:
            job = self._jobs.pop(0)
            granted = self._granted(job)
            self._gain -= job.gain
            if granted is None:
                self.late = True
            elif self._claim(job.environment, job.problem):
                return replace(job, effort=granted[0], seconds=granted[1])
        return None

    def family(self, environment: Environment, family: BaseProblem) -> bool:
        """Claims a family of problems, whose token counts this process then adds."""
        return self._claim(environment, family, "family/")

    def learn(self, job: Job, seconds: float) -> None:
        """Updates the budget with the time that a job took."""
        if self.budget is not None:
            given, mode = job.seconds or 0.0, job.problem.mode
            self.budget.learn(job.effort, job.step, seconds, given, mode)

    def _granted(self, job: Job) -> tuple[str, float | None] | None:
        """Effort and seconds that the budget allows, None if no time is left."""
        if self.budget is None:
            return job.effort, None
        devices = 1 if self.cluster is None else self.cluster.device_count
        share = min(1.0, devices * job.gain / self._gain)
        return self.budget.next(share, job.step, job.effort, job.problem.mode)

    def _claim(self, environment: Environment, problem: BaseProblem, kind: str = "") -> bool:
        key = f"{environment.id}/{kind}{dumps(problem.to_json())}"
        return self.cluster is None or self.cluster.claim(key)


def cost(problem: BaseProblem) -> float:
    """A measure of the time that it takes to measure a problem."""
    return 1e9 + reference_graph(problem).flops(problem)
