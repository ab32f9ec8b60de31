"""The space of graphs: which compositions a problem has, and the choices made without measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import chain, combinations, product
from types import MappingProxyType

from autolora.graphs import backward, forward
from autolora.graphs.contraction import THIN_PRODUCTS, Contraction
from autolora.graphs.graph import REFERENCE, Graph, run_dtype
from autolora.problem import Problem

# FLOPs that take as long as moving one byte, for the choice that is made without measurements.
_FLOPS_PER_BYTE = {"cpu": 12, "cuda": 100}


def onednn_products(graph: Graph, problem: Problem) -> frozenset[str]:
    """The products of a graph that oneDNN could compute instead of BLAS.

    They are those in float32 on the CPU that add onto nothing but the bias.
    """
    if problem.device != "cpu":
        return frozenset()
    return frozenset(
        step.out
        for step in graph.steps
        if isinstance(step, Contraction)
        and step.onto in ("", "b")
        and run_dtype(step, problem) == "float32"
    )


def find_graph(name: str, problem: Problem) -> Graph | None:
    """The valid graph of that name, with any choice of libraries; None where there is none."""
    composition, _, products = name.partition("/onednn=")
    graph = valid_graphs(problem).get(composition)
    if graph is None or not products:
        return graph if composition == name else None
    chosen = frozenset(products.split(","))
    if graph.forward == REFERENCE or not chosen <= onednn_products(graph, problem):
        return None
    found = replace(graph, onednn=chosen)
    return found if found.name == name else None


@lru_cache(maxsize=1024)
def valid_graphs(problem: Problem) -> Mapping[str, Graph]:
    """Every graph that computes a problem, by name, the reference graph first, all with BLAS.

    Dropout makes the adapter see another X than the base, and W may be stored otherwise than as
    ``(out_features, in_features)``: there only the reference graph is valid.
    Which library computes a product is a choice of its own, see :func:`onednn_products`.
    """
    reference = Graph(REFERENCE)
    plain = problem.layout == "linear" and not problem.dropout
    graphs = [reference, *_compositions(problem)] if plain else [reference]
    return MappingProxyType({graph.name: graph for graph in graphs})


def reference_graph(problem: Problem) -> Graph:
    """What PEFT runs: the baseline of every figure, and the fallback."""
    return valid_graphs(problem)[REFERENCE]


def flops_graph(problem: Problem) -> Graph:
    """What counting FLOPs alone would choose: the paper's criterion.

    Among graphs of equal FLOPs it is the one that moves the fewest bytes, every product as written.
    """
    return min(_written(problem), key=lambda graph: (graph.flops(problem), graph.bytes(problem)))


def analytic_graph(problem: Problem) -> Graph:
    """The choice without measurements: the least FLOPs and bytes together, h saved.

    Where the adapter computes in another dtype than the base, graphs that would round the merged
    weight to the base's dtype are left out: only a measured verdict may allow them.
    """
    balance = _FLOPS_PER_BYTE[problem.device]
    exact = problem.dtype == problem.compute_dtype
    return min(
        (
            graph
            for graph in _written(problem)
            if exact or (graph.forward == "base_first" and graph.dx in ("", "lowrank"))
        ),
        key=lambda graph: (
            graph.flops(problem) + balance * graph.bytes(problem),
            not graph.saves_h,
        ),
        default=reference_graph(problem),
    )


def _written(problem: Problem) -> list[Graph]:
    graphs = [graph for graph in valid_graphs(problem).values() if not graph.transposed]
    composed = [graph for graph in graphs if graph.forward != REFERENCE]
    return composed or graphs


def _compositions(problem: Problem) -> Iterator[Graph]:
    routes = [
        tuple(table) if needed in problem.gradients else ("",)
        for needed, table in (("X", backward.DX), ("A", backward.DA), ("B", backward.DB))
    ]
    for name, (dx, da, db) in product(forward.FORWARDS, product(*routes)):
        graph = Graph(name, dx=dx, da=da, db=db)
        computes_h = any(step.out == "h" for step in graph.forward_steps)
        needs_h = any(step.out == "h" for step in graph.backward_steps)
        for saves_h in (True, False) if computes_h and needs_h else (False,):
            for transposed in _subsets(_thin_products(replace(graph, saves_h=saves_h))):
                yield replace(graph, saves_h=saves_h, transposed=frozenset(transposed))


def _thin_products(graph: Graph) -> list[str]:
    made = {step.out for step in graph.steps if isinstance(step, Contraction)}
    return [name for name in THIN_PRODUCTS if name in made]


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
