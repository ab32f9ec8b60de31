"""Accuracy verdicts of graphs of experts, see :mod:`autolora.timing.accuracy`."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from autolora.cache.records.candidate import Verdict
from autolora.graphs.experts.graph import ExpertsGraph
from autolora.graphs.experts.reference import reference
from autolora.graphs.experts.space import reference_graph
from autolora.problem import Experts
from autolora.timing.accuracy import (
    MAGNITUDES,
    Both,
    figures_on,
    gradients_of,
    judged,
)
from autolora.timing.data import SCALING
from autolora.timing.experts.data import Data

_JUDGED = {"tokens": 64, "experts": 4, "top_k": 2}  # at most: errors do not depend on them


def verdict(graph: ExpertsGraph, problem: Experts, device: torch.device) -> Verdict:
    """Whether a graph is as accurate as PEFT's path, on a few experts.

    See :func:`autolora.timing.accuracy.verdict`.
    """
    small = replace(problem, **{n: min(most, getattr(problem, n)) for n, most in _JUDGED.items()})
    mine, theirs = (_figures(each, small, device) for each in (graph, reference_graph(small)))
    return judged(mine, theirs, problem)


@lru_cache(maxsize=1024)
def _figures(graph: ExpertsGraph, problem: Experts, device: torch.device) -> Both:
    first, second = (
        figures_on(*_oracle(problem, device, magnitude), graph) for magnitude in MAGNITUDES
    )
    return first, second


@lru_cache(maxsize=2)
def _oracle(
    problem: Experts, device: torch.device, magnitude: float
) -> tuple[Data, dict[str, Tensor], Tensor]:
    """The data, their results in float64, and the exact effect of the adapters on Y."""
    data = Data.random(problem, device, magnitude=magnitude, seed=1)
    leaves = {
        name: leaf.detach().double().requires_grad_(leaf.requires_grad)
        for name, leaf in data.leaves.items()
    }
    conv1d = problem.layout == "conv1d"
    frozen = data.W.double(), None if data.b is None else data.b.double()

    def exactly(B: Tensor) -> Tensor:
        X, A = leaves["X"], leaves["A"]
        return reference(X, *frozen, A, B, SCALING, data.routing, "eager", conv1d=conv1d)

    Y = exactly(leaves["B"])
    exact = {"Y": Y.detach()}
    if Y.requires_grad:
        Y.backward(data.G.double())  # type: ignore[no-untyped-call]
        exact |= gradients_of(leaves)
    with torch.no_grad():
        effect = exact["Y"] - exactly(torch.zeros_like(leaves["B"]))
    return data, exact, effect


forget_oracles = _oracle.cache_clear
