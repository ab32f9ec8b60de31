"""Estimates: the graph that runs if a problem is not measured, its FLOPs and its saved bytes."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.graphs.kinds import reference_graph, unmeasured_graph
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem


@dataclass(frozen=True, slots=True)
class Estimate:
    """The unmeasured choice for a problem, compared with the reference graph.

    Args:
        problem: of a layer.
        graph: name of the graph.
        how: description of how it was chosen.
        flops: of forward and backward.
        reference_flops: of the reference graph.
        saved_bytes: for the backward pass.
        reference_saved_bytes: of the reference graph.
    """

    problem: BaseProblem
    graph: str
    how: str
    flops: int
    reference_flops: int
    saved_bytes: int
    reference_saved_bytes: int


def estimate(problem: BaseProblem, objective: Objective = TIME) -> Estimate:
    """The graph that a layer runs for a problem that is not in any cache."""
    graph, how = unmeasured_graph(problem, objective)
    reference = reference_graph(problem)
    return Estimate(
        problem,
        graph.name,
        how,
        graph.flops(problem),
        reference.flops(problem),
        graph.saved_bytes(problem),
        reference.saved_bytes(problem),
    )
