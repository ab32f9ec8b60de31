"""A graph of sibling layers: a graph for each layer, and the products that are computed together.

Of the thin products three can be joined: ``h`` is one product for all layers, ``h = X [A₁; A₂]ᵀ``,
``dA`` is one, ``[dA₁; dA₂] = [Z₁ | Z₂]ᵀ X``, and what the adapters add to ``dX`` is one, ``[Z₁ |
Z₂] [A₁; A₂]``. The gradient of X is summed in place in any case, and X is kept once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from autolora.graphs.base import REFERENCE, BaseGraph
from autolora.graphs.contraction import Concat, Contraction, Elementwise, Step, size_of, stem
from autolora.graphs.graph import PARAMETERS, Graph
from autolora.graphs.tensors import width
from autolora.problem import Problem, Siblings

APART = "apart"
TOGETHER = ("h", "dA", "dX")  # what can be computed together

_SHARED = frozenset({"X", "D", "dX"})  # tensors that all layers have in common


@dataclass(frozen=True, slots=True)
class SiblingGraph(BaseGraph):
    """One composition.

    Args:
        layers: the graph of each layer; none for the reference, which is that of every layer.
        together: of :data:`TOGETHER`.
        apart: whether the layers run one by one, each along its graph.
    """

    layers: tuple[Graph, ...] = ()
    together: frozenset[str] = frozenset()
    apart: bool = False

    @property
    def name(self) -> str:
        """Stable and readable; graphs that are equal in all layers are named once."""
        if not self.layers:
            return REFERENCE
        names = [graph.name for graph in self.layers]
        how = APART if self.apart else f"together={','.join(self._joined) or 'none'}"
        return f"{how}/{'+'.join(names if len(set(names)) > 1 else names[:1])}"

    @property
    def is_joint(self) -> bool:
        """Whether the layers run together: it is neither the reference nor one by one."""
        return bool(self.layers) and not self.apart

    @property
    def is_apart(self) -> bool:
        """Whether they do not."""
        return not self.is_joint

    @property
    def _joined(self) -> list[str]:
        return [product for product in TOGETHER if product in self.together]

    def shared_steps(self, problem: Siblings) -> tuple[Step, ...]:
        """The steps of the forward pass that serve all layers."""
        return _steps(self, at_size_one(problem))[0]

    def forward_steps(self, problem: Siblings) -> tuple[tuple[Step, ...], ...]:
        """The other steps of the forward pass of each layer."""
        return _steps(self, at_size_one(problem))[1]

    def backward_steps(self, problem: Siblings) -> tuple[Step, ...]:
        """The steps of the backward pass of all layers."""
        return _steps(self, at_size_one(problem))[2]

    def saved(self, problem: Siblings) -> tuple[str, ...]:
        """The tensors saved for the backward pass, parameters included, sorted by name."""
        steps = self.backward_steps(problem)
        written = {step.out for step in steps}
        reads = {name for step in steps for name in step.reads}
        return tuple(sorted(name for name in reads - written if not re.fullmatch(r"G\d+", name)))

    def flops(self, problem: Siblings) -> int:
        """Multiplications and additions of all products, forward and backward."""
        if not self.is_joint:
            return sum(g.flops(part) for g, part in self.alone(problem))
        sizes = sizes_of(problem)
        forward = (step for steps in self.forward_steps(problem) for step in steps)
        steps = (*self.shared_steps(problem), *forward, *self.backward_steps(problem))
        return sum(step.flops(sizes) for step in steps)

    def saved_bytes(self, problem: Siblings) -> int:
        """Bytes kept from forward to backward beside the parameters; X counts once."""
        if not self.is_joint:
            alone = list(self.alone(problem))
            of_x = [graph.saved_input_bytes(part) for graph, part in alone]
            return sum(g.saved_bytes(part) for g, part in alone) - sum(of_x) + max(of_x)
        saved = [name for name in self.saved(problem) if stem(name) not in PARAMETERS]
        return sum(bytes_of(name, problem) for name in saved)

    def saved_input_bytes(self, problem: Siblings) -> int:
        """Of these, the bytes of X itself."""
        if not self.is_joint:
            return max(g.saved_input_bytes(part) for g, part in self.alone(problem))
        return bytes_of("X", problem) if "X" in self.saved(problem) else 0

    def alone(self, problem: Siblings) -> Iterator[tuple[Graph, Problem]]:
        """The graph and the problem of each layer."""
        parts = problem.parts
        return zip(self.layers or (Graph(REFERENCE),) * len(parts), parts, strict=True)

    @property
    def routes(self) -> tuple[object, ...]:
        """The routes of each layer to Y and dX."""
        return self.apart, *(graph.routes for graph in self.layers)

    @property
    def routes_and_libraries(self) -> tuple[object, ...]:
        """The same with the libraries that compute them."""
        return self.apart, *(graph.routes_and_libraries for graph in self.layers)

    @property
    def structure(self) -> SiblingGraph:
        """The graph with every product as written, by BLAS."""
        return replace(self, layers=tuple(graph.structure for graph in self.layers))


@lru_cache(maxsize=1024)
def at_size_one(problem: Siblings) -> Siblings:
    """The problem with all sizes 1; its graphs and their source do not depend on sizes."""
    ones = (1,) * len(problem.ranks)
    return replace(problem, in_features=1, tokens=1, out_features=ones, ranks=ones)


def sizes_of(problem: Siblings) -> dict[str, int]:
    """The length of each axis of a problem: ``o2`` of the second layer, ``r`` of all together."""
    sizes = {"m": problem.tokens, "i": problem.in_features, "r": sum(problem.ranks)}
    for number, (o, r) in enumerate(zip(problem.out_features, problem.ranks, strict=True), 1):
        sizes |= {f"o{number}": o, f"r{number}": r}
        sizes |= {f"k{number}": problem.in_features + r, f"n{number}": o + r}
    return sizes


def bytes_of(tensor: str, problem: Siblings) -> int:
    """Bytes of a tensor."""
    return size_of(tensor, sizes_of(problem)) * width(tensor, problem.parts[0])


def transposed(graph: SiblingGraph) -> frozenset[str]:
    """The thin products of all layers that are computed as the transpose of the swapped product."""
    return _of_layers([layer.transposed for layer in graph.layers])


def onednn(graph: SiblingGraph) -> frozenset[str]:
    """The results of the products that oneDNN computes.

    Where all of dX is summed, each of its products is a tensor of its own.
    """
    return _of_layers([layer.onednn for layer in graph.layers])


def _of_layers(products: list[frozenset[str]]) -> frozenset[str]:
    found = {f"{name}{number}" for number, some in enumerate(products, 1) for name in some}
    found |= {name for name in ("h", "dA", "dX") if name in products[0]}
    return frozenset(found)


@lru_cache(maxsize=2048)
def _steps(
    graph: SiblingGraph, problem: Siblings
) -> tuple[tuple[Step, ...], tuple[tuple[Step, ...], ...], tuple[Step, ...]]:
    """What serves all layers, the rest of the forward pass of each, and the backward pass."""
    parts = problem.parts
    shared: dict[str, Step] = {}
    forward: list[tuple[Step, ...]] = []
    for number, (layer, part) in enumerate(zip(graph.layers, parts, strict=True), 1):
        steps = [_numbered(step, number, part) for step in layer.forward_steps(part)]
        early = [step for step in steps if stem(step.out) in ("D", "h")]
        shared |= {step.out: step for step in early}
        forward.append(tuple(step for step in steps if step not in early))
    if "h" in graph.together:
        source = next(step for step in shared.values() if step.out == "h1")
        shared = {name: step for name, step in shared.items() if name == "D"}
        shared |= {step.out: step for step in _h_together(source, len(parts))}
    return tuple(shared.values()), tuple(forward), _backward_steps(graph, problem)


def _h_together(source: Step, number: int) -> list[Step]:
    """The steps that make every h in one product, from the step of the first."""
    assert isinstance(source, Contraction)
    return [_join("A", number), Contraction("h", source.left, "A"), *_slices_of_h(number)]


def _slices_of_h(number: int) -> list[Step]:
    return [
        Elementwise(f"h{n}", ("h",), f"h{n} = h[:, {n}]", f"{{h}}[:, e{n - 1}:e{n}]")
        for n in range(1, number + 1)
    ]


def _join(tensor: str, number: int) -> Concat:
    return Concat(tensor, tuple(f"{tensor}{n}" for n in range(1, number + 1)))


def _backward_steps(graph: SiblingGraph, problem: Siblings) -> tuple[Step, ...]:
    parts, number = problem.parts, len(problem.ranks)
    made: list[Step] = []
    sums: list[Step] = []  # the steps that add to dX, which come last
    for n, (layer, part) in enumerate(zip(graph.layers, parts, strict=True), 1):
        for step in layer.backward_steps(part):
            own = _numbered(step, n, part)
            if own.out == "dX":
                sums += _summed(own, n, layer, graph, first=not sums)
            elif own.out == f"dA{n}" and "dA" in graph.together:
                joint = Contraction("dA", "Z", own.reads[1])  # of X, or of its copy D
            else:
                made.append(own)
    steps = list(dict.fromkeys(made))
    if "h" in graph.together:
        steps = _with_h(steps, number)
    if {"dA", "dX"} & graph.together:
        steps.append(_join("Z", number))
    if "dA" in graph.together:
        steps.append(joint)
    if "dX" in graph.together and sums:
        if not any(step.out == "A" for step in steps):
            steps.append(_join("A", number))
        sums.append(Contraction("dX", "Z", "A", onto="dX"))
    return (*steps, *sums)


def _with_h(steps: list[Step], number: int) -> list[Step]:
    """The steps with every h from the joint one, which is made again where each was."""
    again = next((step for step in steps if step.out == "h1"), None)
    steps = [step for step in steps if not _is_h(step.out)]
    made = _slices_of_h(number) if again is None else _h_together(again, number)
    read = {name for step in steps for name in step.reads}
    place = next((n for n, step in enumerate(steps) if any(map(_is_h, step.reads))), 0)
    made = [step for step in made if step.out in read or not _is_h(step.out)]
    return [*steps[:place], *made, *steps[place:]]


def _is_h(tensor: str) -> bool:
    """Whether a tensor is the h of one layer."""
    return bool(re.fullmatch(r"h\d+", tensor))


def _summed(
    step: Step, number: int, layer: Graph, graph: SiblingGraph, *, first: bool
) -> list[Step]:
    """A step of one layer that makes dX or adds to it, so that it adds to what others made."""
    assert isinstance(step, Contraction)
    if step.onto:
        return [] if "dX" in graph.together else [step]
    if first:
        return [step]
    if "dX" in layer.onednn:  # which does not add onto a tensor
        part = f"dX{number}"
        add = Elementwise("dX", ("dX", part), f"dX = dX + {part}", f"{{dX}}.add_({{{part}}})")
        return [replace(step, out=part), add]
    return [replace(step, onto="dX")]


def _numbered(step: Step, number: int, part: Problem) -> Step:
    """The step with the names of one layer's tensors."""

    def named(name: str) -> str:
        return name if not name or name in _SHARED else f"{name}{number}"

    if isinstance(step, Contraction):
        onto = "" if step.onto == "b" and not part.bias else named(step.onto)
        return replace(
            step, out=named(step.out), left=named(step.left), right=named(step.right), onto=onto
        )
    reads = tuple(map(named, step.reads))
    if isinstance(step, Concat):
        return replace(step, out=named(step.out), reads=reads)
    code = re.sub(r"\{(?!dtype|adapter_dtype)(\w+)", lambda m: "{" + named(m[1]), step.code)
    return replace(step, out=named(step.out), reads=reads, code=code)
