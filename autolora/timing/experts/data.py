"""Random tensors for a problem of experts, and a graph as a function that runs on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from autolora.errors import AutoloraError
from autolora.graphs.experts.function import run_experts
from autolora.graphs.experts.graph import ExpertsGraph, reference_saved_bytes
from autolora.graphs.experts.reference import merged, projected, reference
from autolora.graphs.experts.routing import Routing, drawn_routing
from autolora.graphs.experts.source import experts_executable
from autolora.problem import Experts
from autolora.timing.data import SCALING, normal_numbers, trained


@dataclass(slots=True)
class Data:
    """The tensors of one problem, of which those in ``problem.gradients`` need a gradient.

    Args:
        problem: of the experts.
        X: the rows of all experts, sorted.
        W: as stored.
        b: the bias of each expert, or None.
        A: of all experts, in PEFT's layout, as B.
        B: of all experts.
        G: the gradient of Y.
        routing: of the rows, drawn at random with the load of the problem.
    """

    problem: Experts
    X: Tensor
    W: Tensor
    b: Tensor | None
    A: Tensor
    B: Tensor
    G: Tensor
    routing: Routing

    @classmethod
    def random(
        cls, problem: Experts, device: torch.device, *, magnitude: float = 0.1, seed: int = 0
    ) -> Data:
        """Draws the tensors of a problem on a device, as :class:`autolora.timing.data.Data`.

        Raises:
            AutoloraError: PEFT's path needs more memory than the machine has.
        """
        _require_memory(problem)
        generator = torch.Generator(device).manual_seed(seed)
        dtype, adapter = getattr(torch, problem.dtype), getattr(torch, problem.adapter_dtype)
        i, o, r, count = problem.in_features, problem.out_features, problem.rank, problem.experts
        load, tokens, top_k = problem.load, problem.tokens, problem.top_k
        routing = drawn_routing(tokens, count, top_k, load, device, seed)
        rows = len(routing.ids)

        def normal(*shape: int, scale: float, dtype: torch.dtype) -> Tensor:
            return normal_numbers(shape, generator).mul_(scale).to(dtype)

        shape = (count, i, o) if problem.layout == "conv1d" else (count, o, i)
        found = cls(
            problem,
            X=normal(rows, i, scale=1, dtype=dtype),
            W=normal(*shape, scale=i**-0.5, dtype=dtype),
            b=normal(count, o, scale=0.1, dtype=dtype) if problem.bias else None,
            A=normal(count * r, i, scale=i**-0.5, dtype=adapter),
            B=normal(o, r * count, scale=magnitude / SCALING / r**0.5, dtype=adapter),
            G=normal(rows, o, scale=1, dtype=dtype),
            routing=routing,
        )
        for name, leaf in found.leaves.items():
            leaf.requires_grad_(name in problem.gradients)
        return found

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that may need a gradient, by name."""
        return {"X": self.X, "A": self.A, "B": self.B}

    def forward(self, graph: ExpertsGraph) -> Callable[[], Tensor]:
        """The forward pass along a graph."""
        tensors = (self.X, self.W, self.b, self.A, self.B, SCALING, self.routing)
        if graph.is_reference:
            how, conv1d = self.problem.implementation, self.problem.layout == "conv1d"

            def as_peft_runs_it() -> Tensor:
                # torch computes a parametrisation once more, to check it
                merged(self.W, self.A, self.B, SCALING, self.problem.experts, conv1d=conv1d)
                return reference(*tensors, how, conv1d=conv1d)

            return as_peft_runs_it
        made = experts_executable(graph, self.problem)
        return lambda: run_experts(made, *tensors)

    def step(self, graph: ExpertsGraph) -> Callable[[], object]:
        """Forward and backward along a graph; forward only if no gradient is needed."""
        return trained(self.forward(graph), self.G)

    def floor(self) -> Callable[[], object]:
        """Forward and backward of the experts without adapters."""
        how, conv1d = self.problem.implementation, self.problem.layout == "conv1d"
        return trained(
            lambda: projected(self.X, self.W, self.b, self.routing, how, conv1d=conv1d), self.G
        )

    def clear(self) -> None:
        """Drops the gradients of the last step."""
        for leaf in self.leaves.values():
            leaf.grad = None


def _require_memory(problem: Experts) -> None:
    """Checks that PEFT's path fits the machine: some implementations need a weight for each row.

    Raises:
        AutoloraError: it does not.
    """
    there = _memory() if problem.device == "cpu" else None
    needed = 3 * reference_saved_bytes(replace(problem, gradients=("X", "A", "B")))
    if there is not None and needed > there:
        raise AutoloraError(
            f"PEFT's path by {problem.implementation} needs about {needed / 2**30:.0f} GiB at "
            f"{problem.tokens} tokens, and this machine has {there / 2**30:.0f}"
        )


@lru_cache(maxsize=1)
def _memory() -> int | None:
    """Bytes of the machine's memory, or of what this process may use; None if not known."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError, AttributeError):
        pass
    return min(found, default=None)
