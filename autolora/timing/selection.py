"""Which graphs race: those predicted to be fast, and for other objectives the lean and accurate.

The screen predicts; this room picks from its predictions, asks for verdicts, and says which groups
of graphs are wanted for another objective than time. It times nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from autolora.cache.records.candidate import Verdict
from autolora.graphs.base import BaseGraph
from autolora.graphs.kinds import flops_graph, reference_graph
from autolora.objective import Objective, kinds_of, low_memory_levels, most_accurate
from autolora.problem import BaseProblem
from autolora.timing.screen import Prediction, distinct

Judge = Callable[[BaseGraph], Verdict]

_FAST_ENOUGH = 1.3  # times the best prediction: no route is tried for accuracy that costs more
_EACH = 2  # lean or accurate graphs of one kind that race
_TRIED = 4  # graphs of a kind whose verdict is asked for, for each one that is wanted


@dataclass(slots=True)
class Selection:
    """The graphs of a race.

    Args:
        reference: the reference graph.
        by_flops: the choice by FLOPs.
        verdicts: of all graphs that were considered, those rejected too.
        racing: those that race, the choice by FLOPs and the reference graph among them.
        pools: names of groups of them whose own fastest is wanted.
    """

    reference: BaseGraph
    by_flops: BaseGraph
    verdicts: dict[BaseGraph, Verdict] = field(default_factory=dict)
    racing: list[BaseGraph] = field(default_factory=list)
    pools: list[frozenset[str]] = field(default_factory=list)


def select_candidates(
    problem: BaseProblem,
    predictions: Sequence[Prediction],
    judge: Judge,
    objectives: Sequence[Objective],
    *,
    most: int,
    within: float,
    also: Sequence[BaseGraph] = (),
) -> Selection:
    """The graphs that race for some objectives.

    For time they are the best predicted. For memory, and for a limit, those of the lean levels join
    them (see :func:`~autolora.objective.low_memory_levels`); for accuracy those of each pair of
    routes to Y and dX that are among the most accurate.

    Args:
        problem: what they compute.
        predictions: fastest first.
        judge: gives a graph's verdict.
        objectives: what they are chosen for.
        most: of the best predicted.
        within: none of these is predicted to take more than this times the best accurate one.
        also: graphs that race as well, if they are accurate.
    """
    by_flops, reference = flops_graph(problem), reference_graph(problem)
    found = Selection(reference, by_flops)
    kinds = kinds_of(objectives)
    fast = _fast(predictions, judge, found, most, within)
    for graph in (by_flops, reference, *also):
        _ask(graph, judge, found)
    others = [by_flops, reference, *(graph for graph in also if _able(graph, found))]
    found.racing += [graph for graph in dict.fromkeys(others) if graph not in fast]
    if "memory" in kinds:
        _add_lean(problem, predictions, (fast or [reference])[0], judge, objectives, found)
    if "accuracy" in kinds:
        _add_accurate(predictions, reference, judge, most, found)
    return found


def _fast(
    predictions: Sequence[Prediction], judge: Judge, found: Selection, most: int, within: float
) -> list[BaseGraph]:
    """Lets the best predicted of the accurate race.

    Accuracy hangs on the routes to Y and dX, and on the libraries that take them: of a pair that
    was refused a few times no more is tried, so that it does not keep the accurate ones out.
    """
    accepted: list[BaseGraph] = []
    refused: Counter[Hashable] = Counter()
    best = 0.0
    for prediction in distinct(predictions):
        graph = prediction.graph
        if len(accepted) == most or (best and prediction.nanoseconds > within * best):
            break
        routes = graph.routes_and_libraries
        if refused[routes] == _TRIED:
            continue
        _ask(graph, judge, found)
        if found.verdicts[graph].ok:
            accepted.append(graph)
            best = best or prediction.nanoseconds
        else:
            refused[routes] += 1
    found.racing += accepted
    return accepted


def _add_lean(
    problem: BaseProblem,
    predictions: Sequence[Prediction],
    best: BaseGraph,
    judge: Judge,
    objectives: Sequence[Objective],
    found: Selection,
) -> None:
    """The best predicted of each lean level; each level is a pool, and so is the leanest there."""
    levels: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        levels.setdefault(prediction.graph.saved_bytes(problem), []).append(prediction)
    limits = [each.max_saved_bytes for each in objectives] or [None]
    wanted = {
        level
        for limit in limits
        for level in low_memory_levels(levels, best.saved_bytes(problem), limit)
    }
    for level in sorted(wanted):
        _accepted(_best(levels[level], _TRIED * _EACH), _EACH, judge, found)
    kept = {graph: graph.saved_bytes(problem) for graph in found.racing if _able(graph, found)}
    pools = (wanted & set(kept.values())) | {min(kept.values())}
    found.pools += [
        frozenset(graph.name for graph, level in kept.items() if level == pool)
        for pool in sorted(pools)
    ]


def _add_accurate(
    predictions: Sequence[Prediction],
    reference: BaseGraph,
    judge: Judge,
    most: int,
    found: Selection,
) -> None:
    """The most accurate of the best predicted of each pair of routes; together they are a pool."""
    routes: dict[Hashable, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.nanoseconds <= _FAST_ENOUGH * predictions[0].nanoseconds:
            graph = prediction.graph
            routes.setdefault(graph.routes, []).append(prediction)
    tried = [graph for some in routes.values() for graph in _best(some, _EACH)]
    for graph in tried:
        _ask(graph, judge, found)
    figures = {g.name: v for g, v in found.verdicts.items() if _able(g, found)}
    accurate = most_accurate(figures, found.verdicts[reference])
    joining = [graph for graph in tried if graph.name in accurate and graph not in found.racing]
    found.racing += joining[: max(most, _TRIED)]
    found.pools.append(frozenset(g.name for g in found.racing if g.name in accurate))


def _accepted(
    graphs: Iterable[BaseGraph], most: int, judge: Judge, found: Selection
) -> list[BaseGraph]:
    """Lets the first few that are accurate race; asks no further than that."""
    accepted: list[BaseGraph] = []
    for graph in graphs:
        _ask(graph, judge, found)
        if found.verdicts[graph].ok:
            accepted.append(graph)
        if len(accepted) == most:
            break
    found.racing += [graph for graph in accepted if graph not in found.racing]
    return accepted


def _best(predictions: Sequence[Prediction], most: int) -> list[BaseGraph]:
    return [prediction.graph for prediction in islice(distinct(predictions), most)]


def _ask(graph: BaseGraph, judge: Judge, found: Selection) -> None:
    if graph not in found.verdicts:
        found.verdicts[graph] = judge(graph)


def _able(graph: BaseGraph, found: Selection) -> bool:
    """Whether it may be used; the reference graph needs nobody's leave."""
    return found.verdicts[graph].ok or graph.is_reference
