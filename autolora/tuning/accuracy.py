"""A graph's numeric verdict: it may be used only if it is as accurate as the reference graph.

Measured on random data against float64, at two sizes of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from autolora.cache.record import Verdict
from autolora.graphs.function import reference
from autolora.graphs.graph import Graph
from autolora.graphs.space import reference_graph
from autolora.problem import Problem
from autolora.tuning.data import SCALING, Data

MAGNITUDES = (1e-1, 1e-3)  # of ‖s·BA‖/‖W‖: a trained adapter, and one that has hardly begun
OUTPUTS = ("Y", "dX", "dA", "dB")

_TOLERANCE = 2.0  # times the reference's own error
# Added to it: what the order of summation alone may change. Two float32 libraries differ by a few
# units in the last place over a long sum; in the 16-bit dtypes the rounding of the result hides it.
_FLOOR = {"float64": 1e-15, "float32": 5e-7, "float16": 6e-5, "bfloat16": 5e-4}
_GAIN_FLOOR = 5e-3
_TOKENS = 64  # errors hardly depend on tokens; the oracle's cost does


@dataclass(frozen=True, slots=True)
class _Figures:
    """Relative errors of the outputs and the adapter gain, at one magnitude."""

    errors: Mapping[str, float]
    gain: float


def verdict(graph: Graph, problem: Problem, device: torch.device) -> Verdict:
    """Whether a graph is as accurate as the reference graph of its problem.

    The relative error of an output is ``‖V − V₆₄‖ / ‖V₆₄‖`` over Y, dX, dA and dB. The adapter gain
    is ``⟨Y − Y₀, ΔY⟩ / ‖ΔY‖²`` with Y₀ the same graph at B = 0 and ΔY the exact effect of the
    adapter: 1 if the sum keeps it, 0 if rounding swallows it. Each error may be at most twice the
    reference's, the gain at most twice as far from 1, both with a small floor.
    """
    small = problem.at(min(problem.tokens, _TOKENS))
    mine = _figures(graph, small, device)
    theirs = _figures(reference_graph(small), small, device)
    reason = ""
    for magnitude, figures, limits in zip(MAGNITUDES, mine, theirs, strict=True):
        for output, error in figures.errors.items():
            dtype = problem.compute_dtype if output in ("dA", "dB") else problem.dtype
            allowed = _TOLERANCE * limits.errors[output] + _FLOOR[dtype]
            if not error <= allowed:
                reason = reason or (
                    f"error of {output} {error:.1e} > {allowed:.1e} at adapter size {magnitude:g}"
                )
        allowed = _TOLERANCE * abs(limits.gain - 1) + _GAIN_FLOOR
        if not abs(figures.gain - 1) <= allowed:
            reason = reason or f"adapter gain {figures.gain:.3f} at adapter size {magnitude:g}"
    return Verdict(
        ok=not reason,
        errors={
            output: (_short(mine[0].errors[output]), _short(mine[1].errors[output]))
            for output in mine[0].errors
        },
        gain=(_short(mine[0].gain), _short(mine[1].gain)),
        reason=reason,
    )


@lru_cache(maxsize=1024)
def _figures(graph: Graph, problem: Problem, device: torch.device) -> tuple[_Figures, _Figures]:
    first, second = (_at(graph, problem, device, magnitude) for magnitude in MAGNITUDES)
    return first, second


def _at(graph: Graph, problem: Problem, device: torch.device, magnitude: float) -> _Figures:
    data, exact, effect = _oracle(problem, device, magnitude)
    data.clear()
    Y = data.forward(graph)()
    results = {"Y": Y.detach()}
    if Y.requires_grad:
        Y.backward(data.G)  # type: ignore[no-untyped-call]
        results |= {
            f"d{name}": tensor.grad
            for name, tensor in data.leaves.items()
            if tensor.grad is not None
        }
    errors = {name: _relative(value, exact[name]) for name, value in results.items()}
    with torch.no_grad():
        Y0 = replace(data, B=torch.zeros_like(data.B)).forward(graph)()
    moved = (results["Y"].double() - Y0.double()).flatten()
    flat = effect.flatten()
    return _Figures(errors, float(moved @ flat / (flat @ flat)))


@lru_cache(maxsize=4)
def _oracle(
    problem: Problem, device: torch.device, magnitude: float
) -> tuple[Data, dict[str, Tensor], Tensor]:
    """The data, its results in float64, and the exact effect of the adapter on Y."""
    data = Data.random(problem, device, magnitude=magnitude, seed=1)
    leaves = {
        name: tensor.detach().double().requires_grad_(tensor.requires_grad)
        for name, tensor in data.leaves.items()
    }
    W, b = data.W.double(), None if data.b is None else data.b.double()
    X, A, B = leaves["X"], leaves["A"], leaves["B"]
    Y = reference(X, W, b, A, B, SCALING, torch.float64)
    exact = {"Y": Y.detach()}
    if Y.requires_grad:
        Y.backward(data.G.double())  # type: ignore[no-untyped-call]
        exact |= {f"d{name}": t.grad for name, t in leaves.items() if t.grad is not None}
    effect = (X @ A.t() @ B.t() * SCALING).detach()
    return data, exact, effect


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def _short(figure: float) -> float:
    """Four digits: more say nothing, and records are many."""
    return float(f"{figure:.4g}")
