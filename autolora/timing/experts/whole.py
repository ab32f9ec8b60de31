"""Whole steps of the graphs that the screen of experts predicts to be fast.

Products that are timed in isolation miss what they share in a step: padded rows, a loop, and what
the step before left in the processor's cache. So the first graphs are timed whole, and around the
fastest of them executors are exchanged while that makes it faster.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import inf
from statistics import median
from typing import Any

from autolora.graphs.base import BaseGraph
from autolora.graphs.experts.graph import ExpertsGraph
from autolora.graphs.graph import Graph
from autolora.timing.clock import Measure, Run, least_times
from autolora.timing.experts.data import Data
from autolora.timing.screen import Prediction

_FIRST = (6, 24)  # graphs that are timed whole at first: at least, and at most
_SECONDS = 4.0  # that these take about
_EACH = 2  # of these, for each graph of one layer
_EXCHANGES = 3  # times that the graphs around the fastest are timed
_PASSES = 3


def timed_whole(
    predictions: Sequence[Prediction],
    around: Callable[[Any], Iterable[Prediction]],
    data: Data,
    measure: Measure,
    rng: random.Random,
) -> list[Prediction]:
    """The predictions with the times of whole steps where these were taken, fastest first.

    The others are scaled by what whole steps took of their predicted time.

    Args:
        predictions: fastest first.
        around: the graphs that differ from one in executors and may be faster.
        data: of the problem.
        measure: times one call.
        rng: shuffles the order.
    """
    known = {each.graph: each for each in predictions}
    times: dict[BaseGraph, float] = {}

    def time(fresh: Sequence[Prediction]) -> None:
        known.update((each.graph, each) for each in fresh)
        graphs = (each.graph for each in fresh if isinstance(each.graph, ExpertsGraph))
        runs: dict[BaseGraph, Run] = {graph: data.step(graph) for graph in graphs}
        least = min(times.values(), default=inf)
        times.update(
            least_times(runs, measure, rng, passes=_PASSES, between=data.clear, least=least)
        )
        data.clear()

    soonest = max(predictions[0].nanoseconds, 1.0) if predictions else inf
    most = max(_FIRST[0], min(_FIRST[1], int(_SECONDS * 1e9 / (_PASSES * soonest))))
    time(list(islice(_diverse(predictions), most)))
    fastest = None
    for _ in range(_EXCHANGES):
        before, fastest = fastest, min(times, key=times.__getitem__, default=None)
        if fastest is None or fastest == before:
            break
        time([each for each in around(fastest) if each.graph not in times])
    ratios = [taken / known[graph].nanoseconds for graph, taken in times.items() if taken < inf]
    scale = median(ratios) if ratios else 1.0
    found = [
        replace(each, nanoseconds=times.get(graph, scale * each.nanoseconds))
        for graph, each in known.items()
    ]
    fitting = [each for each in found if each.nanoseconds < inf]
    return sorted(fitting, key=lambda each: each.nanoseconds)


def _diverse(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """A few of each graph of one layer, and as many with one executor for all products."""
    numbers: Counter[tuple[Graph, bool]] = Counter()
    for each in predictions:
        if isinstance(each.graph, ExpertsGraph):
            kind = each.graph.graph, each.everywhere
            numbers[kind] += 1
            if numbers[kind] <= _EACH:
                yield each
