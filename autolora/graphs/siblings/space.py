"""The space of graphs of sibling layers: which compositions a problem has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product

from autolora.graphs import space, unmeasured
from autolora.graphs.base import REFERENCE
from autolora.graphs.graph import Graph
from autolora.graphs.siblings.graph import APART, TOGETHER, SiblingGraph, at_size_one
from autolora.objective import Objective
from autolora.problem import Problem, Siblings

_REFERENCE = SiblingGraph()
_JOINABLE = "base_first/h=saved{}/dA=via_z/dB=via_h"


def find_graph(name: str, problem: Siblings) -> SiblingGraph | None:
    """The valid graph of that name, None where there is none."""
    if name == REFERENCE:
        return _REFERENCE
    found = _found(name, at_size_one(problem))
    if found is None or any(
        space.find_graph(layer.name, part) is None
        for layer, part in zip(found.layers, problem.parts, strict=True)
    ):
        return None
    return found


@lru_cache(maxsize=4096)
def _found(name: str, problem: Siblings) -> SiblingGraph | None:
    how, _, rest = name.partition("/")
    names = rest.split("+")
    parts = problem.parts
    names = names * len(parts) if len(names) == 1 else names
    if len(names) != len(parts):
        return None
    layers = [space.find_graph(each, part) for each, part in zip(names, parts, strict=True)]
    if None in layers:
        return None
    together = frozenset(how.removeprefix("together=").split(",")) - {"none"}
    graph = SiblingGraph(tuple(filter(None, layers)), together - {APART}, how == APART)
    return graph if graph.name == name and is_valid(graph, problem) else None


def is_valid(graph: SiblingGraph, problem: Siblings) -> bool:
    """Whether graphs of layers can be joined in this way."""
    if graph.apart:
        return not graph.together
    if not graph.together <= set(TOGETHER) or any(g.is_reference for g in graph.layers):
        return False
    for layer, part in zip(graph.layers, problem.parts, strict=True):
        made = {step.out for step in layer.steps(part)}
        if "V" in layer.saves or not {"dA", "dB"} <= made:
            return False
        if "h" in graph.together and "h" not in {s.out for s in layer.forward_steps(part)}:
            return False
        if "dA" in graph.together and layer.da != "via_z":
            return False
        if "dX" in graph.together and (layer.dx != "lowrank" or "Z" not in made):
            return False
    first = graph.layers[0]
    return all(
        layer.saves & {"D"} == first.saves & {"D"}
        and ("h" not in graph.together or _alike(layer, first, "h"))
        and ("dA" not in graph.together or _alike(layer, first, "dA"))
        for layer in graph.layers
    )


def _alike(layer: Graph, other: Graph, tensor: str) -> bool:
    """Whether a product is kept, oriented and computed in the same way."""
    return all(
        (tensor in mine) == (tensor in theirs)
        for mine, theirs in (
            (layer.saves, other.saves),
            (layer.transposed, other.transposed),
            (layer.onednn, other.onednn),
        )
    )


def reference_graph(problem: Siblings) -> SiblingGraph:
    """What PEFT runs: the reference graph of every layer."""
    return _REFERENCE


def flops_graph(problem: Siblings) -> SiblingGraph:
    """What counting FLOPs alone would choose, layer by layer."""
    return apart([unmeasured.flops_graph(part) for part in problem.parts])


def unmeasured_graph(problem: Siblings, objective: Objective) -> tuple[SiblingGraph, str]:
    """The layers one by one: whether they are faster together is not known unmeasured."""
    graphs = [unmeasured.unmeasured_graph(part, objective)[0] for part in problem.parts]
    return apart(graphs), "layer by layer"


def apart(layers: Sequence[Graph]) -> SiblingGraph:
    """The graph that runs the layers one by one."""
    return SiblingGraph(tuple(layers), apart=True)


def compositions(problem: Siblings, layers: Sequence[Graph]) -> list[SiblingGraph]:
    """The graphs worth racing, composed of graphs that are fast for the single layers.

    These keep their orientations and libraries. A joint product has more rows or columns than each
    of its parts, so both of its orientations are tried, and both libraries.

    Args:
        problem: of the layers.
        layers: a fast graph of each.
    """
    joinable = [_joinable(part, graph) for part, graph in zip(problem.parts, layers, strict=True)]
    plain = [graph for graph in layers if not graph.is_reference]
    found: dict[str, SiblingGraph] = {}

    def add(graph: SiblingGraph) -> None:
        if is_valid(graph, problem) and find_graph(graph.name, problem) is not None:
            found.setdefault(graph.name, graph)

    if len(plain) == len(layers):
        add(SiblingGraph(tuple(plain)))
    for own in _with_libraries(problem, joinable):
        for size in range(len(TOGETHER) + 1):
            for together in combinations(TOGETHER, size):
                for turned in _orientations(together):
                    graphs = tuple(_turned(graph, together, turned) for graph in own)
                    add(SiblingGraph(graphs, frozenset(together)))
    return list(found.values())


def _joinable(part: Problem, graph: Graph) -> Graph:
    """The graph of a layer all of whose thin products can be joined, most like another one."""
    names = (
        _JOINABLE.format(f"{copy}/dX=lowrank" if "X" in part.gradients else copy)
        for copy in ("/D=saved", "")
    )
    found = [space.find_graph(name, part) for name in names]
    base = next(each for each in found if each is not None)
    usable = space.onednn_products(base, part)
    return replace(base, transposed=graph.transposed, onednn=graph.onednn & usable)


def _with_libraries(problem: Siblings, layers: Sequence[Graph]) -> Iterator[Sequence[Graph]]:
    """The graphs with their own libraries, and with oneDNN for every product that it can do."""
    yield layers
    every = [
        replace(graph, onednn=space.products_worth_onednn(graph, part))
        for graph, part in zip(layers, problem.parts, strict=True)
    ]
    if every != list(layers):
        yield every


def _orientations(together: Sequence[str]) -> Iterator[frozenset[str]]:
    joint = [name for name in ("h", "dA") if name in together]
    for flags in product((False, True), repeat=len(joint)):
        yield frozenset(name for name, flag in zip(joint, flags, strict=True) if flag)


def _turned(graph: Graph, together: Sequence[str], turned: frozenset[str]) -> Graph:
    """The graph with the orientations given for its joint products."""
    joint = {"h", "dA"}.intersection(together)
    return replace(graph, transposed=(graph.transposed - joint) | turned)
