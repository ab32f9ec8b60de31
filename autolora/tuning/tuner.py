"""Measuring problems: accuracy verdict, screen, race, confirmation, record."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from autolora.cache.record import EFFORTS as RANKS
from autolora.cache.record import Candidate, Record, Verdict
from autolora.cache.store import TimingCache, search_path
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.graph import REFERENCE, Graph
from autolora.graphs.space import flops_graph, reference_graph, valid_graphs
from autolora.problem import Problem
from autolora.tuning.accuracy import verdict
from autolora.tuning.data import Data
from autolora.tuning.device import device_for, plain_torch, settle_allocator, turn_on
from autolora.tuning.screen import screen, shortlist
from autolora.tuning.stopwatch import Measure, Pace, Result, measure_for, race, spread
from autolora.version import __version__

logger = logging.getLogger("autolora")

_MOST_FLOPS = 1.3  # of the least that any graph needs
FLOOR = "floor"  # the layer without its adapter, timed beside the graphs


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a problem is measured.

    Args:
        most: graphs kept by the screen.
        within: none is kept that the screen predicts slower than this times the best.
        pace: of the race.
    """

    most: int
    within: float
    pace: Pace


EFFORTS = {
    "quick": Effort(4, 1.05, Pace((2, 6), (1, 5), 0.2)),
    "normal": Effort(8, 1.10, Pace((2, 30), (1, 15), 0.4)),
    "thorough": Effort(24, 1.25, Pace((8, 120), (15, 60), 6.0)),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a tuning run stands.

    Args:
        done: problems finished.
        total: problems to be measured.
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
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)
    unfinished: list[Problem] = field(default_factory=list)
    failed: list[tuple[Problem, str]] = field(default_factory=list)
    interrupted: bool = False


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
) -> TuneResult:
    """Measures problems and publishes each record as soon as it is there.

    Args:
        problems: to be measured; those that the cache file holds already are skipped.
        effort: key of :data:`EFFORTS`.
        budget: seconds for the whole run; problems not begun by then are left unfinished.
        cache: the file to write, the first of the search path unless given.
        force: measure also what the file holds.
        device: on which; that of each problem's type unless given.
        on_progress: told whenever a problem enters a stage.
        seed: of the data and of the order of the race.

    Raises:
        AutoloraError: unknown effort, a budget that is none, no such device, unwritable cache.
    """
    if effort not in EFFORTS:
        raise AutoloraError(f"effort must be one of {', '.join(EFFORTS)}, not {effort!r}")
    if budget is not None and not budget > 0:
        raise AutoloraError(f"budget must be a positive number of seconds, not {budget!r}")
    path = Path(cache) if cache is not None else search_path()[0]
    store = TimingCache.load(path)
    store.save()  # an unwritable file is found out before anything is measured, not after
    result = TuneResult(path)
    todo: list[tuple[Problem, torch.device, Environment]] = []
    for problem in dict.fromkeys(problems):
        place = device_for(problem, device)
        environment = Environment.of(place)
        known = store.find(problem, environment)
        if known is not None and not force and RANKS.index(known.effort) >= RANKS.index(effort):
            result.skipped.append(known)
        else:
            todo.append((problem, place, environment))
    start = time.monotonic()
    cost = sum(_cost(problem) for problem, *_ in todo)
    spent = 0.0
    for number, (problem, place, environment) in enumerate(todo):
        elapsed = time.monotonic() - start
        if budget is not None and elapsed >= budget:
            result.unfinished += [p for p, *_ in todo[number:]]
            break

        left = elapsed * (cost - spent) / spent if spent else None

        def tell(
            stage: str, done: int = number, problem: Problem = problem, left: float | None = left
        ) -> None:
            if on_progress is not None:
                on_progress(Progress(done, len(todo), problem, left, stage))

        try:
            record = measure_problem(
                problem, place, environment, effort=effort, seed=seed, on_stage=tell
            )
            store.publish(record)
        except KeyboardInterrupt:
            result.interrupted = True
            result.unfinished += [p for p, *_ in todo[number:]]
            break
        except AutoloraError as error:
            logger.warning("autolora: %s was not measured: %s", problem, error)
            result.failed.append((problem, str(error)))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("autolora: %s does not fit the memory of %s", problem, place)
            result.failed.append((problem, "out of memory"))
        else:
            result.records.append(record)
        spent += _cost(problem)
        tell("done", number + 1)
    return result


def measure_problem(
    problem: Problem,
    device: torch.device,
    environment: Environment,
    *,
    effort: str = "normal",
    seed: int = 0,
    measure: Measure | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Record:
    """One problem: screen, verdicts, race; the record with all its evidence."""
    start = time.monotonic()
    plan = EFFORTS[effort]
    rng = random.Random(seed)
    measure = measure or measure_for(device)
    with turn_on(device), plain_torch(device):
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        settle_allocator(device)
        data = Data.random(problem, device, seed=seed)
        on_stage("screen")
        predictions = screen(_promising(problem), data, measure, rng)
        reference, by_flops = reference_graph(problem), flops_graph(problem)
        fits = _affordable(plan, predictions[0].nanoseconds if predictions else 0)
        verdicts: dict[Graph, Verdict] = {}
        accepted: list[Graph] = []
        for graph in shortlist(predictions, 4 * fits, plan.within):
            verdicts[graph] = verdict(graph, problem, device)
            if verdicts[graph].ok:
                accepted.append(graph)
            if len(accepted) == fits:
                break
        for graph in (by_flops, reference):
            verdicts.setdefault(graph, verdict(graph, problem, device))
        racing = {graph.name: graph for graph in (*accepted, by_flops, reference)}
        barred = {FLOOR} | {name for name, graph in racing.items() if not verdicts[graph].ok}
        on_stage("race")
        result = race(
            {name: data.step(graph) for name, graph in racing.items()} | {FLOOR: data.floor()},
            measure,
            plan.pace,
            rng,
            baseline=reference.name,
            kept={by_flops.name},
            observed=barred,
            between=data.clear,
        )
    return Record(
        problem=problem,
        environment=environment,
        effort=effort,
        winner=result.winner,
        reference=reference.name,
        flops_choice=by_flops.name,
        candidates=_candidates(problem, verdicts, result),
        floor_ns=_median(result, FLOOR),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - start, 3),
        conditions={"load_1min": load, "processors": os.cpu_count()},
        autolora=__version__,
    )


def _promising(problem: Problem) -> list[Graph]:
    """The graphs worth timing: wide products run near the peak, so FLOPs far above lose."""
    graphs = [graph for graph in valid_graphs(problem).values() if graph.forward != REFERENCE]
    flops = {graph: graph.flops(problem) for graph in graphs}
    least = min(flops.values(), default=0)
    return [graph for graph in graphs if flops[graph] <= _MOST_FLOPS * least]


def _affordable(plan: Effort, nanoseconds: float) -> int:
    """How many graphs can race, so that the least number of rounds fits the time of the pace."""
    return max(2, min(plan.most, int(plan.pace.seconds * 1e9 / (2 * nanoseconds + 1)) - 2))


def _is_out_of_memory(error: Exception) -> bool:
    """The CPU's allocator raises a plain RuntimeError."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)


def _cost(problem: Problem) -> float:
    """Grows with the time that a problem takes to measure."""
    return 1e9 + reference_graph(problem).flops(problem)


def _candidates(
    problem: Problem, verdicts: dict[Graph, Verdict], result: Result
) -> tuple[Candidate, ...]:
    found = []
    for graph, judged in verdicts.items():
        times = result.samples.get(graph.name)
        found.append(
            Candidate(
                graph=graph.name,
                median_ns=_median(result, graph.name),
                spread_ns=round(spread(times)) if times else None,
                rounds=len(times or ()),
                saved_bytes=graph.saved_bytes(problem),
                verdict=judged,
            )
        )
    return tuple(sorted(found, key=lambda candidate: candidate.graph))


def _median(result: Result, name: str) -> int | None:
    times = result.samples.get(name)
    return round(median(times)) if times else None
