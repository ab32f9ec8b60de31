"""A graph: one forward and one backward way to compute a problem, with what is saved between them.

Graphs are composed: a forward, h saved or recomputed, a route for each gradient, for each thin
product one of two orientations, and for float32 products on the CPU one of two matrix libraries.
This room says which compositions a problem has and derives their steps, FLOPs, bytes and saved
tensors; :mod:`autolora.graphs.source` makes them run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from autolora.graphs import backward, forward
from autolora.graphs.contraction import (
    ADAPTER_TENSORS,
    AXES,
    THIN_PRODUCTS,
    Contraction,
    Step,
    axis_sizes,
    size_of,
)
from autolora.problem import Problem

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
REFERENCE = "reference"

_INTERMEDIATES: Mapping[str, Step] = {**forward.INTERMEDIATES, **backward.INTERMEDIATES}
_FORWARD_INPUTS = frozenset({"X", "W", "b", "A", "B"})
_BACKWARD_INPUTS = frozenset({"G", "X", "W", "A", "B"})


@dataclass(frozen=True, slots=True)
class Graph:
    """One composition; the fields are names from the tables of forward and backward routes.

    Args:
        forward: key of :data:`autolora.graphs.forward.FORWARDS`, or ``"reference"``: plain autograd
            on the defining equation, step by step as PEFT runs it.
        saves_h: whether h is kept for the backward pass (else computed again if needed).
        dx: route to the gradient of X, ``""`` where it is not needed; likewise ``da`` and ``db``.
        da: route to the gradient of A.
        db: route to the gradient of B.
        transposed: the thin products that are computed as the transpose of the swapped product,
            ``(Xᵀ Z)ᵀ`` for ``Zᵀ X``: the same numbers in another memory order.
        onednn: the products, by what they make, that oneDNN computes instead of BLAS.
    """

    forward: str
    saves_h: bool = False
    dx: str = ""
    da: str = ""
    db: str = ""
    transposed: frozenset[str] = frozenset()
    onednn: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Stable and readable; what the cache stores."""
        if self.forward == REFERENCE:
            return REFERENCE
        parts = [self.forward]
        if self.db == "via_h":
            parts.append(f"h={'saved' if self.saves_h else 'recomputed'}")
        parts += [
            f"{label}={route}"
            for label, route in (("dX", self.dx), ("dA", self.da), ("dB", self.db))
            if route
        ]
        if self.transposed:
            parts.append("t=" + ",".join(t for t in THIN_PRODUCTS if t in self.transposed))
        if self.onednn:
            parts.append("onednn=" + ",".join(t for t in AXES if t in self.onednn))
        return "/".join(parts)

    @property
    def forward_steps(self) -> tuple[Step, ...]:
        """The steps of the forward pass, in order."""
        return _resolved(forward.FORWARDS[self.forward], _FORWARD_INPUTS)

    @property
    def backward_steps(self) -> tuple[Step, ...]:
        """The steps of the backward pass, in order."""
        routes = (  # dB after Z, and dA after that: each reads what the one before left in cache
            *(backward.DB[self.db] if self.db else ()),
            *(backward.DA[self.da] if self.da else ()),
            *(backward.DX[self.dx] if self.dx else ()),
        )
        return _resolved(routes, _BACKWARD_INPUTS | ({"h"} if self.saves_h else set()))

    @property
    def saved(self) -> tuple[str, ...]:
        """The tensors kept from forward to backward, sorted by name."""
        steps = self.backward_steps
        given = {name for step in steps for name in step.reads} - {step.out for step in steps}
        return tuple(sorted(given - {"G"}))

    @property
    def steps(self) -> tuple[Step, ...]:
        """Forward and backward together."""
        return self.forward_steps + self.backward_steps

    def flops(self, problem: Problem) -> int:
        """Multiplications and additions of all products, forward and backward."""
        sizes = sizes_of(problem)
        return sum(step.flops(sizes) for step in _composed(self, problem).steps)

    def bytes(self, problem: Problem) -> int:
        """Bytes read and written by all steps, each tensor once per step that names it."""
        sizes = sizes_of(problem)
        return sum(
            count * width(tensor, problem)
            for step in _composed(self, problem).steps
            for tensor, count in step.elements(sizes).items()
            if tensor != "b" or problem.bias
        )

    def saved_bytes(self, problem: Problem) -> int:
        """Bytes of activations kept from forward to backward; parameters are not counted."""
        if self.forward == REFERENCE:
            return _reference_saved_bytes(problem)
        sizes = sizes_of(problem)
        return sum(
            size_of(tensor, sizes) * width(tensor, problem)
            for tensor in self.saved
            if tensor in ("X", "h")
        )


def sizes_of(problem: Problem) -> dict[str, int]:
    """The length of each axis of a problem."""
    return axis_sizes(
        tokens=problem.tokens,
        in_features=problem.in_features,
        out_features=problem.out_features,
        rank=problem.rank,
    )


def home_dtype(tensor: str, problem: Problem) -> str:
    """The dtype that the graphs of a problem keep a tensor in."""
    return problem.compute_dtype if tensor in ADAPTER_TENSORS else problem.dtype


def width(tensor: str, problem: Problem) -> int:
    """Bytes of one element of a tensor in the graphs of a problem."""
    return BYTES[home_dtype(tensor, problem)]


def run_dtype(step: Contraction, problem: Problem) -> str:
    """The dtype that a product runs in."""
    adapter = {step.left, step.right, step.out} & ADAPTER_TENSORS
    return problem.compute_dtype if adapter else problem.dtype


def _composed(graph: Graph, problem: Problem) -> Graph:
    """The composition with the reference graph's products, so that its costs are derived too."""
    if graph.forward != REFERENCE:
        return graph
    needs = problem.gradients
    return Graph(
        "base_first",
        saves_h="B" in needs,
        dx="lowrank" if "X" in needs else "",
        da="via_z" if "A" in needs else "",
        db="via_h" if "B" in needs else "",
    )


@lru_cache(maxsize=1024)
def _resolved(routes: tuple[Step, ...], given: frozenset[str]) -> tuple[Step, ...]:
    """The steps with every intermediate that they read put in front of its first use."""
    steps: list[Step] = []
    made: set[str] = set()

    def need(name: str) -> None:
        if name in _INTERMEDIATES and name not in made and name not in given:
            append(_INTERMEDIATES[name])

    def append(step: Step) -> None:
        for name in step.reads:
            need(name)
        made.add(step.out)
        steps.append(step)

    for step in routes:
        append(step)
    return tuple(steps)


def _reference_saved_bytes(problem: Problem) -> int:
    """PEFT keeps X for the adapter in compute_dtype, h and, scaled, nothing of size Y."""
    if not problem.gradients:
        return 0
    sizes = sizes_of(problem)
    kept = size_of("h", sizes) * BYTES[problem.compute_dtype] if "B" in problem.gradients else 0
    if "A" in problem.gradients:
        kept += size_of("X", sizes) * BYTES[problem.compute_dtype]
    return kept
