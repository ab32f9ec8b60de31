"""Selects the graphs that race, from the predictions of the screen and accuracy verdicts.

The fastest graphs race for every objective; graphs that save fewer bytes or are more accurate join
them for other objectives. Nothing is timed here.
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

_FAST_ENOUGH = 1.3  # times the best prediction; slower graphs are not tried for accuracy
_EACH = 2  # graphs of one memory level or one pair of routes that race
_TRIED = 4  # verdicts that are measured, for each graph that is to race


@dataclass(slots=True)
class Selection:
    """The graphs of a race.

    Args:
        judge: returns the verdict of a graph.
        reference: the reference graph.
        by_flops: the choice by FLOPs.
        fallback: what wins unless another is faster by more than the noise: the parts of a problem
            one by one, or the reference graph.
        verdicts: of all graphs considered, including rejected ones.
        racing: the graphs that race, including the reference graph and the choice by FLOPs.
        pools: names of the graphs of each group whose fastest is wanted too.
    """

    judge: Judge
    reference: BaseGraph
    by_flops: BaseGraph
    fallback: BaseGraph
    verdicts: dict[BaseGraph, Verdict] = field(default_factory=dict)
    racing: list[BaseGraph] = field(default_factory=list)
    pools: list[frozenset[str]] = field(default_factory=list)

    def accepts(self, graph: BaseGraph) -> bool:
        """Whether a graph is accurate; measures its verdict once."""
        if graph not in self.verdicts:
            self.verdicts[graph] = self.judge(graph)
        return self.verdicts[graph].ok

    def allows(self, graph: BaseGraph) -> bool:
        """Whether a graph may be used: it is accurate, or the reference graph."""
        return self.accepts(graph) or graph.is_reference

    def add(self, graphs: Iterable[BaseGraph]) -> None:
        """Lets graphs race."""
        self.racing += [graph for graph in dict.fromkeys(graphs) if graph not in self.racing]


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

    For time these are the fastest by prediction. For memory, and for a limit, graphs of the lowest
    memory levels join them (see :func:`~autolora.objective.low_memory_levels`); for accuracy the
    most accurate graphs of each pair of routes to Y and dX.

    Args:
        problem: that the graphs compute.
        predictions: fastest first.
        judge: returns the verdict of a graph.
        objectives: what the graphs are chosen for.
        most: number of graphs that race because they are predicted to be fast.
        within: their largest predicted time, as a multiple of that of the fastest accurate one.
        also: graphs that race too, if they are accurate.
    """
    by_flops, reference = flops_graph(problem), reference_graph(problem)
    found = Selection(judge, reference, by_flops, reference)
    kinds = kinds_of(objectives)
    _add_fast(predictions, found, most, within)
    best = found.racing[0] if found.racing else reference
    found.accepts(by_flops)
    found.accepts(reference)
    apart = [each.graph for each in predictions if each.graph.is_apart]
    found.fallback = next(filter(found.accepts, apart), reference)
    found.add([by_flops, reference, found.fallback, *filter(found.allows, also)])
    if "memory" in kinds:
        _add_lean(problem, predictions, best, objectives, found)
    if "accuracy" in kinds:
        _add_accurate(predictions, most, found)
    return found


def _add_fast(
    predictions: Sequence[Prediction], found: Selection, most: int, within: float
) -> None:
    """The fastest accurate graphs by prediction.

    Accuracy depends on the routes to Y and dX and on their libraries: after a few rejected graphs
    of the same routes and libraries, the others are skipped without a verdict.
    """
    rejected: Counter[Hashable] = Counter()
    best = 0.0
    for prediction in distinct(predictions):
        graph = prediction.graph
        if len(found.racing) == most or (best and prediction.nanoseconds > within * best):
            break
        routes = graph.routes_and_libraries
        if rejected[routes] == _TRIED:
            continue
        if found.accepts(graph):
            found.add([graph])
            best = best or prediction.nanoseconds
        else:
            rejected[routes] += 1


def _add_lean(
    problem: BaseProblem,
    predictions: Sequence[Prediction],
    best: BaseGraph,
    objectives: Sequence[Objective],
    found: Selection,
) -> None:
    """The fastest graphs of each low memory level; each level is a pool, and the lowest one."""
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
        accepted = filter(found.accepts, _fastest(levels[level], _TRIED * _EACH))
        found.add(islice(accepted, _EACH))
    saved = {graph: graph.saved_bytes(problem) for graph in found.racing if found.allows(graph)}
    for pool in sorted((wanted & set(saved.values())) | {min(saved.values())}):
        found.pools.append(frozenset(g.name for g, level in saved.items() if level == pool))


def _add_accurate(predictions: Sequence[Prediction], most: int, found: Selection) -> None:
    """The most accurate of the fastest graphs of each pair of routes, which are one pool."""
    by_routes: dict[Hashable, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.nanoseconds <= _FAST_ENOUGH * predictions[0].nanoseconds:
            by_routes.setdefault(prediction.graph.routes, []).append(prediction)
    tried = [graph for some in by_routes.values() for graph in _fastest(some, _EACH)]
    for graph in tried:
        found.accepts(graph)
    verdicts = {g.name: verdict for g, verdict in found.verdicts.items() if found.allows(g)}
    accurate = most_accurate(verdicts, found.verdicts[found.reference])
    joining = [graph for graph in tried if graph.name in accurate and graph not in found.racing]
    found.racing += joining[: max(most, _TRIED)]
    found.pools.append(frozenset(g.name for g in found.racing if g.name in accurate))


def _fastest(predictions: Sequence[Prediction], most: int) -> list[BaseGraph]:
    return [prediction.graph for prediction in islice(distinct(predictions), most)]
