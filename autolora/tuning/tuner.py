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

from autolora.cache.choice import lacks
from autolora.cache.record import EFFORTS as RANKS
from autolora.cache.record import Candidate, Record, Verdict
from autolora.cache.store import TimingCache, search_path
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.graph import Graph
from autolora.graphs.space import reference_graph
from autolora.objective import TIME, Objective, kinds_of
from autolora.problem import Problem
from autolora.tuning.accuracy import verdict
from autolora.tuning.data import Data
from autolora.tuning.device import device_for, plain_torch, settle_allocator, turn_on
from autolora.tuning.effort import EFFORTS
from autolora.tuning.entrants import enter, promising
from autolora.tuning.screen import screen
from autolora.tuning.stopwatch import Measure, Result, measure_for, race, spread
from autolora.version import __version__

logger = logging.getLogger("autolora")

FLOOR = "floor"  # the layer without its adapter, timed beside the graphs


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
    objective: Objective | Sequence[Objective] = TIME,
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
        objective: what the graphs are chosen for, one or several. A problem that is in the cache
            file, but not for these, is measured anew, for those of the known record too and with
            its effort if that is higher, so that the new record serves whatever the old one did.

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
    asked = (objective,) if isinstance(objective, Objective) else tuple(objective)
    todo: list[tuple[Problem, torch.device, Environment, str, tuple[Objective, ...]]] = []
    for problem in dict.fromkeys(problems):
        place = device_for(problem, device)
        environment = Environment.of(place)
        known = store.find(problem, environment)
        hard, wanted = effort, asked
        if known is not None:
            lacking = any(lacks(known, each) for each in asked)
            enough = RANKS.index(known.effort) >= RANKS.index(effort)
            if enough and not lacking and not force:
                result.skipped.append(known)
                continue
            hard = known.effort if enough and lacking else effort
            wanted += tuple(map(Objective, known.objectives))
        todo.append((problem, place, environment, hard, wanted))
    start = time.monotonic()
    cost = sum(_cost(problem) for problem, *_ in todo)
    spent = 0.0
    for number, (problem, place, environment, hard, wanted) in enumerate(todo):
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
                problem,
                place,
                environment,
                effort=hard,
                seed=seed,
                on_stage=tell,
                objective=wanted,
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
    objective: Objective | Sequence[Objective] = TIME,
) -> Record:
    """One problem: screen, verdicts, race; the record with all its evidence.

    The winner is the fastest, whatever the objective; that adds to the candidates.
    """
    start = time.monotonic()
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    plan = EFFORTS[effort]
    rng = random.Random(seed)
    measure = measure or measure_for(device)
    with turn_on(device), plain_torch(device):
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        settle_allocator(device)
        data = Data.random(problem, device, seed=seed)
        on_stage("screen")
        predictions = screen(promising(problem, objectives), data, measure, rng)
        fits = plan.affords(predictions[0].nanoseconds if predictions else 0)
        found = enter(
            problem,
            predictions,
            lambda graph: verdict(graph, problem, device),
            objectives,
            most=fits,
            within=plan.within,
        )
        racing = {graph.name: graph for graph in found.racing}
        barred = {name for name, graph in racing.items() if not found.verdicts[graph].ok}
        on_stage("race")
        result = race(
            {name: data.step(graph) for name, graph in racing.items()} | {FLOOR: data.floor()},
            measure,
            plan.pace,
            rng,
            baseline=found.reference.name,
            kept={found.by_flops.name},
            observed={FLOOR, *barred},
            pools=found.pools,
            between=data.clear,
        )
    return Record(
        problem=problem,
        environment=environment,
        effort=effort,
        objectives=kinds_of(objectives),
        winner=result.winner,
        reference=found.reference.name,
        flops_choice=found.by_flops.name,
        candidates=_candidates(problem, found.verdicts, result),
        floor_ns=_median(result, FLOOR),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - start, 3),
        conditions={"load_1min": load, "processors": os.cpu_count()},
        autolora=__version__,
    )


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
