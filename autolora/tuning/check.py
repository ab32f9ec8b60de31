"""Checks whether the winners of cache records still win on this machine.

A winner races again with the reference graph and the graphs that were nearly as fast. A record
whose winner is slower now can be measured again and replaced.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Generic, TypeVar

import torch

from autolora.cache.files.store import TimingCache
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.base import BaseGraph
from autolora.graphs.kinds import find_graph, reference_graph
from autolora.objective import Objective
from autolora.timing.clock import Measure, is_out_of_memory, measure_for, released
from autolora.timing.compiling import why_not_compiled
from autolora.timing.device import plain_torch, settle_allocator, turn_on
from autolora.timing.effort import EFFORTS
from autolora.timing.kinds import workbench_of
from autolora.timing.measurement import measure_problem
from autolora.timing.race import Pace, race
from autolora.tuning.publishing import graph_by
from autolora.tuning.result import Progress

TOLERANCE = 0.05  # share by which a winner is slower than another if it has drifted

# Enough confirmation rounds to know the noise of a drift, even if the graphs are slow.
PACE = replace(EFFORTS["normal"].pace, confirmation=(5, 15))

_CLOSE = 1.10  # times the winner's time: slower graphs do not race again
_MOST_RIVALS = 6

T = TypeVar("T")
Clock = Callable[[], float]
Tell = Callable[[Progress], None]
Stage = Callable[[str], None]  # called when a record enters a stage


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one record.

    Args:
        record: from the cache.
        winner: the graph that wins now: the record's, unless it is beaten by more than the noise.
            None if the record's winner is not a valid graph, so that nothing was raced.
        drift: time of the record's winner over that of ``winner``, less 1; 0 if it still wins.
        noise: standard error of the drift.
    """

    record: Record
    winner: str | None
    drift: float = 0.0
    noise: float = 0.0

    @property
    def drifted(self) -> bool:
        """Whether the winner is unusable, or slower by more than the tolerance and the noise."""
        return self.winner is None or self.drift - self.noise > TOLERANCE


@dataclass(slots=True)
class Outcome(Generic[T]):
    """The results of checking or measuring records.

    Args:
        done: result of each record, in order.
        failed: records that could not be measured, each with the reason.
        left: records not finished, since the budget was spent or the run was interrupted.
        interrupted: by Ctrl-C.
    """

    done: list[T] = field(default_factory=list)
    failed: list[tuple[Record, str]] = field(default_factory=list)
    left: list[Record] = field(default_factory=list)
    interrupted: bool = False


@dataclass(slots=True)
class CheckResult(Outcome[Check]):
    """The result of :func:`check_records`.

    Args:
        elsewhere: number of records of other environments, which cannot be timed here.
        undrawn: number of records of this environment that are not in the sample.
    """

    elsewhere: int = 0
    undrawn: int = 0

    @property
    def drifted(self) -> list[Record]:
        """The records whose winner has drifted or is unusable."""
        return [check.record for check in self.done if check.drifted]


def check_records(
    records: Iterable[Record],
    *,
    device: torch.device,
    most: int,
    budget: float | None = None,
    pace: Pace = PACE,
    measure: Measure | None = None,
    seed: int = 0,
    clock: Clock = time.monotonic,
    on_progress: Tell = lambda progress: None,
) -> CheckResult:
    """Races the winners of a sample of records again.

    Args:
        records: of which those of other environments than the device's are only counted.
        device: to measure on.
        most: size of the sample, see :func:`spread_sample`.
        budget: seconds; records not begun by then are left.
        pace: of each race.
        measure: times one call; defaults to that of the device.
        seed: of the sample and of the order of the races.
        clock: in seconds, for the budget.
        on_progress: called whenever a record is begun or done.
    """
    environment = Environment.of(device)
    known = list(records)
    here = [record for record in known if record.environment == environment]
    rng = random.Random(seed)
    drawn = spread_sample(here, most, rng)
    result = CheckResult(elsewhere=len(known) - len(here), undrawn=len(here) - len(drawn))
    measure = measure or measure_for(device)

    def check(record: Record, stage: Stage) -> Check:
        stage("race")
        return _check(record, device, measure, pace, rng)

    _go_through(drawn, check, result, device, on_progress, budget, clock)
    return result


def fix_records(
    records: Sequence[Record],
    cache: TimingCache,
    *,
    device: torch.device,
    on_progress: Tell = lambda progress: None,
) -> Outcome[Record]:
    """Measures the problems of records again with the same effort, and replaces the records.

    Args:
        records: of the device's environment.
        cache: of the file in which each record is replaced as soon as it is measured, see
            :meth:`~autolora.cache.files.store.TimingCache.replace`.
        device: to measure on.
        on_progress: called whenever a problem enters a stage.
    """
    result: Outcome[Record] = Outcome()

    def fix(record: Record, stage: Stage) -> Record:
        new = measure_problem(
            record.problem,
            device,
            record.environment,
            effort=record.effort if record.effort in EFFORTS else "quick",  # not "estimate"
            on_stage=stage,
            objective=tuple(map(Objective, record.objectives)),
            parts=[graph_by(cache, part, record.environment) for part in record.problem.parts],
        )
        cache.replace(record, new)
        return new

    _go_through(records, fix, result, device, on_progress)
    return result


def spread_sample(records: Iterable[Record], most: int, rng: random.Random) -> list[Record]:
    """Draws at most ``most`` records of different problems, in random order.

    Similar problems are neighbours in the order of a cache file. One record is drawn from each of
    ``most`` equal sections of it.
    """
    ordered = sorted(records, key=lambda record: Key.of(record.problem, record.environment))
    wanted = min(most, len(ordered))
    edges = [len(ordered) * number // max(wanted, 1) for number in range(wanted + 1)]
    drawn = [ordered[rng.randrange(start, end)] for start, end in pairwise(edges)]
    return rng.sample(drawn, wanted)  # so that a spent budget does not always skip large problems


def _check(
    record: Record, device: torch.device, measure: Measure, pace: Pace, rng: random.Random
) -> Check:
    winner = record.winner
    graphs = _racing(record)
    if winner not in graphs:
        return Check(record, None)
    with turn_on(device), plain_torch(device):
        settle_allocator(device)
        data = workbench_of(record.problem).trial(record.problem, device, 0)
        runs = {name: data.step(graph) for name, graph in graphs.items()}
        for run in runs.values():  # warm-up, which the screen does in tuning
            data.clear()
            run()
        # The baseline wins unless it is beaten by more than the noise.
        result = race(runs, measure, pace, rng, baseline=winner, between=data.clear)
    ratio, noise = result.compare(winner, result.winner)
    return Check(record, result.winner, ratio - 1, noise) if ratio > 1 else Check(record, winner)


def _racing(record: Record) -> dict[str, BaseGraph]:
    """The graphs to race, by name: the winner, the reference, and the closest of the others.

    Graphs that are no longer valid are left out, even the winner.
    """
    close = sorted(
        (candidate.median_ns, candidate.graph)
        for candidate in record.candidates
        if candidate.graph != record.winner
        and candidate.median_ns is not None
        and candidate.median_ns <= _CLOSE * record.median_ns
        and (candidate.verdict is None or candidate.verdict.ok)
    )
    rivals = [name for _, name in close if find_graph(name, record.problem) is not None]
    names = [record.winner, *rivals[:_MOST_RIVALS], reference_graph(record.problem).name]
    found = {name: find_graph(name, record.problem) for name in names}
    return {name: graph for name, graph in found.items() if graph is not None}


def _go_through(
    records: Sequence[Record],
    work: Callable[[Record, Stage], T],
    result: Outcome[T],
    device: torch.device,
    on_progress: Tell,
    budget: float | None = None,
    clock: Clock = time.monotonic,
) -> None:
    """Does the work for each record; goes on if one cannot be measured."""
    start = clock()

    def tell(record: Record, done: int, stage: str) -> None:
        elapsed = clock() - start
        left = elapsed * (len(records) - done) / done if done else None
        on_progress(Progress(done, len(records), record.problem, left, stage))

    for number, record in enumerate(records):
        if budget is not None and clock() - start >= budget:
            result.left += records[number:]
            break
        reason: str | None = None
        try:
            found = work(record, partial(tell, record, number))
        except KeyboardInterrupt:
            result.interrupted = True
            result.left += records[number:]
            break
        except AutoloraError as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            reason = "out of memory" if is_out_of_memory(error) else why_not_compiled(error)
            if not reason:
                raise
        if reason is None:
            result.done.append(found)
        else:
            result.failed.append((record, reason))
            released(device)
        tell(record, number + 1, "done")
