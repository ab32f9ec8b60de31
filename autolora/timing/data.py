"""Random tensors for a problem, and a graph or the reference as a function that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from autolora.graphs.base import REFERENCE
from autolora.graphs.function import LayerTensors, run, run_traced
from autolora.graphs.graph import Graph
from autolora.graphs.reference import reference
from autolora.graphs.source import executable
from autolora.problem import COMPILED, QUANTISED, Problem
from autolora.timing.compiling import compiled, require_compiler
from autolora.timing.quantise import quantised

_DRAWN = 1 << 20  # numbers, repeated in larger tensors: drawing takes as long as a product
_KEPT = 64  # layers, which verdict and race share: compiling one takes seconds
SCALING = 2.0  # does not affect times, but accuracy if s·B is rounded
DROPOUT = 0.1  # does not affect times


def normal_numbers(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A float32 tensor of standard normal numbers on the generator's device."""
    count, device = prod(shape), generator.device
    drawn = torch.randn(min(count, _DRAWN), generator=generator, device=device)
    return drawn.repeat(-(-count // _DRAWN))[:count].view(*shape)


@dataclass(slots=True)
class Data:
    """The tensors of one problem, of which those in ``problem.gradients`` require a gradient.

    Entries of X and G are standard normal, those of W and A have variance 1/in_features, as in a
    trained layer; B is scaled so that ``‖s·BA‖ / ‖W‖`` is about ``magnitude``; M is close to the
    norms of the rows of W. W is a layer of bitsandbytes if the problem is quantised.
    """

    problem: Problem
    X: Tensor
    W: Any
    b: Tensor | None
    A: Tensor
    B: Tensor
    c: Tensor | None
    M: Tensor | None
    G: Tensor

    @classmethod
    def random(
        cls, problem: Problem, device: torch.device, *, magnitude: float = 0.1, seed: int = 0
    ) -> Data:
        """Draws the tensors of a problem on a device.

        Raises:
            AutoloraError: W is quantised and bitsandbytes is not installed, or the problem is
                compiled and torch.compile does not work.
        """
        if problem.mode == COMPILED:
            require_compiler(device)
        generator = torch.Generator(device).manual_seed(seed)
        dtype, adapter = getattr(torch, problem.dtype), getattr(torch, problem.adapter_dtype)
        m, i, o, r = problem.tokens, problem.in_features, problem.out_features, problem.rank

        def normal(*shape: int, scale: float, dtype: torch.dtype) -> Tensor:
            return normal_numbers(shape, generator).mul_(scale).to(dtype)

        X = normal(m, i, scale=1, dtype=dtype)
        W: Any = normal(o, i, scale=i**-0.5, dtype=dtype)
        b = normal(o, scale=0.1, dtype=dtype) if problem.bias else None
        norms = torch.linalg.vector_norm(W.float(), dim=1)
        if problem.layout == "conv1d":
            W = W.t().contiguous().t()
        elif problem.layout in QUANTISED:
            W = quantised(W, b, problem.layout)
        data = cls(
            problem,
            X=X,
            W=W,
            b=b,
            A=normal(r, i, scale=i**-0.5, dtype=adapter),
            B=normal(o, r, scale=magnitude / SCALING / r**0.5, dtype=adapter),
            c=normal(o, scale=0.1, dtype=adapter) if problem.adapter_bias else None,
            M=None,
            G=normal(m, o, scale=1, dtype=dtype),
        )
        if problem.variant == "dora":
            data.M = (norms * (1 + normal(o, scale=0.1, dtype=torch.float32))).to(adapter)
        for name, tensor in data.leaves.items():
            tensor.requires_grad_(name in problem.gradients)
        return data

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that may need a gradient, by name."""
        named = {"X": self.X, "A": self.A, "B": self.B, "c": self.c, "M": self.M}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def tensors(self) -> LayerTensors:
        """The tensors of the layer."""
        return self.W, self.b, self.A, self.B, self.c, self.M

    @property
    def p(self) -> float:
        """The dropout probability."""
        return DROPOUT if self.problem.dropout else 0.0

    def forward(self, graph: Graph) -> Callable[[], Tensor]:
        """The forward pass along a graph, in the problem's mode."""
        layer = _layer(graph, self.problem)
        return lambda: layer(self.X, self.tensors)

    def step(self, graph: Graph) -> Callable[[], object]:
        """Forward and backward along a graph; forward only if no gradient is needed."""
        return trained(self.forward(graph), self.G)

    def floor(self) -> Callable[[], object]:
        """Forward and backward of the layer without an adapter."""
        layer = _floor(self.problem)
        return trained(lambda: layer(self.X, self.W, self.b), self.G)

    def clear(self) -> None:
        """Drops the gradients of the last step."""
        for tensor in self.leaves.values():
            tensor.grad = None


def trained(forward: Callable[[], Tensor], G: Tensor) -> Callable[[], object]:
    """Forward and, where Y needs a gradient, backward from G."""

    def step() -> None:
        Y = forward()
        if Y.requires_grad:
            Y.backward(G)  # type: ignore[no-untyped-call]

    return step


def layer_along(graph: Graph, problem: Problem) -> Callable[[Tensor, LayerTensors], Tensor]:
    """A graph as a function of X and the layer's tensors, to be compiled or not."""
    p = DROPOUT if problem.dropout else 0.0
    if graph.forward == REFERENCE:
        dtype = getattr(torch, problem.compute_dtype)

        def layer(X: Tensor, tensors: LayerTensors) -> Tensor:
            return reference(X, tensors, SCALING, p, dtype)

    else:
        made = executable(graph, problem)
        runs = run_traced if problem.mode == COMPILED else run

        def layer(X: Tensor, tensors: LayerTensors) -> Tensor:
            return runs(made, X, tensors, SCALING, p)

    return layer


def without_adapter(X: Tensor, W: Any, b: Tensor | None) -> Tensor:
    """The base layer alone."""
    return linear(X, W, b) if isinstance(W, Tensor) else W(X)


@lru_cache(maxsize=_KEPT)
def _layer(graph: Graph, problem: Problem) -> Callable[[Tensor, LayerTensors], Tensor]:
    """A graph as a function of X and the layer's tensors, in the problem's mode."""
    layer = layer_along(graph, problem)
    return compiled(layer) if problem.mode == COMPILED else layer


@lru_cache(maxsize=_KEPT)
def _floor(problem: Problem) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
    """The layer without an adapter, as a function of X, W and b, in the problem's mode."""
    return compiled(without_adapter) if problem.mode == COMPILED else without_adapter
