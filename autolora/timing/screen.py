"""The screen: predicts the time of every graph from the times of its steps.

Each distinct step is timed in isolation. There are about forty of them, however many graphs.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.contraction import AXES
from autolora.graphs.graph import Graph
from autolora.graphs.source import PARAMETERS, Line, lines, statement
from autolora.graphs.space import converted_products, products_worth_onednn, valid_graphs
from autolora.graphs.tensors import sizes_of, tensor_dtype
from autolora.objective import Objective, kinds_of
from autolora.problem import Problem
from autolora.timing.clock import Measure
from autolora.timing.data import DROPOUT, SCALING, Data, normal_numbers

_MOST_FLOPS = 1.3  # times the fewest of any graph
_PASSES = 5
_SLOW_NS = 3e6  # a step slower than this is timed at most twice, as its first call may be slow
_HOPELESS = 1.1  # and once if it takes this many times as long as another over the same axes
_SAME_STRUCTURE = 2  # graphs kept that differ only in orientations

Key = tuple[str, tuple[tuple[str, str, bool], ...]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted time of a graph.

    Args:
        graph: the graph.
        nanoseconds: sum of the times of its steps.
        everywhere: whether it uses oneDNN for every product that oneDNN can compute, even if BLAS
            was faster in isolation.
    """

    graph: BaseGraph
    nanoseconds: float
    everywhere: bool = False


def predict(
    problem: Problem,
    data: Data,
    objectives: Sequence[Objective],
    measure: Measure,
    rng: random.Random,
    parts: Sequence[BaseGraph] = (),
) -> list[Prediction]:
    """The graphs worth racing for some objectives, with predicted times, fastest first."""
    return screen(promising(problem, objectives), data, measure, rng)


def promising(problem: Problem, objectives: Sequence[Objective]) -> list[Graph]:
    """The graphs worth screening: those with at most 1.3 times the fewest FLOPs.

    Wide products run near peak speed, so that more FLOPs take more time. For the objective
    ``"memory"`` graphs are compared with those that save as many bytes, since saving less means
    recomputing tensors.
    """
    graphs = [graph for graph in valid_graphs(problem).values() if graph.forward != REFERENCE]
    flops = {graph: graph.flops(problem) for graph in graphs}
    lean = "memory" in kinds_of(objectives)
    levels = {graph: graph.saved_bytes(problem) if lean else 0 for graph in graphs}
    least: dict[int, int] = {}
    for graph, level in levels.items():
        least[level] = min(flops[graph], least.get(level, flops[graph]))
    return [graph for graph in graphs if flops[graph] <= _MOST_FLOPS * least[levels[graph]]]


def screen(
    graphs: Iterable[Graph], data: Data, measure: Measure, rng: random.Random
) -> list[Prediction]:
    """Predicts the time of every composed graph, fastest first.

    Each graph is predicted with the faster library for each product and, if that differs, with
    oneDNN for every product that it can compute: in isolation the operands of a thin product are in
    the cache, which favours BLAS, but between other steps they are not.
    """
    problem = data.problem
    steps: list[tuple[Graph, list[tuple[Key, Key, str]]]] = []
    lines_by_key: dict[Key, Line] = {}
    slow: set[Key] = set()
    for graph in graphs:
        if graph.forward == REFERENCE:
            continue
        by_blas = _lines(graph, problem)
        by_onednn = _lines(replace(graph, onednn=products_worth_onednn(graph, problem)), problem)
        converted = converted_products(graph, problem)
        keys = []
        for one, other in zip(by_blas, by_onednn, strict=True):
            pair = _key(one, problem), _key(other, problem)
            if one.writes in converted and pair[0] != pair[1]:
                slow.add(pair[0])
            lines_by_key.update(zip(pair, (one, other), strict=True))
            keys.append((*pair, one.writes))
        steps.append((graph, keys))
    times = _time(lines_by_key, slow, data, measure, rng)
    return sorted(
        (prediction for graph, keys in steps for prediction in _with_libraries(graph, keys, times)),
        key=lambda prediction: prediction.nanoseconds,
    )


def _with_libraries(
    graph: Graph, keys: Sequence[tuple[Key, Key, str]], times: Mapping[Key, float]
) -> Iterator[Prediction]:
    """The graph with the faster library for each product, and with oneDNN wherever possible."""
    faster = frozenset(out for one, other, out in keys if times[other] < times[one])
    yield Prediction(
        replace(graph, onednn=faster), sum(min(times[one], times[other]) for one, other, _ in keys)
    )
    possible = frozenset(out for one, other, out in keys if one != other)
    if faster and faster != possible:
        total = sum(times[other] for _, other, _ in keys)
        yield Prediction(replace(graph, onednn=possible), total, everywhere=True)


def distinct(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Keeps the first predictions of each structure, whose graphs differ in orientations only.

    Two with the faster library for each product, and two with oneDNN wherever possible.
    """
    structures: Counter[tuple[Hashable, bool]] = Counter()
    for prediction in predictions:
        structure = prediction.graph.structure, prediction.everywhere
        structures[structure] += 1
        if structures[structure] <= _SAME_STRUCTURE:
            yield prediction


def _time(
    distinct: Mapping[Key, Line],
    slow: Collection[Key],
    data: Data,
    measure: Measure,
    rng: random.Random,
) -> dict[Key, float]:
    """The time of each line; infinite for those of ``slow`` that take long even in float32."""
    values = _Values(data)
    runs = {key: partial(statement(line), values.of(line)) for key, line in distinct.items()}
    times: dict[Key, list[float]] = {key: [] for key in runs}
    with torch.no_grad():
        for passed in range(_PASSES):
            least = _least(times)
            for key in rng.sample(list(runs), len(runs)):
                if key in slow and (not passed or least.get(_axes(key), 0.0) > _SLOW_NS):
                    continue
                if _worth_timing(times[key], least.get(_axes(key), 0.0)):
                    times[key].append(measure(runs[key]))
    return {key: min(taken, default=inf) for key, taken in times.items()}


def _worth_timing(taken: Sequence[float], least: float) -> bool:
    if not taken or min(taken) < _SLOW_NS:
        return True
    return len(taken) < 2 and taken[0] <= _HOPELESS * least


def _least(times: Mapping[Key, Sequence[float]]) -> dict[str, float]:
    """The shortest time so far of steps over the same axes, which need as many FLOPs."""
    least: dict[str, float] = {}
    for key, taken in times.items():
        if taken:
            least[_axes(key)] = min(*taken, least.get(_axes(key), taken[0]))
    return least


def _axes(key: Key) -> str:
    return "".join(sorted({axis for axes, *_ in key[1] for axis in axes}))


def _lines(graph: Graph, problem: Problem) -> tuple[Line, ...]:
    forward, backward = lines(graph, problem)
    return forward + backward


def _key(line: Line, problem: Problem) -> Key:
    """What the time of a line depends on: the operation, and its operands without their names."""
    names = list(dict.fromkeys(line.reads))
    numbers = {name: f"${number}" for number, name in enumerate(names)}
    body = re.sub(r"\w+", lambda word: numbers.get(word[0], word[0]), line.text.partition(" = ")[2])
    return body, tuple(
        (AXES[_tensor(name)], _dtype(name, problem), name in line.views) for name in names
    )


def _tensor(variable: str) -> str:
    return variable.partition("_")[0]


def _dtype(variable: str, problem: Problem) -> str:
    tensor, _, converted = variable.partition("_")
    if converted:
        return converted
    if tensor in PARAMETERS:
        return problem.adapter_dtype
    return tensor_dtype(tensor, problem)


class _Values:
    """Tensors for the variables of lines: those of the problem, random ones for others."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.sizes = sizes_of(data.problem)
        self.made: dict[tuple[str, bool], Any] = {}
        self.generator = torch.Generator(data.X.device)  # leaves the default generator unchanged

    def of(self, line: Line) -> dict[str, object]:
        variables = [(name, name in line.views) for name in line.reads]
        for each in variables:
            if each not in self.made:
                self.made[each] = self._make(*each)
        values = {each[0]: self.made[each] for each in variables}
        return {**values, "s": SCALING, "sk": SCALING, "p": DROPOUT}

    def _make(self, variable: str, view: bool) -> Any:
        if variable == "Q":
            return self.data.W
        given = getattr(self.data, variable, None)
        if isinstance(given, Tensor):
            return given.detach()
        shape = [self.sizes[axis] for axis in AXES[_tensor(variable)]]
        dtype = getattr(torch, _dtype(variable, self.data.problem))
        transposed = view or (variable == "V" and self.data.problem.layout == "conv1d")
        shape = shape[::-1] if transposed else shape
        made = normal_numbers(shape, self.generator)
        made = made.gt(-1).to(dtype) if variable == "K" else made.to(dtype)
        return made.t() if transposed else made
