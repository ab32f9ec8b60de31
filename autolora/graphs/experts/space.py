"""The space of graphs of experts: which compositions a problem has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import chain

from autolora.graphs.base import REFERENCE
from autolora.graphs.contraction import Contraction
from autolora.graphs.experts.graph import (
    BMM,
    EXECUTORS,
    GROUPED,
    LOOP,
    MARK,
    ONEDNN,
    ExpertsGraph,
    bytes_of,
    executors_for,
    executors_worth_timing,
    product_name,
)
from autolora.graphs.graph import Graph
from autolora.graphs.space import graphs_by_saved
from autolora.graphs.tensors import at_size_one, slow_dtypes
from autolora.graphs.unmeasured import FLOPS_PER_BYTE
from autolora.objective import Objective, over_limit
from autolora.problem import Experts, Problem

_REFERENCE = ExpertsGraph(Graph(REFERENCE))
_MUCH = 4  # times the bytes of another implementation


def reference_graph(problem: Experts) -> ExpertsGraph:
    """What PEFT runs."""
    return _REFERENCE


@lru_cache(maxsize=32)
def _structures(part: Problem) -> Mapping[str, Graph]:
    """The graphs of one layer that consist of products alone, none turned, by name."""
    every = chain.from_iterable(group.values() for group in graphs_by_saved(part))
    return {
        graph.name: graph
        for graph in every
        if not graph.transposed and all(isinstance(s, Contraction) for s in graph.steps(part))
    }


def structures(problem: Experts) -> list[Graph]:
    """The graphs of one expert that keep no more than PEFT does."""
    limit = _REFERENCE.saved_bytes(problem)
    return [
        graph
        for graph in _structures(at_size_one(problem.part)).values()
        if ExpertsGraph(graph).saved_bytes(problem) <= limit
    ]


def products(graph: Graph, problem: Experts) -> dict[str, Contraction]:
    """The products of a graph that may have different executors, by name."""
    steps = graph.steps(at_size_one(problem.part))
    return {product_name(step): step for step in steps if isinstance(step, Contraction)}


def uniform(graph: Graph, problem: Experts, base: str, thin: str) -> ExpertsGraph:
    """The graph with one executor for the base products and one for the thin ones.

    Where it is not possible for a product, that is looped.
    """

    def executor(step: Contraction) -> str:
        wide = {"W", "V", "P"} & {step.left, step.right, step.out}
        wanted = base if wide else thin
        allowed = executors_worth_timing(step, problem)
        if wanted == GROUPED and GROUPED not in allowed:
            wanted = BMM
        return wanted if wanted in allowed else LOOP

    found = {name: executor(step) for name, step in products(graph, problem).items()}
    return ExpertsGraph.of(graph, found)


def find_graph(name: str, problem: Experts) -> ExpertsGraph | None:
    """The valid graph of that name, None where there is none."""
    if name == REFERENCE:
        return _REFERENCE
    found = _found(name, replace(problem, tokens=1, in_features=1, out_features=1, rank=1))
    if found is None or found.saved_bytes(problem) > _REFERENCE.saved_bytes(problem):
        return None
    return found


@lru_cache(maxsize=4096)
def _found(name: str, problem: Experts) -> ExpertsGraph | None:
    structure, _, text = name.partition(MARK)
    graph = _structures(at_size_one(problem.part)).get(structure)
    if graph is None:
        return None
    known = products(graph, problem)
    if text in EXECUTORS:
        chosen = dict.fromkeys(known, text)
    else:
        parts = [part.partition(":") for part in text.split(";")]
        chosen = {each: executor for executor, _, of in parts for each in of.split(",")}
    if chosen.keys() != known.keys() or any(
        chosen[each] not in executors_for(step, problem) for each, step in known.items()
    ):
        return None
    found = ExpertsGraph.of(graph, chosen)
    return found if found.name == name else None


def advice(problem: Experts) -> str:
    """Which other implementation of transformers would be much faster on PEFT's path, or ``""``.

    By the bytes that they move. The gradient of the merged weights is as large as all of them, and
    autograd makes one for each expert that ``eager`` takes out of them; ``batched_mm`` copies the
    weights of an expert for each of its rows.
    """
    grouped = problem.implementation == "grouped_mm" or problem.dtype == "float64"
    if grouped or "X" not in problem.gradients:  # torch has no grouped products in float64
        return ""
    weights = bytes_of("V", problem)
    rows = bytes_of("X", problem) + bytes_of("Y", problem)
    least = 6 * weights + 3 * rows  # two merges, and read or written by each product
    times = problem.rows if problem.implementation == "batched_mm" else problem.experts**2
    taken = least + 3 * times * weights // problem.experts
    if taken < _MUCH * least:
        return ""
    return (
        f"PEFT's path by {problem.implementation} moves {taken / least:.0f} times the bytes of "
        "that by grouped_mm: model.set_experts_implementation('grouped_mm')"
    )


def flops_graph(problem: Experts) -> ExpertsGraph:
    """The graph with the fewest FLOPs, looped; of those, the one that moves the fewest bytes."""
    graphs = [uniform(graph, problem, LOOP, LOOP) for graph in structures(problem)]
    return min(
        graphs,
        key=lambda graph: (graph.flops(problem), graph.bytes(problem)),
        default=_REFERENCE,
    )


def unmeasured_graph(problem: Experts, objective: Objective) -> tuple[ExpertsGraph, str]:
    """The graph chosen without measurements, and how it was chosen, in words.

    By FLOPs and bytes; for memory, or if that graph exceeds the limit, by FLOPs among the graphs
    that save the fewest bytes. PEFT's path stays where it has grouped products: which graphs are
    faster than those is not known unmeasured.
    """
    if problem.implementation == "grouped_mm" and objective.kind != "memory":
        reference = _REFERENCE.saved_bytes(problem)
        if objective.admits(reference):
            return _REFERENCE, "PEFT's path"
    balance = FLOPS_PER_BYTE[problem.device]
    loop = ONEDNN if problem.dtype in slow_dtypes() else LOOP  # which a GPU does not have
    graphs = [uniform(graph, problem, loop, loop) for graph in structures(problem)]
    if not graphs:
        return _REFERENCE, "PEFT's path"
    best = min(graphs, key=lambda g: g.flops(problem) + balance * g.bytes(problem))
    if objective.kind != "memory" and objective.admits(best.saved_bytes(problem)):
        return best, "chosen by FLOPs and bytes"
    lean = min(graphs, key=lambda g: (g.saved_bytes(problem), g.flops(problem), g.name))
    least = lean.saved_bytes(problem)
    detail = "chosen by FLOPs of those that keep least"
    return lean, detail if objective.admits(least) else f"{detail}; {over_limit(objective, least)}"
