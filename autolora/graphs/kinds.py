"""The graphs of each kind of problem, behind one interface.

Everything outside this package that need not know the kind of a problem asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autolora.graphs import space, unmeasured
from autolora.graphs.base import BaseGraph
from autolora.graphs.experts import space as experts
from autolora.graphs.siblings import space as siblings
from autolora.objective import Objective
from autolora.problem import BaseProblem, Experts, Problem, Siblings


@dataclass(frozen=True, slots=True)
class GraphSpace:
    """The graphs of one kind of problem.

    Args:
        find: the valid graph of a name, None where there is none: ``(name, problem)``.
        reference: what PEFT runs, the baseline and fallback: ``(problem)``.
        by_flops: what counting FLOPs alone would choose: ``(problem)``.
        unmeasured: what runs where nothing was measured, and how it was chosen in words:
            ``(problem, objective)``.
        compile: the code of a graph that has some of its own, forward and backward: ``(graph,
            problem)``.
    """

    find: Callable[[str, Any], BaseGraph | None]
    reference: Callable[[Any], BaseGraph]
    by_flops: Callable[[Any], BaseGraph]
    unmeasured: Callable[[Any, Objective], tuple[BaseGraph, str]]
    compile: Callable[[Any, Any], Any]


# Code needs torch, which those who only read records do not wait for.
def _layer_code(graph: Any, problem: Any) -> Any:
    from autolora.graphs.source import executable

    return executable(graph, problem)


def _siblings_code(graph: Any, problem: Any) -> Any:
    from autolora.graphs.siblings.source import sibling_executable

    return sibling_executable(graph, problem)


def _experts_code(graph: Any, problem: Any) -> Any:
    from autolora.graphs.experts.source import experts_executable

    return experts_executable(graph, problem)


SPACES: dict[str, GraphSpace] = {
    Problem.kind: GraphSpace(
        space.find_graph,
        space.reference_graph,
        unmeasured.flops_graph,
        unmeasured.unmeasured_graph,
        _layer_code,
    ),
    Siblings.kind: GraphSpace(
        siblings.find_graph,
        siblings.reference_graph,
        siblings.flops_graph,
        siblings.unmeasured_graph,
        _siblings_code,
    ),
    Experts.kind: GraphSpace(
        experts.find_graph,
        experts.reference_graph,
        experts.flops_graph,
        experts.unmeasured_graph,
        _experts_code,
    ),
}


def find_graph(name: str, problem: BaseProblem) -> BaseGraph | None:
    """The valid graph of that name, None where there is none."""
    return SPACES[problem.kind].find(name, problem)


def reference_graph(problem: BaseProblem) -> BaseGraph:
    """What PEFT runs: the baseline of every figure, and the fallback."""
    return SPACES[problem.kind].reference(problem)


def flops_graph(problem: BaseProblem) -> BaseGraph:
    """What counting FLOPs alone would choose."""
    return SPACES[problem.kind].by_flops(problem)


def unmeasured_graph(problem: BaseProblem, objective: Objective) -> tuple[BaseGraph, str]:
    """What runs where nothing was measured, and how it was chosen, in words."""
    return SPACES[problem.kind].unmeasured(problem, objective)


def executable(graph: BaseGraph, problem: BaseProblem) -> Any:
    """The code of a graph that is neither the reference nor of problems that run one by one."""
    return SPACES[problem.kind].compile(graph, problem)
