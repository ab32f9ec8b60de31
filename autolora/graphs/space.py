"""The space of graphs: which compositions a problem has, and the choices made without measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, combinations, compress, product
from types import MappingProxyType

from autolora.graphs import backward, baseline, forward
from autolora.graphs.contraction import THIN_PRODUCTS, Contraction
from autolora.graphs.graph import KEPT, REFERENCE, Graph
from autolora.graphs.tensors import BYTES, run_dtype, sizeless
from autolora.problem import GRADIENTS, Problem

# FLOPs that take as long as moving one byte, for the choice that is made without measurements.
_FLOPS_PER_BYTE = {"cpu": 12, "cuda": 100}

# How many are remembered: problems at each of their token counts; problems at any; kinds of them,
# of any size. Thousands of graphs belong to a kind, so that only kinds may hold them.
_PROBLEMS, _FAMILIES, _KINDS = 1024, 128, 32

_kind = lru_cache(maxsize=_PROBLEMS)(sizeless)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph costs for a problem, as :class:`Graph` counts it.

    Args:
        graph: which one.
        flops: multiplications and additions.
        bytes: read and written.
        saved_bytes: kept from forward to backward.
    """

    graph: Graph
    flops: int
    bytes: int
    saved_bytes: int


def onednn_products(graph: Graph, problem: Problem) -> frozenset[str]:
    """The products of a graph that oneDNN could compute instead of BLAS.

    They are those in float32 on the CPU that add onto nothing but the bias.
    """
    if problem.device != "cpu":
        return frozenset()
    return frozenset(
        step.out
        for step in graph.steps(problem)
        if isinstance(step, Contraction)
        and step.onto in ("", "b")
        and run_dtype(step, problem) == "float32"
    )


def find_graph(name: str, problem: Problem) -> Graph | None:
    """The valid graph of that name, with any choice of libraries; None where there is none."""
    composition = name.partition("/onednn=")[0]
    graph = valid_graphs(problem).get(composition)
    if graph is None or composition == name:
        return graph
    return _with_onednn(graph, name, _kind(problem))


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
    return _joined(_kind(problem), _fitting(problem))


@lru_cache(maxsize=_KINDS)
def _joined(problem: Problem, fitting: tuple[bool, ...]) -> Mapping[str, Graph]:
    """The graphs of some groups together: one mapping, however many token counts it serves."""
    found = {REFERENCE: Graph(REFERENCE)}
    for graphs in compress(_by_what_they_keep(problem), fitting):
        found |= graphs
    return MappingProxyType(found)


def _fitting(problem: Problem) -> tuple[bool, ...]:
    """Which of the groups keep no more than the reference."""
    return tuple(_at(problem.tokens, excess) <= 0 for excess in _excesses(problem.at(1)))


@lru_cache(maxsize=_FAMILIES)
def _excesses(problem: Problem) -> tuple[tuple[int, int], ...]:
    """What each of the groups keeps beyond the reference, see :func:`_line`."""

    def excess(graph: Graph, problem: Problem) -> int:
        return graph.saved_bytes(problem) - baseline.saved_bytes(problem)

    return tuple(
        _line(partial(excess, next(iter(graphs.values()))), problem)
        for graphs in _by_what_they_keep(_kind(problem))
    )


@lru_cache(maxsize=_KINDS)
def _by_what_they_keep(problem: Problem) -> tuple[dict[str, Graph], ...]:
    """Every composition, in groups that keep the same tensors; sizes tell which are valid."""
    groups: dict[tuple[str, ...], dict[str, Graph]] = {}
    for graph in _compositions(problem):
        groups.setdefault(graph.saved(problem), {})[graph.name] = graph
    return tuple(groups.values())


def reference_graph(problem: Problem) -> Graph:
    """What PEFT runs: the baseline of every figure, and the fallback."""
    return valid_graphs(problem)[REFERENCE]


def flops_graph(problem: Problem) -> Graph:
    """What counting FLOPs alone would choose: the paper's criterion.

    Among graphs of equal FLOPs it is the one that moves the fewest bytes, every product as written.
    """
    return min(written_costs(problem), key=lambda cost: (cost.flops, cost.bytes)).graph


def analytic_graph(problem: Problem) -> Graph:
    """The choice without measurements: the least FLOPs and bytes together, all kept that can be.

    Graphs that may be less accurate than the reference are left out: only a measured verdict may
    allow them.
    """
    balance = _FLOPS_PER_BYTE[problem.device]
    best = min(
        (cost for cost in written_costs(problem) if surely_accurate(cost.graph, problem)),
        key=lambda cost: (cost.flops + balance * cost.bytes, -len(cost.graph.saves)),
        default=None,
    )
    return reference_graph(problem) if best is None else best.graph


def surely_accurate(graph: Graph, problem: Problem) -> bool:
    """Whether a graph rounds as little as the reference does, in whatever dtypes.

    Where the adapter computes in a wider dtype than the base, a merged weight is rounded more
    coarsely than PEFT's adapter. And where PEFT adds more than the adapter to the base's result, a
    small adapter survives the rounding to 16 bits, which it does not in a sum of its own.
    """
    same = problem.dtype == problem.compute_dtype
    more = problem.variant == "dora" or problem.adapter_bias
    if same and (not more or BYTES[problem.dtype] > 2):
        return True
    wide = problem.variant == "dora" and problem.dropout and not same
    if wide and BYTES[problem.compute_dtype] < BYTES[problem.dtype]:
        return False  # D W would be rounded before it is nearly cancelled
    forward = "one_product" if more and not wide else "base_first"
    return graph.forward == forward and graph.dx in ("", "lowrank")


def written_costs(problem: Problem) -> list[Cost]:
    """The valid compositions with every product as written, none transposed, and their costs.

    FLOPs and bytes are counted once for all token counts.
    """
    return [
        Cost(graph, *(_at(problem.tokens, figure) for figure in figures))
        for group in compress(_written_figures(problem.at(1)), _fitting(problem))
        for graph, figures in group
    ]


@lru_cache(maxsize=_FAMILIES)
def _written_figures(problem: Problem) -> list[list[tuple[Graph, list[tuple[int, int]]]]]:
    """FLOPs, bytes and saved bytes of the graphs as written, see :func:`_line`, by group."""
    return [
        [
            (graph, [_line(f, problem) for f in (graph.flops, graph.bytes, graph.saved_bytes)])
            for graph in graphs.values()
            if not graph.transposed
        ]
        for graphs in _by_what_they_keep(_kind(problem))
    ]


def _line(figure: Callable[[Problem], int], problem: Problem) -> tuple[int, int]:
    """A figure at one token, and what each more adds: no product and no tensor has that axis twice.

    ``problem`` is at one token.
    """
    first = figure(problem)
    return first, figure(problem.at(2)) - first


def _at(tokens: int, figure: tuple[int, int]) -> int:
    first, growth = figure
    return first + (tokens - 1) * growth


def _compositions(problem: Problem) -> Iterator[Graph]:
    table = backward.routes(problem)
    dx, da, db, _, dm = (tuple(table.get(needed, ("",))) for needed in GRADIENTS)
    for name, *routes in product(forward.routes(problem), dx, da, db, dm):
        whole = Graph(name, dx=routes[0], da=routes[1], db=routes[2], dm=routes[3])
        for graph in _with_saved(whole, problem):
            for transposed in _subsets(_thin_products(graph, problem)):
                yield replace(graph, transposed=frozenset(transposed))


def _with_saved(graph: Graph, problem: Problem) -> Iterator[Graph]:
    """The graph with each choice of what it keeps of the tensors that both passes need."""
    made = {step.out for step in graph.forward_steps(problem)}
    for saves in _subsets([tensor for tensor in KEPT if tensor in made]):
        kept = replace(graph, saves=frozenset(saves))
        if kept.saves <= set(kept.saved(problem)):
            again = {step.out for step in kept.backward_steps(problem)}
            yield replace(kept, recomputes=frozenset(again.intersection(KEPT)))


def _thin_products(graph: Graph, problem: Problem) -> list[str]:
    made = {step.out for step in graph.steps(problem) if isinstance(step, Contraction)}
    return [name for name in THIN_PRODUCTS if name in made]


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
