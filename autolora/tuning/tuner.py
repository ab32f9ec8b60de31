"""Tunes problems: decides which to measure, in which order and with which effort."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from autolora.cache.files.paths import search_path
from autolora.cache.lookup.choice import not_tuned_for
from autolora.cache.records.precedence import EFFORTS as RANKS
from autolora.cache.records.record import Record
from autolora.cluster.liveness import STUCK_TIMES
from autolora.cluster.messages import Message
from autolora.cluster.ranks import Cluster
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.kinds import find_graph, reference_graph
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem
from autolora.timing.clock import is_out_of_memory, released
from autolora.timing.compiling import compiling_as
from autolora.timing.device import device_for, flops_per_ns, turn_on
from autolora.timing.effort import ESTIMATE, effort_of
from autolora.timing.measurement import measure_problem
from autolora.tuning.budget import Budget
from autolora.tuning.claims import Claims, Job, cost
from autolora.tuning.ladder import Ladder
from autolora.tuning.publishing import Publisher
from autolora.tuning.result import Progress, TuneResult, estimate

logger = logging.getLogger("autolora")

_OUT_OF_MEMORY = "out of memory"


def tune_problems(
    problems: Sequence[BaseProblem],
    *,
    effort: str = "normal",
    budget: float | None = None,
    cache: Path | str | None = None,
    force: bool = False,
    device: torch.device | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    objective: Objective | Sequence[Objective] = TIME,
    weights: Mapping[BaseProblem, int] | None = None,
    between: bool = False,
    cluster: Cluster | None = None,
    compile_mode: str | None = None,
) -> TuneResult:
    """Measures problems and writes each record to the cache file as soon as it is measured.

    Args:
        problems: to be measured; those that one consists of, such as the single layers of siblings,
            are measured before it. Those in the cache file are skipped, unless their record has a
            lower effort or is not for these objectives; then graphs that were clearly beaten are
            not timed again.
        effort: key of :data:`~autolora.timing.effort.EFFORTS`, or ``"estimate"``, which times and
            writes nothing.
        budget: seconds for the whole run, see :class:`~autolora.tuning.budget.Budget`; problems not
            begun by then are unfinished.
        cache: file to write; defaults to the first of the search path.
        force: measure all problems and all graphs, whatever the file contains.
        device: to measure on; defaults to that of each problem's type.
        on_progress: called whenever a problem enters a stage.
        seed: of the data and of the order of the race.
        objective: what the graphs are chosen for, one or several. A problem whose record is for
            others is measured for those too and with its effort if that is higher, so that the new
            record can replace the old one.
        weights: number of layers that pose each problem, to share the budget; defaults to one.
        between: add token counts of a problem where the winner changes.
        cluster: the ranks that share the problems; each measures on its own device. Only rank 0
            writes, and only its result covers all ranks.
        compile_mode: of torch.compile, for compiled problems; None is its default.

    Raises:
        AutoloraError: unknown effort, invalid budget, no such device, or the cache cannot be
            written.
    """
    if effort not in RANKS:
        raise AutoloraError(f"effort must be one of {', '.join(RANKS)}, not {effort!r}")
    if budget is not None and not 0 < budget < float("inf"):
        raise AutoloraError(f"budget must be a positive number of seconds, not {budget!r}")
    path = Path(cache) if cache is not None else search_path()[0]
    asked = (objective,) if isinstance(objective, Objective) else tuple(objective)
    parts = [part for problem in problems for part in problem.parts]
    distinct = list(dict.fromkeys((*problems, *parts)))
    if effort == ESTIMATE:
        return TuneResult(path, estimates=[estimate(p, asked[0]) for p in distinct if not p.parts])
    places = {problem: device_for(problem, device) for problem in distinct}
    if cluster is not None and distinct:
        place = places[distinct[0]]
        cluster.set_device(place, Environment.of(place))
    claims = Claims(None if budget is None else Budget(budget), cluster)
    run = _Run(path, distinct, effort, asked, force, seed, weights or {}, claims, on_progress)
    for problem in distinct:
        run.add(problem, places[problem])
    try:
        with compiling_as(compile_mode):
            run.go()
            if between:
                run.refine(places)
        run.publisher.finish()
    except KeyboardInterrupt:
        run.result.interrupted = True
    run.publisher.close(run.result)
    measured = {record.problem for record in run.result.records}
    run.result.unfinished = [problem for problem in run.open if problem not in measured]
    return run.result


@dataclass(slots=True)
class _Family:
    """A problem at several token counts."""

    place: torch.device
    counts: list[int] = field(default_factory=list)
    ladder: Ladder = field(default_factory=lambda: Ladder(_is_valid))


class _Run:
    """The state of a tuning run."""

    def __init__(
        self,
        path: Path,
        problems: Sequence[BaseProblem],
        effort: str,
        asked: tuple[Objective, ...],
        force: bool,
        seed: int,
        weights: Mapping[BaseProblem, int],
        claims: Claims,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.effort, self.asked, self.force, self.seed = effort, asked, force, seed
        self.weights, self.claims, self.cluster = weights, claims, claims.cluster
        self.on_progress = on_progress
        self.result = TuneResult(path)
        self.seen: set[BaseProblem] = set()
        self.done: set[BaseProblem] = set()
        self.open: dict[BaseProblem, None] = {}  # not measured yet by any rank
        self.start = time.monotonic()
        self.spent = 0.0  # cost of the finished problems
        self.publisher = Publisher(path, problems, self.cluster, self._on_message)

    def add(
        self, problem: BaseProblem, place: torch.device, also: frozenset[str] = frozenset()
    ) -> None:
        """Adds a problem to the list, unless it was added before or the cache already has it."""
        if problem in self.seen:
            return
        self.seen.add(problem)
        environment = Environment.of(place)
        old = self.publisher.store.find(problem, environment)
        effort, wanted = self.effort, self.asked
        if old is not None:
            lacking = any(not_tuned_for(old, each) for each in self.asked)
            enough = RANKS.index(old.effort) >= RANKS.index(self.effort)
            if enough and not lacking and not self.force:
                self.result.skipped.append(old)
                return
            effort = old.effort if enough and lacking else self.effort
            wanted += tuple(map(Objective, old.objectives))
        known = None if self.force else old
        step = 0.0
        if self.claims.budget is not None or self.cluster is not None:
            flops = reference_graph(problem).flops(problem)
            step = flops / flops_per_ns(place, problem.dtype)
        weight = self.weights.get(problem, 1)
        self.claims.add(Job(problem, place, environment, effort, wanted, known, also, step, weight))
        self.open[problem] = None

    def go(self) -> None:
        """Measures the problems on the list that this process claims."""
        self.claims.sort()
        while (place := self.claims.place) is not None:
            with turn_on(place, self.publisher.is_cut_off):
                self.publisher.receive()
                if (job := self.claims.next(place)) is not None:
                    self._measure(job)
            if self.cluster is not None:
                self.cluster.yield_device()

    def refine(self, places: Mapping[BaseProblem, torch.device]) -> None:
        """Adds token counts where the winner changes, and measures them."""
        families: dict[BaseProblem, _Family] = {}
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
            self.publisher.wait_for_same_environment()  # to know the counts that they added
        self._grow(families)

    def _grow(self, families: Mapping[BaseProblem, _Family]) -> None:
        grown = True
        while grown and not self.claims.late:
            grown = False
            for problem, family in families.items():
                found = self.publisher.store.same_but_tokens(problem, Environment.of(family.place))
                records = {count: found[count] for count in family.counts if count in found}
                for tokens in family.ladder.more(records):
                    if tokens not in family.counts:  # otherwise measuring it failed
                        family.counts.append(tokens)
                        also = frozenset(family.ladder.expected(tokens, records))
                        self.add(problem.at(tokens), family.place, also)
                        grown = True
            self.go()

    def _measure(self, job: Job) -> None:
        """Measures a job and publishes its record."""
        problem, reason = job.problem, ""
        if self.cluster is not None:
            expected = max(
                effort_of(job.effort, problem.mode).expected(job.step), job.seconds or 0.0
            )
            self.cluster.start_problem(STUCK_TIMES * expected)
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
                parts=[self.publisher.graph_of(part, job.environment) for part in problem.parts],
                seconds=job.seconds,
            )
            self.publisher.keep(record)
        except AutoloraError as error:
            logger.warning("autolora: %s was not measured: %s", problem, error)
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("autolora: %s does not fit the memory of %s", problem, job.place)
            reason = _OUT_OF_MEMORY
        if reason == _OUT_OF_MEMORY:  # after the except clause, whose error refers to the tensors
            released(job.place)
        if reason:
            self.publisher.fail(problem, reason)
            self._settle(problem, None, reason)
        else:
            self.claims.learn(job, record.seconds)
            self._settle(problem, record)

    def _on_message(self, message: Message) -> None:
        """Handles the message of another rank that a problem was measured or failed."""
        problem, reason = message.problem, f"{message.reason} (rank {message.rank})"
        if self.cluster is None or not self.cluster.is_same_environment(message.rank):
            if (problem, reason) not in self.result.failed:
                self.result.failed.append((problem, reason))
        elif problem in self.done:
            pass  # a repeated message
        elif self.publisher.writes:
            self._settle(problem, message.record, reason)
        else:
            self.seen.add(problem)
            self.open.pop(problem, None)

    def _settle(self, problem: BaseProblem, record: Record | None, reason: str = "") -> None:
        """Marks a problem as done."""
        self.seen.add(problem)
        self.done.add(problem)
        self.open.pop(problem, None)
        self.spent += cost(problem)
        if record is not None:
            self.result.records.append(record)
        else:
            self.result.failed.append((problem, reason))
        self._tell(problem, "done")

    def _tell(self, problem: BaseProblem, stage: str) -> None:
        if self.on_progress is not None:
            done = len(self.result.records) + len(self.result.failed)
            elapsed, left = time.monotonic() - self.start, sum(map(cost, self.open))
            seconds = elapsed * left / self.spent if self.spent else None
            self.on_progress(Progress(done, done + len(self.open), problem, seconds, stage))


def _is_valid(name: str, problem: BaseProblem) -> bool:
    return find_graph(name, problem) is not None
