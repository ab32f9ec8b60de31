"""What would run where nothing was measured, and what counting says about it. Nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.graphs.kinds import reference_graph, unmeasured_graph
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem


@dataclass(frozen=True, slots=True)
class Estimate:
    """The unmeasured choice for a problem, beside the reference graph.

    Args:
        problem: what is computed.
        graph: the name of the graph.
        how: it was chosen, in words.
        flops: of forward and backward.
        reference_flops: of the reference graph.
        saved_bytes: kept from forward to backward.
        reference_saved_bytes: by the reference graph.
    """

    problem: BaseProblem
    graph: str
    how: str
    flops: int
    reference_flops: int
    saved_bytes: int
    reference_saved_bytes: int


def estimate(problem: BaseProblem, objective: Objective = TIME) -> Estimate:
    """The graph that a layer runs for a problem that is in no cache."""
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
