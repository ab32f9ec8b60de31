"""Measuring one problem: screen, accuracy verdicts, race; the record with all its evidence."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median

import torch

from autolora.cache.records.candidate import Candidate, Verdict
from autolora.cache.records.precedence import EFFORTS as RANKS
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.base import BaseGraph
from autolora.graphs.kinds import find_graph
from autolora.objective import TIME, Objective, kinds_of
from autolora.problem import COMPILED, BaseProblem
from autolora.timing import conditions
from autolora.timing.clock import (
    Measure,
    is_out_of_memory,
    measure_for,
    peak_memory,
    released,
    warm_up,
)
from autolora.timing.compiling import why_not_compiled
from autolora.timing.device import plain_torch, settle_allocator, turn_on
from autolora.timing.effort import effort_of
from autolora.timing.kinds import Trial, workbench_of
from autolora.timing.race import Result, race
from autolora.timing.selection import Selection, select_candidates
from autolora.timing.statistics import spread
from autolora.version import __version__

FLOOR = "floor"  # the layer without its adapter, timed beside the graphs
TOO_LARGE = Verdict(False, {}, (None, None), "out of memory")

_BEATEN = 1.05  # times the known winner's time: what was slower than that is not timed again


def measure_problem(
    problem: BaseProblem,
    device: torch.device,
    environment: Environment,
    *,
    effort: str = "normal",
    seed: int = 0,
    measure: Measure | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    objective: Objective | Sequence[Objective] = TIME,
    known: Record | None = None,
    also: Collection[str] = (),
    parts: Sequence[BaseGraph] = (),
    seconds: float | None = None,
) -> Record:
    """One problem: screen, verdicts, race; the record with all its evidence.

    The winner is the fastest, whatever the objective; that adds to the candidates. Where another
    graph may be faster by more than 2 % when time is up, or other processes kept the machine busy,
    the record is ``noisy`` in its conditions and of the next lower effort, so that the next run
    measures the problem again.

    Args:
        problem: to be measured.
        device: on which.
        environment: of that device.
        effort: key of :data:`~autolora.timing.effort.EFFORTS`.
        seed: of the data and of the order of the race.
        measure: times one call; the device's own unless given.
        on_stage: told ``"screen"`` and ``"race"``.
        objective: what the graphs are chosen for, one or several.
        known: an earlier record of the problem in this environment. Its verdicts are taken over,
            and what was clearly beaten there is not timed again: its time is carried over, as far
            from the reference graph's as it was.
        also: names of graphs that race if they are valid and accurate, such as the winners at other
            token counts.
        parts: the graphs of the problems that this one consists of.
        seconds: that may be spent while the race is undecided, instead of those of the effort.

    Raises:
        AutoloraError: the problem cannot be posed on this machine.
        RuntimeError: its data do not fit the memory.
    """
    start = time.monotonic()
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    plan = effort_of(effort, problem.mode)
    rng = random.Random(seed)
    measure = measure or measure_for(device)
    with turn_on(device), plain_torch(device):
        settle_allocator(device)
        state = conditions.before()
        bench = workbench_of(problem)
        data = bench.trial(problem, device, seed)
        floor = data.floor()
        if problem.mode == COMPILED:
            _compile(floor)
        if device.type == "cuda":
            warm_up(floor, measure, between=data.clear)
        on_stage("screen")
        predictions = bench.predict(problem, data, objectives, measure, rng, parts)
        step_ns = predictions[0].nanoseconds if predictions else 0
        found = select_candidates(
            problem,
            predictions,
            _judge(problem, device, known),
            objectives,
            most=plan.affords(step_ns),
            within=plan.within,
            also=[graph for name in also if (graph := find_graph(name, problem)) is not None],
        )
        known = known if known is not None and not known.conditions.get("noisy") else None
        beaten = _beaten(known, found)
        racing = {
            graph.name: graph
            for graph in found.racing
            if graph.name not in beaten and _can_run(found.verdicts[graph])
        }
        steps = {name: data.step(graph) for name, graph in racing.items()}
        peaks = _tried(steps, found, data, device)
        barred = {name for name in steps if not found.verdicts[racing[name]].ok}
        by_flops = found.by_flops.name
        if by_flops not in steps:  # of those that fit the memory
            by_flops = min(steps, key=lambda name: (racing[name].flops(problem), name))
        on_stage("race")
        left = None if seconds is None else start + seconds - time.monotonic()
        result = race(
            steps | {FLOOR: floor},
            measure,
            plan.pace_for(step_ns, left),
            rng,
            baseline=(found.fallback if found.fallback.name in steps else found.reference).name,
            kept={by_flops},
            observed={FLOOR, *barred},
            pools=found.pools,
            between=data.clear,
        )
        circumstances = conditions.since(state, device)
    noisy = result.undecided or conditions.disturbed(circumstances, device)
    candidates = _candidates(problem, found.verdicts, result, peaks)
    return Record(
        problem=problem,
        environment=environment,
        effort=RANKS[RANKS.index(effort) - (1 if noisy else 0)],
        objectives=kinds_of(objectives),
        winner=result.winner,
        reference=found.reference.name,
        flops_choice=by_flops,
        candidates=_with_beaten(candidates, beaten, known),
        floor_ns=_median(result, FLOOR),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - start, 3),
        conditions={
            **circumstances,
            "noise": round(result.noise, 5),
            "within": round(result.within, 5),
            "noisy": noisy,
        },
        autolora=__version__,
    )


def _compile(floor: Callable[[], object]) -> None:
    """Compiles the layer without an adapter, outside of the timed calls."""
    try:
        floor()
    except Exception as error:
        if not (reason := why_not_compiled(error)):
            raise
        raise AutoloraError(f"the layer without its adapter is {reason}") from None


def _judge(
    problem: BaseProblem, device: torch.device, known: Record | None
) -> Callable[[BaseGraph], Verdict]:
    """Gives a graph's verdict: that of an earlier record, or a new one."""
    before = {} if known is None else {c.graph: c.verdict for c in known.candidates}

    def judge(graph: BaseGraph) -> Verdict:
        earlier = before.get(graph.name)
        if earlier is not None and earlier.reason != TOO_LARGE.reason:
            return earlier
        try:
            return workbench_of(problem).verdict(graph, problem, device)
        except Exception as error:
            reason = why_not_compiled(error) if problem.mode == COMPILED else ""
            if reason and graph.is_reference:
                raise AutoloraError(f"PEFT's graph is {reason}") from None
            if not reason and (not is_out_of_memory(error) or graph.is_reference):
                raise
        released(device)  # after the except clause, whose error refers to the tensors
        return Verdict(False, {}, (None, None), reason) if reason else TOO_LARGE

    return judge


def _can_run(verdict: Verdict) -> bool:
    """Whether a graph gave results at all: it fits the memory, and could be compiled."""
    return verdict.ok or bool(verdict.errors)


def _beaten(known: Record | None, found: Selection) -> dict[str, Candidate]:
    """The candidates of an earlier record that need no more timing to be known as slower."""
    if known is None:
        return {}
    wanted = {known.winner, *(g.name for g in (found.reference, found.by_flops, found.fallback))}
    wanted = wanted.union(*found.pools)
    return {
        candidate.graph: candidate
        for candidate in known.candidates
        if candidate.median_ns is not None
        and candidate.median_ns > _BEATEN * known.median_ns
        and candidate.graph not in wanted
    }


def _tried(
    steps: dict[str, Callable[[], object]], found: Selection, data: Trial, device: torch.device
) -> dict[str, int | None]:
    """Runs each graph once, which warms it, and notes its peak of memory.

    What runs out of memory is taken out of ``steps`` and rejected; not so the reference graph,
    without which there is no race.
    """
    graphs = {graph.name: graph for graph in found.racing}
    peaks: dict[str, int | None] = {}
    for name, step in list(steps.items()):
        try:
            data.clear()
            step()
            data.clear()
            peaks[name] = peak_memory(step, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or name == found.reference.name:
                raise
            found.verdicts[graphs[name]] = TOO_LARGE
            del steps[name]
        if name not in steps:
            data.clear()
            released(device)
    return peaks


def _candidates(
    problem: BaseProblem,
    verdicts: Mapping[BaseGraph, Verdict],
    result: Result,
    peaks: Mapping[str, int | None],
) -> list[Candidate]:
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
                peak_bytes=peaks.get(graph.name) if times else None,
                verdict=judged,
            )
        )
    return found


def _with_beaten(
    candidates: Sequence[Candidate], beaten: Mapping[str, Candidate], known: Record | None
) -> tuple[Candidate, ...]:
    """The candidates of this race, and those that it left out with the times of an earlier one."""
    found = {candidate.graph: candidate for candidate in candidates}
    if known is not None and beaten:
        now, then = found[known.reference].median_ns, known.reference_ns
        scale = (now or then) / then
        for name, candidate in beaten.items():
            found[name] = replace(
                candidate,
                median_ns=round((candidate.median_ns or 0) * scale) or 1,
                spread_ns=round((candidate.spread_ns or 0) * scale),
            )
    return tuple(sorted(found.values(), key=lambda candidate: candidate.graph))


def _median(result: Result, name: str) -> int | None:
    """The median time of a candidate, as it would be in the rounds that the winner ran in.

    One that dropped out early ran while the machine was perhaps faster or slower than later. So it
    is the winner's median × the median of the ratios of the rounds that both ran in.
    """
    times = result.samples.get(name)
    if not times:
        return None
    own, best = result.together(name, result.winner)
    ratio = median([a / b for a, b in zip(own, best, strict=True)])
    return max(1, round(ratio * median(result.samples[result.winner])))
