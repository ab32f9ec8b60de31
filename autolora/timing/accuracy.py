"""Accuracy verdicts: a graph may be used only if it is as accurate as the reference graph.

Measured on random data against float64, at two adapter sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from autolora.cache.records.candidate import Verdict
from autolora.graphs.base import BaseGraph
from autolora.graphs.dropout import dropout_mask
from autolora.graphs.graph import Graph
from autolora.graphs.operators import dequantize
from autolora.graphs.space import reference_graph
from autolora.problem import COMPILED, BaseProblem, Problem
from autolora.timing.data import SCALING, Data

MAGNITUDES = (1e-1, 1e-3)  # ‖s·BA‖/‖W‖ of a trained adapter and of one at the start of training

_TOLERANCE = 2.0  # times the reference's own error
# Added to it, for the order of summation: two float32 libraries differ by a few units in the last
# place over a long sum; in the 16-bit dtypes the rounding of the result hides it.
_FLOOR = {"float64": 1e-15, "float32": 5e-7, "float16": 6e-5, "bfloat16": 5e-4}
_GAIN_FLOOR = 5e-3
_TOKENS = 64  # at most: errors hardly depend on tokens, the time of the float64 reference does


@dataclass(frozen=True, slots=True)
class Figures:
    """Relative errors of the outputs, the adapter gain and its standard error, at one size.

    The gain is the slope of a regression over the elements of Y.
    """

    errors: Mapping[str, float]
    gain: float
    noise: float


Both = tuple[Figures, Figures]  # at both adapter sizes
P = TypeVar("P", bound=BaseProblem)


def verdict(graph: Graph, problem: Problem, device: torch.device) -> Verdict:
    """Whether a graph is as accurate as the reference graph of its problem.

    The relative error of an output is ``‖V − V₆₄‖ / ‖V₆₄‖`` over Y and the gradients. The adapter
    gain is ``⟨Y − Y₀, ΔY⟩ / ‖ΔY‖²`` with Y₀ the same graph at B = 0 and ΔY the exact effect of the
    adapter: 1 if Y contains it fully, 0 if it is lost in rounding. Each error may be at most twice
    the reference's, and the gain at most twice as far from 1, plus a small floor and, for the gain,
    two standard errors.
    """
    small = judged_at(problem)
    return judged(
        _figures(graph, small, device), _figures(reference_graph(small), small, device), problem
    )


def judged_at(problem: P) -> P:
    """The problem at the token count that verdicts are measured at."""
    # compiled code is what is judged, and another size would be other code
    return problem if problem.mode == COMPILED else problem.at(min(problem.tokens, _TOKENS))


def judged(mine: Both, theirs: Both, problem: Any) -> Verdict:
    """The verdict on a graph with some figures, given those of the reference graph."""
    reason = ""
    for magnitude, figures, limits in zip(MAGNITUDES, mine, theirs, strict=True):
        for output, error in figures.errors.items():
            dtype = problem.dtype if output in ("Y", "dX") else problem.compute_dtype
            allowed = _TOLERANCE * limits.errors[output] + _FLOOR[dtype]
            if not error <= allowed:
                reason = reason or (
                    f"error of {output} {error:.1e} > {allowed:.1e} at adapter size {magnitude:g}"
                )
        noise = 2 * (figures.noise + limits.noise)
        allowed = _TOLERANCE * abs(limits.gain - 1) + _GAIN_FLOOR + noise
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
def _figures(graph: Graph, problem: Problem, device: torch.device) -> Both:
    first, second = (_measured(graph, problem, device, magnitude) for magnitude in MAGNITUDES)
    return first, second


def _measured(graph: Graph, problem: Problem, device: torch.device, magnitude: float) -> Figures:
    return figures_on(*_oracle(problem, device, magnitude), graph, lambda: _same_mask(device))


def figures_on(
    data: Any,
    exact: Mapping[str, Tensor],
    effect: Tensor,
    graph: BaseGraph,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Figures:
    """The figures of a graph on some data.

    Args:
        data: of a problem, with ``forward(graph)``, ``leaves``, B and G.
        exact: its results in float64.
        effect: of the adapter on Y, in float64.
        graph: that is judged.
        around: the context of a forward pass.
    """
    data.clear()
    with around():
        Y = data.forward(graph)()
    results = {"Y": Y.detach().clone()}  # CUDA graphs write the next Y into the same memory
    if Y.requires_grad:
        Y.backward(data.G)
        results |= gradients_of(data.leaves)
    errors = {name: relative_error(value, exact[name]) for name, value in results.items()}
    without = torch.zeros_like(data.B).requires_grad_(data.B.requires_grad)
    with around():
        Y0 = replace(data, B=without).forward(graph)().detach()
    return Figures(errors, *gain_of(results["Y"], Y0, effect))


def gain_of(Y: Tensor, Y0: Tensor, effect: Tensor) -> tuple[float, float]:
    """The adapter gain and its standard error; Y0 is Y without the adapter."""
    moved = (Y.double() - Y0.double()).flatten()
    flat = effect.flatten()
    gain = moved @ flat / (flat @ flat)
    noise = (moved - gain * flat).norm() / (flat.norm() * flat.numel() ** 0.5)
    return float(gain), float(noise)


@contextmanager
def _same_mask(device: torch.device) -> Iterator[None]:
    """Seeds the generator that dropout masks are drawn from."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # torch.manual_seed takes a millisecond: it seeds all devices, whose states are not kept
        on_gpu = device.type == "cuda"
        own = torch.cuda.default_generators[device.index] if on_gpu else torch.default_generator
        own.manual_seed(1)
        yield


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
    weight = data.W if isinstance(data.W, Tensor) else dequantize(data.W, data.X.dtype)
    frozen = weight.double(), None if data.b is None else data.b.double()
    mask = torch.ones((), dtype=torch.float64, device=device)
    if problem.dropout:
        with _same_mask(device):
            mask = dropout_mask(data.X, data.p, data.A.dtype).double() / (1 - data.p)
    Y = exactly(*frozen, leaves, mask)
    exact = {"Y": Y.detach()}
    if Y.requires_grad:
        Y.backward(data.G.double())  # type: ignore[no-untyped-call]
        exact |= gradients_of(leaves)
    with torch.no_grad():
        without = {**leaves, "B": torch.zeros_like(leaves["B"])}
        effect = exact["Y"] - exactly(*frozen, without, mask)
    return data, exact, effect


forget_oracles = _oracle.cache_clear


def exactly(W: Tensor, b: Tensor | None, leaves: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """The defining equation; ``mask`` is dropout's, times 1 / (1 - p)."""
    X, A, B = leaves["X"], leaves["A"], leaves["B"]
    D = X * mask
    Y, U = X @ W.t(), SCALING * (D @ A.t() @ B.t())
    if "M" in leaves:
        g = leaves["M"] / (W + SCALING * B.detach() @ A.detach()).norm(dim=1)
        Y, U = Y + (g - 1) * (D @ W.t()), g * U
    if "c" in leaves:
        U = U + SCALING * leaves["c"]
    return Y + U if b is None else Y + U + b


def gradients_of(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of leaves that have one: ``{"dA": ...}``."""
    return {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def relative_error(value: Tensor, exact: Tensor) -> float:
    """``‖value − exact‖ / ‖exact‖``."""
    return float((value.double() - exact).norm() / exact.norm())


def _short(figure: float) -> float:
    """Rounds to four significant digits, to keep records short."""
    return float(f"{figure:.4g}")
