"""Tuning: which problems are to be measured, in which order and how hard; each is published."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autolora.cache.choice import lacks
from autolora.cache.record import EFFORTS as RANKS
from autolora.cache.record import Record
from autolora.cache.store import TimingCache, search_path
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.space import find_graph, reference_graph
from autolora.objective import TIME, Objective
from autolora.problem import Problem
from autolora.tuning.budget import Budget
from autolora.tuning.clock import is_out_of_memory, released
from autolora.tuning.device import device_for, flops_per_ns
from autolora.tuning.effort import ESTIMATE
from autolora.tuning.estimate import estimate
from autolora.tuning.ladder import Ladder
from autolora.tuning.measurement import measure_problem
from autolora.tuning.result import Progress, TuneResult

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class _Job:
    """A problem to be measured, and how: see :func:`tune_problems`."""

    problem: Problem
    place: torch.device
    environment: Environment
    effort: str
    objectives: tuple[Objective, ...]
    known: Record | None
    also: frozenset[str]
    gain: float  # without a budget 0


def tune_problems(
    problems: Sequence[Problem],
    *,
    effort: str = "normal",
    budget: float | None = None,
    cache: Path | str | None = None,
    force: bool = False,
    device: torch.device | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    objective: Objective | Sequence[Objective] = TIME,
    weights: Mapping[Problem, int] | None = None,
    between: bool = False,
) -> TuneResult:
    """Measures problems and publishes each record as soon as it is there.

    Args:
        problems: to be measured; those that the cache file holds already are skipped. One that it
            holds of lower effort, or not for these objectives, is measured again, but for those of
            its graphs that were clearly beaten.
        effort: key of :data:`~autolora.tuning.effort.EFFORTS`, or ``"estimate"``: nothing is timed
            and nothing written.
        budget: seconds for the whole run, shared by what may be gained, see
            :class:`~autolora.tuning.budget.Budget`; problems not begun by then are left unfinished.
        cache: the file to write, the first of the search path unless given.
        force: measure also what the file holds, and all of it.
        device: on which; that of each problem's type unless given.
        on_progress: told whenever a problem enters a stage.
        seed: of the data and of the order of the race.
        objective: what the graphs are chosen for, one or several. A problem that is in the cache
            file, but not for these, is measured for those of the known record too and with its
            effort if that is higher, so that the new record serves whatever the old one did.
        weights: how many layers pose each problem, for sharing the budget; one unless given.
        between: measure also between two token counts of a problem where the winner changes.

    Raises:
        AutoloraError: unknown effort, a budget that is none, no such device, unwritable cache.
    """
    if effort not in RANKS:
        raise AutoloraError(f"effort must be one of {', '.join(RANKS)}, not {effort!r}")
    if budget is not None and not 0 < budget < float("inf"):
        raise AutoloraError(f"budget must be a positive number of seconds, not {budget!r}")
    path = Path(cache) if cache is not None else search_path()[0]
    asked = (objective,) if isinstance(objective, Objective) else tuple(objective)
    distinct = list(dict.fromkeys(problems))
    if effort == ESTIMATE:
        return TuneResult(path, estimates=[estimate(p, asked[0]) for p in distinct])
    places = {problem: device_for(problem, device) for problem in distinct}
    store = TimingCache.load(path)
    store.save()  # an unwritable file is found out before anything is measured, not after
    run = _Run(store, effort, asked, force, seed, weights or {}, budget, on_progress)
    for problem in distinct:
        run.add(problem, places[problem])
    run.go()
    if between:
        run.refine(places)
    return run.result


class _Run:
    """A tuning run: what is to be done, and what was."""

    def __init__(
        self,
        store: TimingCache,
        effort: str,
        asked: tuple[Objective, ...],
        force: bool,
        seed: int,
        weights: Mapping[Problem, int],
        budget: float | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.store, self.effort, self.asked = store, effort, asked
        self.force, self.seed, self.weights = force, seed, weights
        self.budget = None if budget is None else Budget(budget)
        self.on_progress = on_progress
        assert store.path is not None
        self.result = TuneResult(store.path)
        self.jobs: list[_Job] = []
        self.start = time.monotonic()
        self.spent = 0.0  # of the costs of what is done

    def add(
        self, problem: Problem, place: torch.device, also: frozenset[str] = frozenset()
    ) -> None:
        """Puts a problem on the list, unless the cache holds it already."""
        environment = Environment.of(place)
        old = self.store.find(problem, environment)
        hard, wanted = self.effort, self.asked
        if old is not None:
            lacking = any(lacks(old, each) for each in self.asked)
            enough = RANKS.index(old.effort) >= RANKS.index(self.effort)
            if enough and not lacking and not self.force:
                self.result.skipped.append(old)
                return
            hard = old.effort if enough and lacking else self.effort
            wanted += tuple(map(Objective, old.objectives))
        known = None if self.force else old
        gain = 0.0
        if self.budget is not None:
            gain = self.weights.get(problem, 1) * _step_ns(problem, place)
        self.jobs.append(_Job(problem, place, environment, hard, wanted, known, also, gain))

    def go(self) -> None:
        """Measures what is on the list, with a budget what promises most first."""
        self.jobs.sort(key=lambda job: job.gain, reverse=True)  # stays as it is without a budget
        left = sum(job.gain for job in self.jobs)
        while self.jobs and not self.result.interrupted:
            job = self.jobs[0]
            if self.budget is not None:
                step = _step_ns(job.problem, job.place)
                effort = self.budget.effort(job.gain / left, step, job.effort)
                left -= job.gain
                if effort is None:
                    self.result.unfinished.append(self.jobs.pop(0).problem)
                    continue
                job = replace(job, effort=effort)
            self._measure(job)
        self.result.unfinished += [job.problem for job in self.jobs]
        self.jobs.clear()

    def refine(self, places: Mapping[Problem, torch.device]) -> None:
        """Adds token counts where the winner changes, until little can be lost between them."""
        families: dict[Problem, tuple[list[int], torch.device]] = {}
        for problem, place in places.items():
            families.setdefault(problem.at(1), ([], place))[0].append(problem.tokens)
        ladders = {family: Ladder(_is_valid) for family in families}
        grown = True
        while grown and not self.result.interrupted and not self.result.unfinished:
            grown = False
            for family, (counts, place) in families.items():
                records = self._known(family, counts, place)
                for tokens in ladders[family].more(records):
                    if tokens not in counts:  # else it could not be measured
                        counts.append(tokens)
                        also = frozenset(ladders[family].expected(tokens, records))
                        self.add(family.at(tokens), place, also)
                        grown = True
            self.go()

    def _known(
        self, family: Problem, counts: Sequence[int], place: torch.device
    ) -> dict[int, Record]:
        found = self.store.same_but_tokens(family, Environment.of(place))
        return {count: found[count] for count in counts if count in found}

    def _measure(self, job: _Job) -> None:
        """The first job of the list, and its record into the file."""
        result, problem = self.result, job.problem
        done = len(result.records) + len(result.failed)
        total = done + len(self.jobs)

        def tell(stage: str, done: int = done) -> None:
            if self.on_progress is not None:
                left = self._seconds_left()
                self.on_progress(Progress(done, total, problem, left, stage))

        full = False
        try:
            record = measure_problem(
                problem,
                job.place,
                job.environment,
                effort=job.effort,
                seed=self.seed,
                on_stage=tell,
                objective=job.objectives,
                known=job.known,
                also=job.also | self._neighbours(job),
            )
            self.store.publish(record)
        except KeyboardInterrupt:
            result.interrupted = True
            return
        except AutoloraError as error:
            logger.warning("autolora: %s was not measured: %s", problem, error)
            result.failed.append((problem, str(error)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("autolora: %s does not fit the memory of %s", problem, job.place)
            result.failed.append((problem, "out of memory"))
            full = True
        else:
            result.records.append(record)
            if self.budget is not None:
                step = _step_ns(problem, job.place)
                self.budget.learn(job.effort, step, record.seconds)
        if full:  # and the error, which held the tensors, is gone
            released(job.place)
        self.jobs.pop(0)
        self.spent += _cost(problem)
        tell("done", done + 1)

    def _neighbours(self, job: _Job) -> frozenset[str]:
        """The winners at the token counts next to a job's, so that what they are can be compared.

        Look-up interpolates between the times of graphs that two records have in common.
        """
        counts = self.store.token_counts(job.problem).get(job.environment, [])
        place = bisect_left(counts, job.problem.tokens)
        near = [c for c in counts[max(place - 1, 0) : place + 2] if c != job.problem.tokens]
        records = (self.store.find(job.problem.at(count), job.environment) for count in near)
        return frozenset(record.winner for record in records if record is not None)

    def _seconds_left(self) -> float | None:
        elapsed = time.monotonic() - self.start
        left = sum(_cost(job.problem) for job in self.jobs)
        return elapsed * left / self.spent if self.spent else None


def _is_valid(name: str, problem: Problem) -> bool:
    return find_graph(name, problem) is not None


def _step_ns(problem: Problem, place: torch.device) -> float:
    """What a step along the reference graph takes about."""
    return reference_graph(problem).flops(problem) / flops_per_ns(place, problem.dtype)


def _cost(problem: Problem) -> float:
    """Grows with the time that a problem takes to measure."""
    return 1e9 + reference_graph(problem).flops(problem)
