"""Graphs chosen without measurements: by FLOPs, by FLOPs and bytes, by saved bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import compress

from autolora.graphs.contraction import Step
from autolora.graphs.graph import Graph, moved_bytes
from autolora.graphs.space import (
    FAMILIES,
    affine,
    converted_products,
    fitting_groups,
    graphs_by_saved,
    reference_graph,
    value_at,
)
from autolora.graphs.tensors import BYTES, at_size_one, sizes_of
from autolora.objective import Objective, over_limit
from autolora.problem import COMPILED, Problem

Figure = tuple[int, int]  # at one token, and what each more adds

# FLOPs in the time of moving one byte.
FLOPS_PER_BYTE = {"cpu": 12, "cuda": 100}


@dataclass(frozen=True, slots=True)
class Cost:
    """The FLOPs, bytes moved and bytes saved of a graph for a problem."""

    graph: Graph
    flops: int
    bytes: int
    saved_bytes: int


def flops_graph(problem: Problem) -> Graph:
    """The graph of the fewest FLOPs, the paper's criterion; of those, of the fewest bytes moved."""
    return min(untransposed_costs(problem), key=lambda cost: (cost.flops, cost.bytes)).graph


def analytic_graph(problem: Problem) -> Graph:
    """The graph of the least FLOPs and bytes together, which saves all it can.

    Graphs that may be less accurate than the reference are excluded.
    """
    balance = FLOPS_PER_BYTE[problem.device]
    best = min(
        _accurate_costs(problem),
        key=lambda cost: (cost.flops + balance * cost.bytes, -len(cost.graph.saves)),
        default=None,
    )
    return reference_graph(problem) if best is None else best.graph


def surely_accurate(graph: Graph, problem: Problem) -> bool:
    """Whether a graph is as accurate as the reference in any dtypes, without a measurement.

    If the adapter computes in a wider dtype than the base, a merged weight is rounded more coarsely
    than PEFT's adapter. And if PEFT adds more than the adapter to the base's result, a small
    adapter survives there the rounding to 16 bits, which it does not if added alone.
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


def untransposed_costs(problem: Problem) -> list[Cost]:
    """The costs of the valid graphs without transposed products.

    FLOPs and bytes are counted once for all token counts.
    """
    return [
        Cost(graph, *(value_at(problem.tokens, figure) for figure in figures))
        for group in compress(_untransposed_figures(problem.at(1)), fitting_groups(problem))
        for graph, figures in group
    ]


def _accurate_costs(problem: Problem) -> list[Cost]:
    """Those of the graphs that are surely as accurate as the reference."""
    return [c for c in untransposed_costs(problem) if surely_accurate(c.graph, problem)]


@lru_cache(maxsize=FAMILIES)
def _untransposed_figures(problem: Problem) -> list[list[tuple[Graph, tuple[Figure, ...]]]]:
    """FLOPs, bytes and saved bytes of the untransposed graphs, see :func:`affine`, by group."""

    @cache
    def figures_of(step: Step) -> tuple[Figure, Figure]:
        """Of FLOPs and bytes; the graphs have most of their steps in common."""
        flops = affine(lambda problem: step.flops(sizes_of(problem)), problem)
        return flops, affine(partial(moved_bytes, step), problem)

    def added(figures: Iterable[Figure]) -> Figure:
        first, growth = zip(*figures, strict=True)
        return sum(first), sum(growth)

    groups: list[list[tuple[Graph, tuple[Figure, ...]]]] = []
    for graphs in graphs_by_saved(at_size_one(problem)):
        saved = affine(next(iter(graphs.values())).saved_bytes, problem)
        groups.append([])
        for graph in graphs.values():
            if not graph.transposed:
                flops, moved = zip(*map(figures_of, graph.steps(problem)), strict=True)
                groups[-1].append((graph, (added(flops), added(moved), saved)))
    return groups


def unmeasured_graph(problem: Problem, objective: Objective) -> tuple[Graph, str]:
    """The graph chosen without measurements, and how it was chosen, in words.

    By FLOPs and bytes; for memory, or if that graph exceeds the limit, by FLOPs among the graphs
    that save the fewest bytes. Only graphs as accurate as the reference are considered. Compiled
    problems get the reference graph: which others are faster compiled is not known unmeasured.
    Products in a dtype that this CPU is slow in run in float32.
    """
    if problem.mode == COMPILED:
        return reference_graph(problem), "PEFT's graph, compiled"
    graph, detail = _unmeasured(problem, objective)
    return replace(graph, onednn=converted_products(graph, problem)), detail


def _unmeasured(problem: Problem, objective: Objective) -> tuple[Graph, str]:
    """The composition, and how it was chosen."""
    graph = analytic_graph(problem)
    if objective.kind != "memory" and objective.admits(graph.saved_bytes(problem)):
        return graph, "chosen by FLOPs and bytes"
    best = min(
        _accurate_costs(problem),
        key=lambda c: (c.saved_bytes, c.flops, c.bytes, c.graph.name),
        default=None,
    )
    lean = graph if best is None else best.graph
    least = lean.saved_bytes(problem)
    detail = "chosen by FLOPs of those that keep least"
    return lean, detail if objective.admits(least) else f"{detail}; {over_limit(objective, least)}"
