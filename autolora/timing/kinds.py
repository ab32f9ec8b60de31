"""One interface for measuring problems of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from autolora.cache.records.candidate import Verdict
from autolora.graphs.base import BaseGraph
from autolora.objective import Objective
from autolora.problem import BaseProblem, Experts, Problem, Siblings
from autolora.timing import siblings
from autolora.timing.accuracy import forget_oracles, verdict
from autolora.timing.clock import Measure, Run
from autolora.timing.data import Data
from autolora.timing.experts import accuracy as accuracy_of_experts
from autolora.timing.experts import screen as screen_of_experts
from autolora.timing.experts.data import Data as DataOfExperts
from autolora.timing.screen import Prediction, predict


class Trial(Protocol):
    """Random tensors of one problem, on which its graphs run."""

    def step(self, graph: Any) -> Run:
        """Forward and backward along a graph; forward only if no gradient is needed."""

    def floor(self) -> Run:
        """The same layers without adapters."""

    def clear(self) -> None:
        """Drops the gradients of the last step."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """How problems of one kind are measured.

    Args:
        trial: ``(problem, device, seed)`` → the tensors of a problem.
        predict: ``(problem, trial, objectives, measure, rng, parts)`` → graphs with predicted
            times, fastest first; ``parts`` are the graphs of the problems that it consists of.
        verdict: ``(graph, problem, device)`` → the accuracy of a graph.
        forget: frees the tensors that verdicts share.
    """

    trial: Callable[[Any, torch.device, int], Trial]
    predict: Callable[
        [Any, Any, Sequence[Objective], Measure, random.Random, Sequence[BaseGraph]],
        Sequence[Prediction],
    ]
    verdict: Callable[[Any, Any, torch.device], Verdict]
    forget: Callable[[], None] = lambda: None


WORKBENCHES: dict[str, Workbench] = {
    Problem.kind: Workbench(
        lambda problem, device, seed: Data.random(problem, device, seed=seed),
        predict,
        verdict,
        forget_oracles,
    ),
    Siblings.kind: Workbench(
        lambda problem, device, seed: siblings.Data.random(problem, device, seed=seed),
        siblings.predict,
        siblings.verdict,
        siblings.forget_oracles,
    ),
    Experts.kind: Workbench(
        lambda problem, device, seed: DataOfExperts.random(problem, device, seed=seed),
        screen_of_experts.predict,
        accuracy_of_experts.verdict,
        accuracy_of_experts.forget_oracles,
    ),
}


def forget() -> None:
    """Frees the tensors that verdicts shared: on a GPU training needs their memory."""
    for bench in WORKBENCHES.values():
        bench.forget()


def workbench_of(problem: BaseProblem) -> Workbench:
    """The workbench of a problem's kind."""
    return WORKBENCHES[problem.kind]
