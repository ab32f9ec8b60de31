"""A graph: one forward and one backward way to compute a problem, with what is saved between them.

Graphs are composed: a forward, what is saved or computed again, a route for each gradient, for each
thin product one of two orientations, and for float32 products on the CPU one of two matrix
libraries. This room derives a composition's steps, FLOPs, bytes and saved tensors;
:mod:`autolora.graphs.space` says which compositions a problem has, and
:mod:`autolora.graphs.source` makes them run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from autolora.graphs import backward, baseline, forward
from autolora.graphs.contraction import AXES, THIN_PRODUCTS, Step
from autolora.graphs.tensors import bytes_of, sizeless, sizes_of, width
from autolora.problem import QUANTISED, Problem

REFERENCE = "reference"

# What the backward pass may need of the forward: kept, or made again. A choice of each graph.
KEPT = ("h", "D", "U", "V")
_ALWAYS_KEPT = frozenset({"K", "N", "g"})  # dropout's mask cannot be drawn again; the rest is tiny
_PARAMETERS = frozenset({"W", "Q", "b", "A", "B", "c", "M"})


@dataclass(frozen=True, slots=True)
class Graph:
    """One composition; the fields are names from the tables of forward and backward routes.

    Args:
        forward: a route of :mod:`autolora.graphs.forward`, or ``"reference"``: plain autograd on
            the defining equation, step by step as PEFT runs it.
        saves: the tensors of :data:`KEPT` that are kept for the backward pass.
        recomputes: those of them that the backward pass makes again.
        dx: route to the gradient of X, ``""`` where it is not needed; likewise the others.
        da: route to the gradient of A.
        db: route to the gradient of B.
        dm: route to the gradient of M, DoRA's magnitude.
        transposed: the thin products that are computed as the transpose of the swapped product,
            ``(Xᵀ Z)ᵀ`` for ``Zᵀ X``: the same numbers in another memory order.
        onednn: the products, by what they make, that oneDNN computes instead of BLAS.
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
        for tensor in KEPT:
            if tensor in self.saves:
                parts.append(f"{tensor}=saved")
            elif tensor in self.recomputes and tensor != "V":  # its names are older than the choice
                parts.append(f"{tensor}=recomputed")
        parts += [
            f"{label}={route}"
            for label, route in (
                ("dX", self.dx),
                ("dA", self.da),
                ("dB", self.db),
                ("dM", self.dm),
            )
            if route
        ]
        if self.transposed:
            parts.append("t=" + ",".join(t for t in THIN_PRODUCTS if t in self.transposed))
        if self.onednn:
            parts.append("onednn=" + ",".join(t for t in AXES if t in self.onednn))
        return "/".join(parts)

    def forward_steps(self, problem: Problem) -> tuple[Step, ...]:
        """The steps of the forward pass, in order."""
        return _steps(self, sizeless(problem))[0]

    def backward_steps(self, problem: Problem) -> tuple[Step, ...]:
        """The steps of the backward pass, in order."""
        return _steps(self, sizeless(problem))[1]

    def steps(self, problem: Problem) -> tuple[Step, ...]:
        """Forward and backward together."""
        return self.forward_steps(problem) + self.backward_steps(problem)

    def saved(self, problem: Problem) -> tuple[str, ...]:
        """The tensors kept from forward to backward, parameters included, sorted by name."""
        return _needed_by(self.backward_steps(problem))

    def flops(self, problem: Problem) -> int:
        """Multiplications and additions of all products, forward and backward."""
        if self.forward == REFERENCE:
            return baseline.flops(problem)
        sizes = sizes_of(problem)
        return sum(step.flops(sizes) for step in self.steps(problem))

    def bytes(self, problem: Problem) -> int:
        """Bytes read and written by all steps, each tensor once per step that names it."""
        sizes = sizes_of(problem)
        steps = baseline.products(problem) if self.forward == REFERENCE else self.steps(problem)
        return sum(
            count * width(tensor, problem)
            for step in steps
            for tensor, count in step.elements(sizes).items()
            if tensor != "b" or problem.bias
        )

    def saved_bytes(self, problem: Problem) -> int:
        """Bytes kept from forward to backward beside the parameters."""
        if self.forward == REFERENCE:
            return baseline.saved_bytes(problem)
        return sum(
            bytes_of(tensor, problem) for tensor in self.saved(problem) if tensor not in _PARAMETERS
        )


@lru_cache(maxsize=65536)
def _steps(graph: Graph, problem: Problem) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    source = {**forward.intermediates(problem), **backward.intermediates(problem)}
    weight = "Q" if problem.layout in QUANTISED else "W"
    given = frozenset({"X", weight, "A", "B", "c", "M"})
    routes = backward.routes(problem)
    taken = {"M": graph.dm, "c": "", "B": graph.db, "A": graph.da, "X": graph.dx}
    ends = [  # dB after Z, and dA after that: each reads what the one before left in cache
        step
        for needed, route in taken.items()
        if needed in routes
        for step in routes[needed][route]
    ]
    return (
        _resolved(forward.routes(problem)[graph.forward], given | {"b"}, source),
        _resolved(ends, given | {"G"} | _ALWAYS_KEPT | graph.saves, source),
    )


def _resolved(
    ends: Sequence[Step], given: frozenset[str], source: Mapping[str, Step]
) -> tuple[Step, ...]:
    """The steps with every intermediate that they read put in front of its first use."""
    steps: list[Step] = []
    made = set(given)

    def append(step: Step) -> None:
        for name in step.reads:
            if name not in made and name in source:
                append(source[name])
        made.add(step.out)
        steps.append(step)

    for step in ends:
        append(step)
    return tuple(steps)


def _needed_by(steps: tuple[Step, ...]) -> tuple[str, ...]:
    made = {step.out for step in steps}
    return tuple(sorted({name for step in steps for name in step.reads} - made - {"G"}))
