"""Tuning: which problems are to be measured, in which order and how hard; each is published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from autolora.cache.files.store import search_path
from autolora.cache.lookup.choice import lacks
from autolora.cache.records.record import EFFORTS as RANKS
from autolora.cache.records.record import Record
from autolora.cluster.liveness import STUCK_TIMES
from autolora.cluster.messages import Message
from autolora.cluster.ranks import Cluster
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.space import find_graph, reference_graph
from autolora.objective import TIME, Objective
from autolora.problem import Problem
from autolora.timing.clock import is_out_of_memory, released
from autolora.timing.device import device_for, flops_per_ns, turn_on
from autolora.timing.effort import EFFORTS, ESTIMATE
from autolora.timing.measurement import measure_problem
from autolora.tuning.budget import Budget
from autolora.tuning.claims import Claims, Job, cost
from autolora.tuning.estimate import estimate
from autolora.tuning.ladder import Ladder
from autolora.tuning.publishing import Publisher
from autolora.tuning.result import Progress, TuneResult

logger = logging.getLogger("autolora")

_FULL = "out of memory"


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
    cluster: Cluster | None = None,
) -> TuneResult:
    """Measures problems and publishes each record as soon as it is there.

    Args:
        problems: to be measured; those that the cache file holds already are skipped. One that it
            holds of lower effort, or not for these objectives, is measured again, but for those of
            its graphs that were clearly beaten.
        effort: key of :data:`~autolora.timing.effort.EFFORTS`, or ``"estimate"``: nothing is timed
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
        cluster: the ranks that share the problems, each measuring them on the device that it was
            given. Rank 0 alone writes, and knows what all did.

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
    if cluster is not None and distinct:
        place = places[distinct[0]]
        cluster.set_device(place, Environment.of(place))
    claims = Claims(None if budget is None else Budget(budget), cluster)
    run = _Run(path, distinct, effort, asked, force, seed, weights or {}, claims, on_progress)
    for problem in distinct:
        run.add(problem, places[problem])
    try:
        run.go()
        if between:
            run.refine(places)
        run.publisher.finish()
    except KeyboardInterrupt:
        run.result.interrupted = True
    run.publisher.close(run.result)
    run.result.unfinished = run.unfinished
    return run.result


@dataclass(slots=True)
class _Family:
    """A problem at several token counts: on which device, at which, and at which next."""

    place: torch.device
    counts: list[int] = field(default_factory=list)
    ladder: Ladder = field(default_factory=lambda: Ladder(_is_valid))


class _Run:
    """A tuning run: what is to be done, and what was."""

    def __init__(
        self,
        path: Path,
        problems: Sequence[Problem],
        effort: str,
        asked: tuple[Objective, ...],
        force: bool,
        seed: int,
        weights: Mapping[Problem, int],
        claims: Claims,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.effort, self.asked, self.force, self.seed = effort, asked, force, seed
        self.weights, self.claims, self.cluster = weights, claims, claims.cluster
        self.on_progress = on_progress
        self.result = TuneResult(path)
        self.seen: set[Problem] = set()
        self.done: set[Problem] = set()
        self.open: dict[Problem, None] = {}  # not measured yet, by whomever
        self.start = time.monotonic()
        self.spent = 0.0  # of the costs of what is done
        self.publisher = Publisher(path, problems, self.cluster, self._hear)

    @property
    def unfinished(self) -> list[Problem]:
        """What nobody has measured."""
        done = {record.problem for record in self.result.records}
        return [problem for problem in self.open if problem not in done]

    def add(
        self, problem: Problem, place: torch.device, also: frozenset[str] = frozenset()
    ) -> None:
        """Puts a problem on the list, unless it was there or the cache holds it already."""
        if problem in self.seen:
            return
        self.seen.add(problem)
        environment = Environment.of(place)
        old = self.publisher.store.find(problem, environment)
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
        asks = self.claims.budget is not None or self.cluster is not None
        step = _step_ns(problem, place) if asks else 0.0
        weight = self.weights.get(problem, 1)
        self.claims.add(Job(problem, place, environment, hard, wanted, known, also, step, weight))
        self.open[problem] = None

    def go(self) -> None:
        """Measures what is on the list, as far as it falls to this process."""
        self.claims.sort()
        while (place := self.claims.place) is not None:
            with turn_on(place, self.publisher.is_cut_off):
                self.publisher.receive()
                if (job := self.claims.next(place)) is not None:
                    self._measure(job)
            if self.cluster is not None:
                self.cluster.yield_device()

    def refine(self, places: Mapping[Problem, torch.device]) -> None:
        """Adds token counts where the winner changes, until little can be lost between them."""
        families: dict[Problem, _Family] = {}
        for problem, place in places.items():
            families.setdefault(problem.at(1), _Family(place)).counts.append(problem.tokens)
        if self.cluster is not None:
            self.cluster.start_between()
            self.publisher.wait(self.cluster.others_are_between)
            for problem in sorted(families, key=cost, reverse=True):
                if self.claims.family(Environment.of(families[problem].place), problem):
                    self._grow({problem: families[problem]})
            if not self.publisher.writes:
                return
            self.publisher.wait_for_same_environment()  # so that what they added is known
        self._grow(families)

    def _grow(self, families: Mapping[Problem, _Family]) -> None:
        grown = True
        while grown and not self.claims.late:
            grown = False
            for problem, family in families.items():
                records = self._known(problem, family)
                for tokens in family.ladder.more(records):
                    if tokens not in family.counts:  # else it could not be measured
                        family.counts.append(tokens)
                        also = frozenset(family.ladder.expected(tokens, records))
                        self.add(problem.at(tokens), family.place, also)
                        grown = True
            self.go()

    def _known(self, problem: Problem, family: _Family) -> dict[int, Record]:
        found = self.publisher.store.same_but_tokens(problem, Environment.of(family.place))
        return {count: found[count] for count in family.counts if count in found}

    def _measure(self, job: Job) -> None:
        """A job, and its record into the file."""
        problem, reason = job.problem, ""
        if self.cluster is not None:
            self.cluster.start_problem(STUCK_TIMES * EFFORTS[job.effort].expected(job.step))
        try:
            record = measure_problem(
                problem,
                job.place,
                job.environment,
                effort=job.effort,
                seed=self.seed,
                on_stage=partial(self._tell, problem),
                objective=job.objectives,
                known=job.known,
                also=job.also | self.publisher.winners_near(problem, job.environment),
            )
            self.publisher.keep(record)
        except AutoloraError as error:
            logger.warning("autolora: %s was not measured: %s", problem, error)
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("autolora: %s does not fit the memory of %s", problem, job.place)
            reason = _FULL
        if reason == _FULL:  # and the error, which held the tensors, is gone
            released(job.place)
        if reason:
            self.publisher.fail(problem, reason)
            self._settle(problem, None, reason)
        else:
            self.claims.learn(job, record.seconds)
            self._settle(problem, record)

    def _hear(self, message: Message) -> None:
        """What another rank has measured, or could not."""
        problem, reason = message.problem, f"{message.reason} (rank {message.rank})"
        if self.cluster is None or not self.cluster.is_same_environment(message.rank):
            if (problem, reason) not in self.result.failed:
                self.result.failed.append((problem, reason))
        elif problem in self.done:
            pass  # heard before
        elif self.publisher.writes:
            self._settle(problem, message.record, reason)
        else:
            self.seen.add(problem)
            self.open.pop(problem, None)

    def _settle(self, problem: Problem, record: Record | None, reason: str = "") -> None:
        """A problem is done."""
        self.seen.add(problem)
        self.done.add(problem)
        self.open.pop(problem, None)
        self.spent += cost(problem)
        if record is not None:
            self.result.records.append(record)
        else:
            self.result.failed.append((problem, reason))
        self._tell(problem, "done")

    def _tell(self, problem: Problem, stage: str) -> None:
        if self.on_progress is not None:
            done = len(self.result.records) + len(self.result.failed)
            elapsed, left = time.monotonic() - self.start, sum(map(cost, self.open))
            seconds = elapsed * left / self.spent if self.spent else None
            self.on_progress(Progress(done, done + len(self.open), problem, seconds, stage))


def _is_valid(name: str, problem: Problem) -> bool:
    return find_graph(name, problem) is not None


def _step_ns(problem: Problem, place: torch.device) -> float:
    """What a step along the reference graph takes about."""
    return reference_graph(problem).flops(problem) / flops_per_ns(place, problem.dtype)
