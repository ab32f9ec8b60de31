"""Predicting every graph from its parts: each distinct step is timed once, in isolation.

The cost grows with the number of distinct steps, some forty, not with the number of graphs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.contraction import AXES
from autolora.graphs.graph import Graph
from autolora.graphs.source import PARAMETERS, Line, lines, statement
from autolora.graphs.space import onednn_products, valid_graphs
from autolora.graphs.tensors import sizes_of, tensor_dtype
from autolora.objective import Objective, kinds_of
from autolora.problem import Problem
from autolora.timing.clock import Measure
from autolora.timing.data import DROPOUT, SCALING, Data, normal_numbers

_MOST_FLOPS = 1.3  # of the least that any graph needs
_PASSES = 5
_SLOW_NS = 3e6  # a step slower than this is timed twice at most, since its first call may warm it
_HOPELESS = 1.1  # and once only if it then takes this much longer than another over the same axes
_SAME_STRUCTURE = 2  # graphs kept that differ in orientations alone

Key = tuple[str, tuple[tuple[str, str, bool], ...]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a graph is expected to cost.

    Args:
        graph: the graph.
        nanoseconds: the sum of its steps.
        everywhere: whether oneDNN was put wherever it can be, though another was faster alone.
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
) -> list[Prediction]:
    """The graphs worth racing for some objectives with their predicted times, fastest first."""
    return screen(promising(problem, objectives), data, measure, rng)


def promising(problem: Problem, objectives: Sequence[Objective]) -> list[Graph]:
    """The graphs worth screening: wide products run near the peak, so FLOPs far above lose.

    For memory each number of saved bytes has a least of its own: to keep less, a graph computes
    tensors again, and needs more FLOPs than the others.
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
    """Every composed graph with the sum of its steps, fastest first.

    Each has the faster library for each product; and once more, where that is another graph, oneDNN
    for all that it could compute: alone a thin product finds its operands in the cache, which suits
    BLAS, but not between the other steps.
    """
    problem = data.problem
    parts: list[tuple[Graph, list[tuple[Key, Key, str]]]] = []
    lines_by_key: dict[Key, Line] = {}
    for graph in graphs:
        if graph.forward == REFERENCE:
            continue
        by_blas = _lines(graph, problem)
        by_onednn = _lines(replace(graph, onednn=onednn_products(graph, problem)), problem)
        keys = []
        for one, other in zip(by_blas, by_onednn, strict=True):
            pair = _key(one, problem), _key(other, problem)
            lines_by_key.update(zip(pair, (one, other), strict=True))
            keys.append((*pair, one.writes))
        parts.append((graph, keys))
    times = _time(lines_by_key, data, measure, rng)
    return sorted(
        (prediction for graph, keys in parts for prediction in _with_libraries(graph, keys, times)),
        key=lambda prediction: prediction.nanoseconds,
    )


def _with_libraries(
    graph: Graph, keys: Sequence[tuple[Key, Key, str]], times: Mapping[Key, float]
) -> Iterator[Prediction]:
    """The graph with the faster library for each product, and with oneDNN wherever it can be."""
    faster = frozenset(out for one, other, out in keys if times[other] < times[one])
    yield Prediction(
        replace(graph, onednn=faster), sum(min(times[one], times[other]) for one, other, _ in keys)
    )
    possible = frozenset(out for one, other, out in keys if one != other)
    if faster and faster != possible:
        total = sum(times[other] for _, other, _ in keys)
        yield Prediction(replace(graph, onednn=possible), total, everywhere=True)


def distinct(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """The predictions in their order, few of a structure: the rest is orientations.

    Two with the libraries that were faster alone, and two with oneDNN wherever it can be.
    """
    structures: Counter[tuple[Hashable, bool]] = Counter()
    for prediction in predictions:
        structure = prediction.graph.structure, prediction.everywhere
        structures[structure] += 1
        if structures[structure] <= _SAME_STRUCTURE:
            yield prediction


def _time(
    distinct: Mapping[Key, Line], data: Data, measure: Measure, rng: random.Random
) -> dict[Key, float]:
    values = _Values(data)
    runs = {key: partial(statement(line), values.of(line)) for key, line in distinct.items()}
    times: dict[Key, list[float]] = {key: [] for key in runs}
    with torch.no_grad():
        for _ in range(_PASSES):
            least = _least(times)
            for key in rng.sample(list(runs), len(runs)):
                if _worth_timing(times[key], least.get(_axes(key), 0.0)):
                    times[key].append(measure(runs[key]))
    return {key: min(taken) for key, taken in times.items()}


def _worth_timing(taken: Sequence[float], least: float) -> bool:
    if not taken or min(taken) < _SLOW_NS:
        return True
    return len(taken) < 2 and taken[0] <= _HOPELESS * least


def _least(times: Mapping[Key, Sequence[float]]) -> dict[str, float]:
    """The shortest time so far among the steps over the same axes, which are as much work."""
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
    """What the time of a line depends on: the operation, and its operands but for their names."""
    body = line.text.partition(" = ")[2]
    operands = []
    for position, name in enumerate(dict.fromkeys(line.reads)):
        body = _renamed(body, name, f"${position}")
        operands.append((AXES[_tensor(name)], _dtype(name, problem), name in line.views))
    return body, tuple(operands)


def _renamed(body: str, name: str, other: str) -> str:
    out, word = [], ""
    for character in f"{body} ":
        if character.isalnum() or character == "_":
            word += character
        else:
            out += [other if word == name else word, character]
            word = ""
    return "".join(out).rstrip()


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
    """Random tensors for the variables of lines; X, W, G, A and B are those of the problem."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.sizes = sizes_of(data.problem)
        self.made: dict[tuple[str, bool], Any] = {}
        self.generator = torch.Generator(data.X.device)  # the caller's own stays untouched

    def of(self, line: Line) -> dict[str, object]:
        values: dict[str, object] = {name: self._value(name, line) for name in line.reads}
        return {**values, "s": SCALING, "sk": SCALING, "p": DROPOUT}

    def _value(self, variable: str, line: Line) -> Any:
        view = variable in line.views
        if (variable, view) not in self.made:
            self.made[variable, view] = self._make(variable, view)
        return self.made[variable, view]

    def _make(self, variable: str, view: bool) -> Any:
        if variable == "Q":
            return self.data.W
        given = getattr(self.data, variable, None)
        if isinstance(given, Tensor):
            return given.detach()
        shape = [self.sizes[axis] for axis in AXES[_tensor(variable)]]
        dtype = getattr(torch, _dtype(variable, self.data.problem))
        turned = view or (variable == "V" and self.data.problem.layout == "conv1d")
        shape = shape[::-1] if turned else shape
        made = normal_numbers(shape, self.generator)
        made = made.gt(-1).to(dtype) if variable == "K" else made.to(dtype)
        return made.t() if turned else made
