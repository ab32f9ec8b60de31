"""The screen of graphs of experts: each product is timed in isolation with each executor.

The fastest by that are timed whole, see :mod:`autolora.timing.experts.whole`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from autolora.graphs.base import BaseGraph
from autolora.graphs.contraction import Contraction, axes_of
from autolora.graphs.experts.graph import (
    BMM,
    EXECUTORS,
    ExpertsGraph,
    executors_worth_timing,
    is_ragged,
    ragged_factors,
)
from autolora.graphs.experts.operators import padded, stacked
from autolora.graphs.experts.source import step_function
from autolora.graphs.experts.space import products, structures, uniform
from autolora.graphs.graph import Graph
from autolora.graphs.tensors import sizes_of
from autolora.objective import Objective, kinds_of
from autolora.problem import Experts
from autolora.timing.clock import Measure
from autolora.timing.data import SCALING, normal_numbers
from autolora.timing.experts.data import Data
from autolora.timing.experts.whole import timed_whole
from autolora.timing.screen import Prediction

_MOST_FLOPS = 1.4  # times the fewest of any graph
_PASSES = 3
_SLOW_NS = 2e7  # a step slower than this is timed at most twice
_HOPELESS = 1.5  # and once if it takes this many times as long as another executor
_EXCHANGED = 1.5  # times as long as the executor of a graph: what was slower does not replace it

Key = tuple[tuple[str, ...], ...]


def predict(
    problem: Experts,
    data: Data,
    objectives: Sequence[Objective],
    measure: Measure,
    rng: random.Random,
    parts: Sequence[BaseGraph] = (),
) -> list[Prediction]:
    """The graphs worth racing, with predicted times, fastest first.

    Each product is timed in isolation with each executor that it may have. A graph is predicted
    with the fastest of each product, and with one for its base products and one for its thin ones.
    Graphs with one executor for all race beside these.
    """
    worth = _promising(problem, objectives)
    timed = _Steps(data, measure, rng)
    times = timed.times([step for graph in worth for step in products(graph, problem).values()])
    screen = _Screen(problem, times, timed.padding)
    found = dict.fromkeys(each for graph in worth for each in screen.worth_timing(graph))
    predictions = sorted(map(screen.predicted, found), key=lambda each: each.nanoseconds)
    return timed_whole(predictions, screen.around, data, measure, rng)


def _promising(problem: Experts, objectives: Sequence[Objective]) -> list[Graph]:
    """The graphs with few FLOPs; for memory, among those that save as many bytes."""
    graphs = structures(problem)
    flops = {graph: ExpertsGraph(graph).flops(problem) for graph in graphs}
    lean = "memory" in kinds_of(objectives)
    levels = {g: ExpertsGraph(g).saved_bytes(problem) if lean else 0 for g in graphs}
    least: dict[int, int] = {}
    for graph, level in levels.items():
        least[level] = min(flops[graph], least.get(level, flops[graph]))
    return [graph for graph in graphs if flops[graph] <= _MOST_FLOPS * least[levels[graph]]]


def _key(step: Contraction) -> Key:
    """What the time of a step depends on: its axes, which tell its operands, and its result."""
    added = (str(step.onto == "b"), str(bool(step.onto)), str(step.scaled))
    return axes_of(step.out), axes_of(step.left), axes_of(step.right), added


@dataclass(frozen=True, slots=True)
class _Screen:
    """Predicts the times of graphs from those of their products.

    Args:
        problem: that they compute.
        times: of each product with each executor, in nanoseconds.
        padding: the time of padding the rows of a tensor.
    """

    problem: Experts
    times: Mapping[Key, Mapping[str, float]]
    padding: Callable[[str], float]

    def predicted(self, graph: ExpertsGraph) -> Prediction:
        """The sum of the times of the products, and of padding each tensor once."""
        times = self._times(graph.graph)
        taken = sum(times[name][executor] for name, executor in graph.executors)
        for run in (graph.forward_steps(self.problem), graph.backward_steps(self.problem)):
            names = {n for s in run if graph.executor_of(s) == BMM for n in ragged_factors(s)}
            taken += sum(map(self.padding, names))
        alike = len({executor for _, executor in graph.executors}) == 1
        return Prediction(graph, taken, everywhere=alike)

    def worth_timing(self, graph: Graph) -> list[ExpertsGraph]:
        """The graph with the fastest executor of each product, and with each pair of executors."""
        fastest = {name: min(own, key=own.__getitem__) for name, own in self._times(graph).items()}
        return [ExpertsGraph.of(graph, fastest), *self._pairs(graph)]

    def around(self, graph: ExpertsGraph) -> list[Prediction]:
        """The graphs that differ in one executor, or in a pair for all, and may be faster."""
        times, now = self._times(graph.graph), dict(graph.executors)
        every = [ExpertsGraph.of(graph.graph, now | {name: other})
                 for name, own in times.items() for other in own]  # fmt: skip
        return [
            self.predicted(each)
            for each in dict.fromkeys([*every, *self._pairs(graph.graph)])
            if all(times[n][x] <= _EXCHANGED * times[n][now[n]] for n, x in each.executors)
        ]

    def _pairs(self, graph: Graph) -> list[ExpertsGraph]:
        """The graph with one executor for its base products and one for its thin ones."""
        every = product(EXECUTORS, EXECUTORS)
        return list(dict.fromkeys(uniform(graph, self.problem, *pair) for pair in every))

    def _times(self, graph: Graph) -> dict[str, Mapping[str, float]]:
        steps = products(graph, self.problem)
        return {name: self.times[_key(step)] for name, step in steps.items()}


class _Steps:
    """Times single steps.

    Args:
        data: of the problem.
        measure: times one call.
        rng: shuffles their order.
    """

    def __init__(self, data: Data, measure: Measure, rng: random.Random) -> None:
        self.data, self.measure, self.rng = data, measure, rng
        self.paddings: dict[tuple[str, ...], float] = {}
        problem = data.problem
        dtype = getattr(torch, problem.dtype)
        narrow, wide = stacked(data.A.detach(), data.B.detach(), problem.experts, dtype)
        W = data.W.transpose(1, 2) if problem.layout == "conv1d" else data.W
        self.tensors: dict[str, Any] = {
            "X": data.X.detach(),
            "W": W,
            "V": W,
            "P": W,
            "A": narrow,
            "B": wide,
        }
        self.tensors |= {"G": data.G} | ({} if data.b is None else {"b": data.b})
        self.sizes = problem.in_features, problem.out_features, problem.rank

    def times(self, steps: Iterable[Contraction]) -> dict[Key, dict[str, float]]:
        """The least nanoseconds of each step with each executor."""
        runs: dict[tuple[Key, str], Callable[[], object]] = {}
        for step in steps:
            for executor in executors_worth_timing(step, self.data.problem):
                runs.setdefault((_key(step), executor), self._run(step, executor))
        taken: dict[tuple[Key, str], list[float]] = {each: [] for each in runs}
        with torch.no_grad():
            for _ in range(_PASSES):
                for each in self.rng.sample(list(runs), len(runs)):
                    others = (min(t) for (key, _), t in taken.items() if key == each[0] and t)
                    if _worth_timing(taken[each], min(others, default=0.0)):
                        taken[each].append(self.measure(runs[each]))
        found: dict[Key, dict[str, float]] = {}
        for (key, executor), values in taken.items():
            found.setdefault(key, {})[executor] = min(values)
        return found

    def padding(self, name: str) -> float:
        """The least nanoseconds of padding the rows of a tensor."""
        axes = axes_of(name)
        if axes not in self.paddings:
            rows, routing = self._tensor(name), self.data.routing
            runs = (self.measure(lambda: padded(rows, routing)) for _ in range(_PASSES))
            self.paddings[axes] = min(runs)
        return self.paddings[axes]

    def _run(self, step: Contraction, executor: str) -> Callable[[], object]:
        run = step_function(step, executor, self.data.problem)
        tensors: dict[str, Any] = {
            name: self._tensor(name) for name in step.reads if name != "b" or "b" in self.tensors
        }
        routing, sizes = self.data.routing, self.sizes
        if executor == BMM:
            for name in ragged_factors(step):
                if f"{name}_p" not in self.tensors:
                    self.tensors[f"{name}_p"] = padded(self._tensor(name), routing)
                tensors[f"{name}_p"] = self.tensors[f"{name}_p"]
        return lambda: run(tensors, SCALING, routing, *sizes)

    def _tensor(self, name: str) -> Any:
        if name not in self.tensors:
            lengths = sizes_of(self.data.problem.part) | {"m": len(self.data.routing.ids)}
            shape = [lengths[axis] for axis in axes_of(name)]
            shape = shape if is_ragged(name) else [self.data.problem.experts, *shape]
            generator = torch.Generator(self.data.X.device)
            made = normal_numbers(shape, generator).to(self.data.X.dtype)
            self.tensors[name] = made.mul_(0 if name in ("Y", "dX") else 1)
        return self.tensors[name]


def _worth_timing(taken: Sequence[float], least: float) -> bool:
    if not taken or min(taken) < _SLOW_NS:
        return True
    return len(taken) < 2 and taken[0] <= _HOPELESS * least
