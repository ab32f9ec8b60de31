"""A graph: one way to compute a problem, forward and backward, and what it saves between them.

A graph is composed of a forward route, a choice of what is saved or recomputed, a route for each
gradient, an orientation for each thin product, and a matrix library for each float32 product on the
CPU. Steps, FLOPs, bytes and saved tensors are derived from that.
:mod:`autolora.graphs.space` enumerates the compositions, :mod:`autolora.graphs.source` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from autolora.graphs import backward, baseline, forward
from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.contraction import AXES, THIN_PRODUCTS, Step, elements_moved
from autolora.graphs.tensors import at_size_one, bytes_of, sizes_of, width
from autolora.problem import QUANTISED, Problem

# Tensors that both passes need; each graph saves or recomputes them.
SAVEABLE = ("h", "D", "U", "V")
_ALWAYS_SAVED = frozenset({"K", "N", "g"})  # a mask cannot be drawn twice; the rest is tiny
PARAMETERS = frozenset({"W", "Q", "b", "A", "B", "c", "M"})


@dataclass(frozen=True, slots=True)
class Graph(BaseGraph):
    """One composition; the fields are names from the tables of forward and backward routes.

    Args:
        forward: a route of :mod:`autolora.graphs.forward`, or ``"reference"``: plain autograd on
            the defining equation, step by step as PEFT runs it.
        saves: the tensors of :data:`SAVEABLE` that are saved for the backward pass.
        recomputes: those that the backward pass recomputes.
        dx: route to the gradient of X, ``""`` if it is not needed; likewise the others.
        da: route to the gradient of A.
        db: route to the gradient of B.
        dm: route to the gradient of M, DoRA's magnitude.
        transposed: the thin products computed as the transpose of the swapped product,
            ``(Xᵀ Z)ᵀ`` for ``Zᵀ X``: the same numbers in another memory order.
        onednn: the results of the products on the CPU that oneDNN computes in float32.
    """

    forward: str
    saves: frozenset[str] = frozenset()
    recomputes: frozenset[str] = frozenset()
    dx: str = ""
    da: str = ""
    db: str = ""
    dm: str = ""
    transposed: frozenset[str] = frozenset()
    onednn: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Stable and readable; what the cache stores."""
        if self.forward == REFERENCE:
            return REFERENCE
        parts = [self.forward]
        for tensor in SAVEABLE:
            if tensor in self.saves:
                parts.append(f"{tensor}=saved")
            elif tensor in self.recomputes and tensor != "V":  # "V=recomputed" is the default
                parts.append(f"{tensor}=recomputed")
        routes = {"dX": self.dx, "dA": self.da, "dB": self.db, "dM": self.dm}
        parts += [f"{gradient}={route}" for gradient, route in routes.items() if route]
        if self.transposed:
            parts.append("t=" + ",".join(t for t in THIN_PRODUCTS if t in self.transposed))
        if self.onednn:
            parts.append("onednn=" + ",".join(t for t in AXES if t in self.onednn))
        return "/".join(parts)

    def forward_steps(self, problem: Problem) -> tuple[Step, ...]:
        """The steps of the forward pass, in order."""
        return _forward_steps(self.forward, at_size_one(problem))

    def backward_steps(self, problem: Problem) -> tuple[Step, ...]:
        """The steps of the backward pass, in order."""
        return self._backward(problem)[0]

    def steps(self, problem: Problem) -> tuple[Step, ...]:
        """Forward and backward together."""
        return self.forward_steps(problem) + self.backward_steps(problem)

    def saved(self, problem: Problem) -> tuple[str, ...]:
        """The tensors saved for the backward pass, parameters included, sorted by name."""
        return self._backward(problem)[1]

    def flops(self, problem: Problem) -> int:
        """Multiplications and additions of all products, forward and backward."""
        if self.forward == REFERENCE:
            return baseline.flops(problem)
        sizes = sizes_of(problem)
        return sum(step.flops(sizes) for step in self.steps(problem))

    def bytes(self, problem: Problem) -> int:
        """Bytes read and written by all steps, each tensor once per step."""
        steps = baseline.products(problem) if self.forward == REFERENCE else self.steps(problem)
        return sum(moved_bytes(step, problem) for step in steps)

    def saved_bytes(self, problem: Problem) -> int:
        """Bytes saved for the backward pass beside the parameters."""
        if self.forward == REFERENCE:
            return baseline.saved_bytes(problem)
        return sum(
            bytes_of(tensor, problem) for tensor in self.saved(problem) if tensor not in PARAMETERS
        )

    def saved_input_bytes(self, problem: Problem) -> int:
        """Of these, the bytes of X itself, not of a copy in another dtype or after dropout."""
        if self.forward == REFERENCE:
            copied = problem.dropout or problem.compute_dtype != problem.dtype
            saved = "A" in problem.gradients and not copied
        else:
            saved = "X" in self.saved(problem)
        return bytes_of("X", problem) if saved else 0

    def _backward(self, problem: Problem) -> tuple[tuple[Step, ...], tuple[str, ...]]:
        """Of what a graph is composed of, some does not matter here: many graphs share these."""
        routes = self.dx, self.da, self.db, self.dm
        return _backward(self.saves, *routes, at_size_one(problem))

    @property
    def is_reference(self) -> bool:
        """Whether it is what PEFT runs."""
        return self.forward == REFERENCE

    @property
    def routes(self) -> tuple[str, str]:
        """The routes to Y and dX."""
        return self.forward, self.dx

    @property
    def routes_and_libraries(self) -> tuple[str, str, frozenset[str]]:
        """The routes to Y and dX, and which of their products oneDNN computes."""
        return *self.routes, self.onednn & {"Y", "U", "dX"}

    @property
    def structure(self) -> Graph:
        """The graph with every product as written, by BLAS."""
        return replace(self, transposed=frozenset(), onednn=frozenset())


def moved_bytes(step: Step, problem: Problem) -> int:
    """Bytes that a step reads and writes, each tensor once."""
    return sum(
        count * width(tensor, problem)
        for tensor, count in elements_moved(step, sizes_of(problem)).items()
        if tensor != "b" or problem.bias
    )


@lru_cache(maxsize=1024)
def _forward_steps(name: str, problem: Problem) -> tuple[Step, ...]:
    given = frozenset({*_given(problem), "b"})
    return _resolved(forward.routes(problem)[name], given, _source(problem))


@lru_cache(maxsize=8192)
def _backward(
    saves: frozenset[str], dx: str, da: str, db: str, dm: str, problem: Problem
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps of a backward pass, and the tensors that it needs of the forward pass."""
    routes = backward.routes(problem)
    taken = {"M": dm, "c": "", "B": db, "A": da, "X": dx}
    ends = [  # dB after Z, and dA after that: each reads what the one before left in cache
        step
        for needed, route in taken.items()
        if needed in routes
        for step in routes[needed][route]
    ]
    given = frozenset({*_given(problem), "G", *_ALWAYS_SAVED, *saves})
    steps = _resolved(ends, given, _source(problem))
    written = {step.out for step in steps}
    reads = {name for step in steps for name in step.reads}
    return steps, tuple(sorted(reads - written - {"G"}))


def _given(problem: Problem) -> tuple[str, ...]:
    return ("X", "Q" if problem.layout in QUANTISED else "W", "A", "B", "c", "M")


def _source(problem: Problem) -> dict[str, Step]:
    return {**forward.intermediates(problem), **backward.intermediates(problem)}


def _resolved(
    ends: Sequence[Step], given: frozenset[str], source: Mapping[str, Step]
) -> tuple[Step, ...]:
    """The steps, preceded by those that make the intermediates that they read."""
    steps: list[Step] = []
    known = set(given)

    def append(step: Step) -> None:
        for name in step.reads:
            if name not in known and name in source:
                append(source[name])
        known.add(step.out)
        steps.append(step)

    for step in ends:
        append(step)
    return tuple(steps)
