"""What is to be measured, in which order, and which of it falls to this process.

Without a cluster everything does. In one each rank goes through the same list and *claims* one
problem after the other: it falls to the first that asks for it. So a fast rank does more than a
slow one, and one that is lost takes along only what it has in hand.
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
    """A problem to be measured, and how: see :func:`~autolora.tuning.tuner.tune_problems`.

    Args:
        step: nanoseconds that a step along the reference graph takes about; 0 where nobody asks.
        weight: how many layers pose the problem.
        seconds: that it may take, with a budget.
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
        """What may be gained by measuring it, see :class:`~autolora.tuning.budget.Budget`."""
        return self.weight * self.step


class Claims:
    """The list of what is to be measured.

    Args:
        budget: seconds for all of it.
        cluster: the ranks that share it.
    """

    def __init__(self, budget: Budget | None, cluster: Cluster | None) -> None:
        self.budget, self.cluster = budget, cluster
        self.late = False  # whether something was left since there was no time for it
        self._jobs: list[Job] = []
        self._gain = 0.0  # of the jobs that are on the list

    def add(self, job: Job) -> None:
        """Puts a job at the end of the list."""
        self._jobs.append(job)

    def sort(self) -> None:
        """With a budget what promises most comes first, else in a cluster what takes longest.

        The longest first, so that no rank begins it when the others have nothing left to do. One
        process keeps the order in which the jobs were added.
        """
        if self.budget is not None:
            self._jobs.sort(key=lambda job: job.gain, reverse=True)
        elif self.cluster is not None:
            self._jobs.sort(key=lambda job: cost(job.problem), reverse=True)
        self._gain = sum(job.gain for job in self._jobs)

    @property
    def place(self) -> torch.device | None:
        """The device of the next job, None where there is none."""
        return self._jobs[0].place if self._jobs else None

    def next(self, place: torch.device) -> Job | None:
        """The next job on a device that falls to this process, and is taken from the list.

        None where there is none, or where another device has its turn first.
        """
        while self._jobs and self._jobs[0].place == place:
            job = self._jobs.pop(0)
            granted = self._granted(job)
            self._gain -= job.gain
            if granted is None:
                self.late = True
            elif self._falls_to_us(job.environment, job.problem):
                return replace(job, effort=granted[0], seconds=granted[1])
        return None

    def family(self, environment: Environment, family: BaseProblem) -> bool:
        """Whether the token counts between those of a family are this process's to add."""
        return self._falls_to_us(environment, family, "family/")

    def learn(self, job: Job, seconds: float) -> None:
        """Notes what a job took."""
        if self.budget is not None:
            self.budget.learn(job.effort, job.step, seconds, job.seconds or 0.0)

    def _granted(self, job: Job) -> tuple[str, float | None] | None:
        """Its effort and its seconds."""
        if self.budget is None:
            return job.effort, None
        devices = 1 if self.cluster is None else self.cluster.device_count
        share = min(1.0, devices * job.gain / self._gain)
        return self.budget.next(share, job.step, job.effort)

    def _falls_to_us(self, environment: Environment, problem: BaseProblem, kind: str = "") -> bool:
        if self.cluster is None:
            return True
        return self.cluster.claim(f"{environment.id}/{kind}{dumps(problem.to_json())}")


def cost(problem: BaseProblem) -> float:
    """Grows with the time that a problem takes to measure."""
    return 1e9 + reference_graph(problem).flops(problem)
