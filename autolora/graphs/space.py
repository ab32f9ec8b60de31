"""The space of graphs: which compositions a problem has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, combinations, compress, product
from types import MappingProxyType

from autolora.graphs import backward, baseline, forward
from autolora.graphs.base import REFERENCE
from autolora.graphs.contraction import THIN_PRODUCTS, Contraction
from autolora.graphs.graph import SAVEABLE, Graph
from autolora.graphs.tensors import NARROW, at_size_one, run_dtype, slow_dtypes
from autolora.problem import COMPILED, GRADIENTS, Problem

# Sizes of the caches: of problems, of problems whatever their tokens, and of problems at size one.
# Thousands of graphs belong to one of the last, so only these hold graphs.
_PROBLEMS, FAMILIES, _SIZELESS = 1024, 128, 32


def onednn_products(graph: Graph, problem: Problem) -> frozenset[str]:
    """The products of a graph that oneDNN could compute in float32 instead of torch's default.

    On the CPU these are the ones in float32 that add onto nothing but the bias, and all in 16 bits,
    whose operands are converted.
    """
    return _in_float32(graph, problem, {"float32", *NARROW})


def products_worth_onednn(graph: Graph, problem: Problem) -> frozenset[str]:
    """Those of them that are worth timing: in 16 bits where this CPU is slow in that dtype."""
    return _in_float32(graph, problem, {"float32", *slow_dtypes()})


def converted_products(graph: Graph, problem: Problem) -> frozenset[str]:
    """The products in a 16-bit dtype that this CPU is slow in."""
    return _in_float32(graph, problem, slow_dtypes())


def _in_float32(graph: Graph, problem: Problem, dtypes: Set[str]) -> frozenset[str]:
    """The products that oneDNN could compute, of those that are defined in some dtypes."""
    if problem.device != "cpu" or not dtypes:
        return frozenset()
    return frozenset(
        step.out
        for step in graph.steps(problem)
        if isinstance(step, Contraction)
        and (dtype := run_dtype(step, problem)) in dtypes
        and (dtype in NARROW or step.onto in ("", "b"))
    )


def find_graph(name: str, problem: Problem) -> Graph | None:
    """The valid graph of that name, with any choice of libraries; None where there is none."""
    composition = name.partition("/onednn=")[0]
    graph = valid_graphs(problem).get(composition)
    if graph is None or composition == name:
        return graph
    return _with_onednn(graph, name, at_size_one(problem))


@lru_cache(maxsize=4096)
def _with_onednn(graph: Graph, name: str, problem: Problem) -> Graph | None:
    chosen = frozenset(name.partition("/onednn=")[2].split(","))
    if graph.forward == REFERENCE or not chosen <= onednn_products(graph, problem):
        return None
    found = replace(graph, onednn=chosen)
    return found if found.name == name else None


@lru_cache(maxsize=_PROBLEMS)
def valid_graphs(problem: Problem) -> Mapping[str, Graph]:
    """Every graph that computes a problem, by name, the reference graph first, all with BLAS.

    No graph keeps more for the backward pass than the reference: the merged weight may be kept only
    where it is no larger than what PEFT keeps instead, X only where PEFT keeps no narrower copy.
    Which library computes a product is a choice of its own, see :func:`onednn_products`.
    """
    return _joined(at_size_one(problem), fitting_groups(problem))


@lru_cache(maxsize=_SIZELESS)
def _joined(problem: Problem, fitting: tuple[bool, ...]) -> Mapping[str, Graph]:
    """The graphs of some groups together: one mapping, however many token counts it serves."""
    found = {REFERENCE: Graph(REFERENCE)}
    for graphs in compress(graphs_by_saved(problem), fitting):
        found |= graphs
    return MappingProxyType(found)


def fitting_groups(problem: Problem) -> tuple[bool, ...]:
    """Which of the groups keep no more than the reference."""
    return tuple(value_at(problem.tokens, excess) <= 0 for excess in _excesses(problem.at(1)))


@lru_cache(maxsize=FAMILIES)
def _excesses(problem: Problem) -> tuple[tuple[int, int], ...]:
    """What each of the groups keeps beyond the reference, see :func:`affine`."""

    def excess(graph: Graph, problem: Problem) -> int:
        return graph.saved_bytes(problem) - baseline.saved_bytes(problem)

    return tuple(
        affine(partial(excess, next(iter(graphs.values()))), problem)
        for graphs in graphs_by_saved(at_size_one(problem))
    )


@lru_cache(maxsize=_SIZELESS)
def graphs_by_saved(problem: Problem) -> tuple[dict[str, Graph], ...]:
    """Every composition, in groups that keep the same tensors; sizes tell which are valid."""
    groups: dict[tuple[str, ...], dict[str, Graph]] = {}
    for graph in _structures(problem):
        group = groups.setdefault(graph.saved(problem), {})
        for transposed in _subsets(_thin_products(graph, problem)):
            turned = replace(graph, transposed=frozenset(transposed))
            group[turned.name] = turned
    return tuple(groups.values())


def reference_graph(problem: Problem) -> Graph:
    """What PEFT runs: the baseline of every figure, and the fallback."""
    return valid_graphs(problem)[REFERENCE]


def affine(figure: Callable[[Problem], int], problem: Problem) -> tuple[int, int]:
    """A figure at one token, and what each more adds: no product and no tensor has that axis twice.

    ``problem`` is at one token.
    """
    first = figure(problem)
    return first, figure(problem.at(2)) - first


def value_at(tokens: int, figure: tuple[int, int]) -> int:
    """The value of :func:`affine` at a token count."""
    first, growth = figure
    return first + (tokens - 1) * growth


def _structures(problem: Problem) -> Iterator[Graph]:
    """Every composition in which no product is turned."""
    table = backward.routes(problem)
    dx, da, db, _, dm = (tuple(table.get(needed, ("",))) for needed in GRADIENTS)
    for name, *routes in product(forward.routes(problem), dx, da, db, dm):
        whole = Graph(name, dx=routes[0], da=routes[1], db=routes[2], dm=routes[3])
        yield from _with_saved(whole, problem)


def _with_saved(graph: Graph, problem: Problem) -> Iterator[Graph]:
    """The graph with each choice of what it keeps of the tensors that both passes need."""
    made = {step.out for step in graph.forward_steps(problem)}
    for saves in _subsets([tensor for tensor in SAVEABLE if tensor in made]):
        kept = replace(graph, saves=frozenset(saves))
        if kept.saves <= set(kept.saved(problem)):
            again = {step.out for step in kept.backward_steps(problem)}
            if problem.mode == COMPILED and again & made.intersection(SAVEABLE):
                continue  # the compiler makes a tensor once, and decides itself what is kept
            yield replace(kept, recomputes=frozenset(again.intersection(SAVEABLE)))


def _thin_products(graph: Graph, problem: Problem) -> list[str]:
    made = {step.out for step in graph.steps(problem) if isinstance(step, Contraction)}
    return [name for name in THIN_PRODUCTS if name in made]


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
