"""The source of a graph of experts, compiled: two functions, or one of a single step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from autolora.graphs.contraction import Contraction
from autolora.graphs.experts.emitter import Emitter
from autolora.graphs.experts.graph import BMM, ExpertsGraph, product_name, ragged_factors
from autolora.graphs.experts.operators import (
    bmm_rows,
    bmm_sums,
    grouped_mm,
    onto_slices,
    padded,
)
from autolora.graphs.graph import Graph
from autolora.graphs.source import run_source
from autolora.problem import EAGER, Experts

_SCOPE = {each.__name__: each for each in (grouped_mm, padded, bmm_rows, bmm_sums, onto_slices)}


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsExecutable:
    """A graph compiled for given dtypes and gradients, at any size.

    ``forward(X, W, b, A, B, s, routing, i, o, r)`` returns ``(Y, saved)`` and ``backward(G, saved,
    s, routing, i, o, r)`` returns ``(dX, dA, dB)``, None for a gradient that is not needed. X, Y, G
    and dX have the rows of all experts, sorted; all others a matrix for each expert, see
    :func:`~autolora.graphs.experts.operators.stacked`; i, o and r are in_features, out_features and
    rank.
    """

    graph: ExpertsGraph
    problem: Experts
    saved_names: tuple[str, ...]
    forward: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor | None, ...]]


def experts_executable(graph: ExpertsGraph, problem: Experts) -> ExpertsExecutable:
    """Compiles a graph; problems that differ in sizes alone share one."""
    like = replace(problem, tokens=1, in_features=1, out_features=1, rank=1, experts=1, top_k=1)
    return _executable(graph, like)


@lru_cache(maxsize=1024)
def _executable(graph: ExpertsGraph, problem: Experts) -> ExpertsExecutable:
    if graph.is_reference:
        raise ValueError("the reference graph is plain autograd and has no source of its own")
    names = graph.saved(problem)
    saved = "".join(f"{name}, " for name in names)
    results = ", ".join(f"d{n}" if n in problem.gradients else "None" for n in "XAB")
    forward = Emitter(problem, graph, "X").emit(graph.forward_steps(problem), names)
    backward = Emitter(problem, graph, "G").emit(graph.backward_steps(problem), ())
    source = "\n".join(
        [
            "def forward(X, W, b, A, B, s, routing, i, o, r):",
            *(f"    {line}" for line in forward),
            f"    return Y, ({saved})",
            "def backward(G, saved, s, routing, i, o, r):",
            *([f"    {saved}= saved"] if names else []),
            *(f"    {line}" for line in backward),
            f"    return {results}",
        ]
    )
    made = run_source(source, graph.name, EAGER, _SCOPE)
    return ExpertsExecutable(graph, problem, names, made["forward"], made["backward"])


def step_function(step: Contraction, executor: str, problem: Experts) -> Callable[..., Tensor]:
    """One step by itself, as a function ``(tensors, s, routing, i, o, r)``; for timing it.

    ``tensors`` are those that the step reads, by name, and what it adds onto. Where rows are padded
    they are given so as well, as ``X_p``: that is done once for all steps of a pass.
    """
    return _step_function(
        step, executor, problem.layout, problem.bias, problem.dtype, problem.device
    )


@lru_cache(maxsize=1024)
def _step_function(
    step: Contraction, executor: str, layout: str, bias: bool, dtype: str, device: str
) -> Callable[..., Tensor]:
    problem = Experts(1, 1, 1, 1, 1, 1, dtype, device, layout=layout, bias=bias)
    graph = ExpertsGraph(Graph(""), ((product_name(step), executor),))
    reads = list(dict.fromkeys(name for name in step.reads if name != "b" or bias))
    emitter = Emitter(problem, graph, step.left)
    if executor == BMM:
        emitter.padded.update(ragged_factors(step))
        reads += [f"{name}_p" for name in ragged_factors(step)]
    lines = emitter.emit([step], [step.out])
    source = "\n".join(
        [
            f"def run({', '.join(reads)}, s, routing, i, o, r):",
            *(f"    {line}" for line in lines),
            f"    return {step.out}",
        ]
    )
    made = run_source(source, product_name(step), EAGER, _SCOPE)["run"]

    def run(tensors: Mapping[str, Tensor], *rest: Any) -> Tensor:
        return made(*(tensors[name] for name in reads), *rest)  # type: ignore[no-any-return]

    return run
