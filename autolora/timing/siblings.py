"""Measuring the graphs of sibling layers: their data, what may be fast, and verdicts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

import torch
from torch import Tensor

from autolora.cache.records.candidate import Verdict
from autolora.graphs.base import BaseGraph
from autolora.graphs.function import LayerTensors
from autolora.graphs.graph import Graph
from autolora.graphs.operators import dequantize
from autolora.graphs.siblings.function import run_siblings, run_siblings_traced
from autolora.graphs.siblings.graph import SiblingGraph
from autolora.graphs.siblings.source import sibling_executable
from autolora.graphs.siblings.space import apart, compositions, reference_graph
from autolora.graphs.unmeasured import analytic_graph
from autolora.objective import Objective
from autolora.problem import COMPILED, EAGER, Siblings
from autolora.timing import data
from autolora.timing.accuracy import (
    MAGNITUDES,
    Both,
    Figures,
    exactly,
    gain_of,
    judged,
    judged_at,
    relative_error,
)
from autolora.timing.clock import Measure, least_times
from autolora.timing.compiling import compiled
from autolora.timing.data import SCALING
from autolora.timing.screen import Prediction

_PASSES = 4
_KEPT = 64  # layers, which verdict and race share: compiling them takes seconds

Layers = Callable[[Tensor, Sequence[LayerTensors]], Sequence[Tensor]]


@dataclass(slots=True)
class Data:
    """The tensors of sibling layers, of which those in ``problem.gradients`` need a gradient.

    Args:
        problem: of the layers.
        X: of all of them.
        layers: the tensors of each, as in :class:`autolora.timing.data.Data`.
    """

    problem: Siblings
    X: Tensor
    layers: list[data.Data]

    @classmethod
    def random(
        cls, problem: Siblings, device: torch.device, *, magnitude: float = 0.1, seed: int = 0
    ) -> Data:
        """Draws the tensors of a problem on a device.

        Raises:
            AutoloraError: W is quantised and bitsandbytes is not installed.
        """
        layers = [
            data.Data.random(part, device, magnitude=magnitude, seed=seed + number)
            for number, part in enumerate(problem.parts)
        ]
        X = layers[0].X
        return cls(problem, X, [replace(layer, X=X) for layer in layers])

    def forward(self, graph: SiblingGraph) -> Callable[[], Sequence[Tensor]]:
        """Every Y along a graph, in the problem's mode."""
        layers = _layers(graph, self.problem)
        tensors = [layer.tensors for layer in self.layers]
        return lambda: layers(self.X, tensors)

    def step(self, graph: SiblingGraph) -> Callable[[], object]:
        """Forward and backward along a graph."""
        return self._backward(self.forward(graph))

    def floor(self) -> Callable[[], object]:
        """Forward and backward of the layers without adapters."""
        layers = _floor(self.problem)
        tensors = [layer.tensors for layer in self.layers]
        return self._backward(lambda: layers(self.X, tensors))

    def clear(self) -> None:
        """Drops the gradients of the last step."""
        for layer in self.layers:
            layer.clear()

    def _backward(self, forward: Callable[[], Sequence[Tensor]]) -> Callable[[], object]:
        gradients = [layer.G for layer in self.layers]

        def step() -> None:
            outputs = forward()
            if outputs[0].requires_grad:
                torch.autograd.backward(outputs, gradients)

        return step


@lru_cache(maxsize=_KEPT)
def _layers(graph: SiblingGraph, problem: Siblings) -> Layers:
    """A graph as a function of X and the tensors of every layer."""
    compiles = problem.mode == COMPILED
    if graph.is_joint:
        made = sibling_executable(graph, problem)
        scalings = [SCALING] * len(problem.ranks)
        runs = run_siblings_traced if compiles else run_siblings

        def layers(X: Tensor, tensors: Sequence[LayerTensors]) -> Sequence[Tensor]:
            return runs(made, X, tensors, scalings)

    else:
        alone = [data.layer_along(*each) for each in graph.alone(problem)]

        def layers(X: Tensor, tensors: Sequence[LayerTensors]) -> Sequence[Tensor]:
            return [run(X, own) for run, own in zip(alone, tensors, strict=True)]

    return compiled(layers) if compiles else layers


@lru_cache(maxsize=_KEPT)
def _floor(problem: Siblings) -> Layers:
    """The layers without adapters, as a function of X and their tensors."""

    def layers(X: Tensor, tensors: Sequence[LayerTensors]) -> Sequence[Tensor]:
        return [data.without_adapter(X, W, b) for W, b, *_ in tensors]

    return compiled(layers) if problem.mode == COMPILED else layers


def predict(
    problem: Siblings,
    given: Data,
    objectives: Sequence[Objective],
    measure: Measure,
    rng: random.Random,
    parts: Sequence[BaseGraph],
) -> list[Prediction]:
    """The graphs worth racing, fastest first: there are so few that whole steps are timed, eager.

    Args:
        problem: of the layers.
        given: its tensors.
        objectives: time is always one; nothing keeps more than the layers one by one.
        measure: times one call.
        rng: shuffles the order.
        parts: the graphs of the single layers, those of their records where there are any.
    """
    layers = [graph for graph in parts if isinstance(graph, Graph)] or [
        analytic_graph(part) for part in problem.parts
    ]
    graphs = [apart(layers), *compositions(problem, layers)]
    eager = replace(given, problem=problem.in_mode(EAGER))
    runs = {graph: eager.step(graph) for graph in graphs}
    times = least_times(runs, measure, rng, passes=_PASSES, between=given.clear)
    given.clear()
    fitting = [graph for graph in graphs if times[graph] < inf]
    return [Prediction(graph, times[graph]) for graph in sorted(fitting, key=times.__getitem__)]


def verdict(graph: SiblingGraph, problem: Siblings, device: torch.device) -> Verdict:
    """Whether every layer is as accurate along a graph as along the reference graph.

    See :func:`autolora.timing.accuracy.verdict`; of the layers the worst counts.
    """
    small = judged_at(problem)
    mine, theirs = (_figures(each, small, device) for each in (graph, reference_graph(small)))
    return judged(mine, theirs, problem)


@lru_cache(maxsize=256)
def _figures(graph: SiblingGraph, problem: Siblings, device: torch.device) -> Both:
    first, second = (_measured(graph, problem, device, magnitude) for magnitude in MAGNITUDES)
    return first, second


def _measured(
    graph: SiblingGraph, problem: Siblings, device: torch.device, magnitude: float
) -> Figures:
    given, exact, effects = _oracle(problem, device, magnitude)
    given.clear()
    outputs = given.forward(graph)()
    torch.autograd.backward(outputs, [layer.G for layer in given.layers])
    errors = {"Y": 0.0, "dX": 0.0, "dA": 0.0, "dB": 0.0}
    results = _results(outputs, given.X, [layer.leaves for layer in given.layers])
    for name, values in results.items():
        pairs = zip(values, exact[name], strict=True)
        errors[name] = max(relative_error(value, right) for value, right in pairs)
    layers = [
        replace(layer, B=torch.zeros_like(layer.B).requires_grad_()) for layer in given.layers
    ]
    without = replace(given, layers=layers).forward(graph)()
    gains = [
        gain_of(Y, Y0.detach(), effect)
        for Y, Y0, effect in zip(results["Y"], without, effects, strict=True)
    ]
    gain, noise = max(gains, key=lambda each: abs(each[0] - 1))
    return Figures({name: errors[name] for name in results}, gain, noise)


def _results(
    outputs: Sequence[Tensor], X: Tensor, leaves: Sequence[dict[str, Tensor]]
) -> dict[str, list[Tensor]]:
    """Every Y and the gradients, by name."""
    found = {"Y": [Y.detach().clone() for Y in outputs]}  # CUDA graphs reuse their memory
    if X.grad is not None:
        found["dX"] = [X.grad]
    for name in ("A", "B"):
        gradients = [own[name].grad for own in leaves]
        found[f"d{name}"] = [gradient for gradient in gradients if gradient is not None]
    return found


@lru_cache(maxsize=2)
def _oracle(
    problem: Siblings, device: torch.device, magnitude: float
) -> tuple[Data, dict[str, list[Tensor]], list[Tensor]]:
    """The data, their results in float64, and the exact effect of each adapter on its Y."""
    given = Data.random(problem, device, magnitude=magnitude, seed=1)
    X = given.X.detach().double().requires_grad_(given.X.requires_grad)
    one = torch.ones((), dtype=torch.float64, device=device)
    leaves, outputs, effects = [], [], []
    for layer in given.layers:
        own = {name: layer.leaves[name].detach().double().requires_grad_() for name in "AB"}
        weight = layer.W if isinstance(layer.W, Tensor) else dequantize(layer.W, layer.X.dtype)
        frozen = weight.double(), None if layer.b is None else layer.b.double()
        outputs.append(exactly(*frozen, {"X": X, **own}, one))
        with torch.no_grad():
            without = {"X": X, "A": own["A"], "B": torch.zeros_like(own["B"])}
            effects.append(outputs[-1] - exactly(*frozen, without, one))
        leaves.append(own)
    torch.autograd.backward(outputs, [layer.G.double() for layer in given.layers])
    return given, _results(outputs, X, leaves), effects


forget_oracles = _oracle.cache_clear
