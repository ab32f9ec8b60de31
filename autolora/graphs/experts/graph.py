"""A graph of a mixture's experts: a graph of one layer, and an executor for each of its products.

Every expert computes the same graph on its rows. Tensors with the axis of rows, such as X and h,
hold those of all experts one after the other; all others have one matrix for each expert. An
*executor* runs a product for all of them:

==========  ========================================================================================
loop        one product for each expert that has rows, written into its slice of the result;
            neighbouring products share one loop
turned      the same with the transpose of the swapped product: the same numbers in another order
onednn      the same by oneDNN in float32, of 16-bit matrices after a conversion
grouped     one call of torch's grouped product
bmm         a batched product for each bucket of experts, padded to the rows of its busiest one
==========  ========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.contraction import (
    AXES,
    THIN_PRODUCTS,
    Contraction,
    Step,
    axes_of,
    elements_moved,
    size_of,
)
from autolora.graphs.graph import PARAMETERS, Graph
from autolora.graphs.tensors import NARROW, sizes_of, slow_dtypes, width
from autolora.problem import Experts

LOOPS = (LOOP, TURNED, ONEDNN) = ("loop", "turned", "onednn")
GROUPED, BMM = "grouped", "bmm"
EXECUTORS = (*LOOPS, GROUPED, BMM)

_WIDE = ("Y", "dX", "P")  # the products in float32 that oneDNN is worth a copy for
MARK = "/x="


@dataclass(frozen=True, slots=True)
class ExpertsGraph(BaseGraph):
    """One composition.

    Args:
        graph: of each expert.
        executors: of each product, by its name in :func:`product_name`, sorted as
            :func:`product_order` says; empty for the reference graph.
    """

    graph: Graph
    executors: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, graph: Graph, executors: Mapping[str, str]) -> ExpertsGraph:
        """A graph with an executor for each product."""
        return cls(graph, tuple(sorted(executors.items(), key=lambda each: product_order(each[0]))))

    @property
    def name(self) -> str:
        """Stable and readable: the graph of each expert, and which executor runs what.

        ``x=loop`` if one runs all, else ``x=loop:Y,h;grouped:dX``.
        """
        if self.is_reference:
            return REFERENCE
        names: dict[str, list[str]] = {}
        for product, executor in self.executors:
            names.setdefault(executor, []).append(product)
        if len(names) == 1:
            return self.graph.name + MARK + next(iter(names))
        parts = [f"{each}:{','.join(names[each])}" for each in EXECUTORS if each in names]
        return self.graph.name + MARK + ";".join(parts)

    @property
    def is_reference(self) -> bool:
        """Whether it is what PEFT runs."""
        return self.graph.is_reference

    def executor_of(self, step: Contraction) -> str:
        """The executor of a step."""
        return dict(self.executors)[product_name(step)]

    def forward_steps(self, problem: Experts) -> tuple[Contraction, ...]:
        """The steps of the forward pass, in order."""
        return only_products(self.graph.forward_steps(problem.part))

    def backward_steps(self, problem: Experts) -> tuple[Contraction, ...]:
        """The steps of the backward pass, in order."""
        return only_products(self.graph.backward_steps(problem.part))

    def saved(self, problem: Experts) -> tuple[str, ...]:
        """The tensors saved for the backward pass, parameters included, sorted by name."""
        return self.graph.saved(problem.part) if problem.gradients else ()

    def flops(self, problem: Experts) -> int:
        """Multiplications and additions of all products; those of padding do not count."""
        if self.is_reference:
            return reference_flops(problem)
        steps = (*self.forward_steps(problem), *self.backward_steps(problem))
        return sum(step_flops(step, problem) for step in steps)

    def bytes(self, problem: Experts) -> int:
        """Bytes read and written by all steps, each tensor once per step."""
        steps = (*self.forward_steps(problem), *self.backward_steps(problem))
        return sum(
            count * width(name, problem.part) * (1 if is_ragged(name) else problem.experts)
            for step in steps
            for name, count in elements_moved(step, sizes_of(problem.part)).items()
        )

    def saved_bytes(self, problem: Experts) -> int:
        """Bytes kept from forward to backward beside the parameters."""
        if self.is_reference:
            return reference_saved_bytes(problem)
        kept = (name for name in self.saved(problem) if name not in PARAMETERS)
        return sum(bytes_of(name, problem) for name in kept)

    def saved_input_bytes(self, problem: Experts) -> int:
        """Of these, the bytes of X itself."""
        if self.is_reference:
            return bytes_of("X", problem) * bool(problem.gradients)
        return bytes_of("X", problem) * ("X" in self.saved(problem))

    @property
    def routes(self) -> tuple[str, str]:
        """The routes to Y and dX."""
        return self.graph.routes

    @property
    def routes_and_libraries(self) -> tuple[object, ...]:
        """The same with the executors of their products."""
        own = [(product, each) for product, each in self.executors if product[0] in "Yd"]
        return *self.routes, *own


def only_products(steps: Iterable[Step]) -> tuple[Contraction, ...]:
    """The steps, all of which are matrix products in the graphs of experts."""
    return tuple(step for step in steps if isinstance(step, Contraction))


def product_name(step: Contraction) -> str:
    """The result, and ``+`` where it is added to: ``"Y"`` and then ``"Y+"``."""
    return step.out + "+" * (step.onto == step.out)


@lru_cache(maxsize=64)
def product_order(name: str) -> tuple[int, int]:
    """The order of products in names: that of the tensors."""
    return list(AXES).index(name.rstrip("+")), len(name)


@lru_cache(maxsize=64)
def is_ragged(tensor: str) -> bool:
    """Whether a tensor has rows of all experts, instead of a matrix for each."""
    return "m" in axes_of(tensor)


def ragged_factors(step: Contraction) -> tuple[str, ...]:
    """The factors of a product that have rows of all experts, which ``bmm`` pads."""
    return tuple(name for name in (step.left, step.right) if is_ragged(name))


def executors_for(step: Contraction, problem: Experts) -> tuple[str, ...]:
    """The executors that a product may have."""
    found = [LOOP]
    if step.out in THIN_PRODUCTS:
        found.append(TURNED)
    wide = problem.dtype == "float32" and step.out in _WIDE and step.onto in ("", "b")
    if problem.device == "cpu" and (wide or problem.dtype in NARROW):
        found.append(ONEDNN)
    if "m" in step.axes:
        found.append(GROUPED)
    return (*found, BMM)


def executors_worth_timing(step: Contraction, problem: Experts) -> tuple[str, ...]:
    """Those of them that may be fast: oneDNN in 16 bits where this CPU is slow in that dtype."""
    found = executors_for(step, problem)
    if problem.dtype not in NARROW or problem.dtype in slow_dtypes():
        return found
    return tuple(executor for executor in found if executor != ONEDNN)


def step_flops(step: Contraction, problem: Experts) -> int:
    """FLOPs of a product for all experts."""
    once = step.flops(sizes_of(problem.part))
    return once if "m" in step.axes else once * problem.experts


def bytes_of(tensor: str, problem: Experts) -> int:
    """Bytes of a tensor, for all experts."""
    one = size_of(tensor, sizes_of(problem.part)) * width(tensor, problem.part)
    return one if is_ragged(tensor) else one * problem.experts


def reference_flops(problem: Experts) -> int:
    """FLOPs of PEFT's path: it merges every expert, twice, and has P = Gᵀ X for each."""
    needs = set(problem.gradients)
    merged = step_flops(Contraction("V", "B", "A"), problem)
    found = 2 * merged + step_flops(Contraction("Y", "X", "V"), problem)
    if "X" in needs:
        found += step_flops(Contraction("dX", "G", "V"), problem)
    if needs & {"A", "B"}:
        found += step_flops(Contraction("P", "G", "X"), problem)
    return found + merged * len(needs & {"A", "B"})


def reference_saved_bytes(problem: Experts) -> int:
    """Bytes that autograd saves on PEFT's path: the merged weights, and X.

    ``batched_mm`` keeps a merged weight for each row instead.
    """
    needs = set(problem.gradients)
    weights = bytes_of("V", problem)
    if problem.implementation == "batched_mm":
        weights = weights // problem.experts * problem.rows
    return weights * ("X" in needs) + bytes_of("X", problem) * bool(needs & {"A", "B"})
