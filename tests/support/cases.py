"""Problems of every kind, their tensors, and their exact results by plain autograd in float64."""

import itertools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from autolora.graphs.function import run, run_traced
from autolora.graphs.operators import dequantize
from autolora.graphs.source import executable
from autolora.problem import COMPILED, QUANTISED, Problem
from autolora.timing.quantise import quantised

S, P, SEED = 0.7, 0.25, 3
PLAIN = ("X", "A", "B")


def subsets(names):
    return [tuple(n) for size in range(len(names) + 1) for n in itertools.combinations(names, size)]


NEEDS = subsets(PLAIN)
DORA = {"variant": "dora", "gradients": (*PLAIN, "M")}
# What a problem may be beside its sizes, dtypes and gradients.
KINDS = {
    "plain": {},
    "bias": {"bias": True},
    "dropout": {"dropout": True},
    "lora_B bias": {"adapter_bias": True, "gradients": (*PLAIN, "c")},
    "everything": {"bias": True, "dropout": True, "adapter_bias": True, "gradients": (*PLAIN, "c")},
    "conv1d": {"layout": "conv1d", "bias": True},
    "conv1d dropout": {"layout": "conv1d", "dropout": True},
    "dora": DORA,
    "dora bias": {**DORA, "bias": True},
    "dora dropout": {**DORA, "dropout": True},
    "dora conv1d": {**DORA, "layout": "conv1d", "bias": True, "dropout": True},
    "nf4": {"layout": "nf4", "bias": True},
    "nf4 dropout": {"layout": "nf4", "dropout": True},
    "nf4 dora": {**DORA, "layout": "nf4"},
    "nf4 dora dropout": {**DORA, "layout": "nf4", "dropout": True},
    "int8": {"layout": "int8"},
}


def small(**changes):
    fields = {"in_features": 6, "out_features": 5, "tokens": 8, "rank": 3}
    return Problem(**{**fields, "dtype": "float64", "device": "cpu", **changes})


@dataclass
class Case:
    """The tensors of a problem, its exact results, and the layer along a graph."""

    problem: Problem
    X: torch.Tensor
    tensors: tuple
    G: torch.Tensor
    known: tuple | None = None  # the exact results, once they were asked for
    backend: str = "aot_eager"  # of torch.compile, for compiled problems

    @classmethod
    def of(cls, problem, *, seed=0, leading=None):
        """Tensors with gradients asked for as the problem says."""
        generator = torch.Generator().manual_seed(seed)
        m, i, o, r = problem.tokens, problem.in_features, problem.out_features, problem.rank

        def draw(*shape, dtype=problem.adapter_dtype, there=True):
            made = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return made.to(getattr(torch, dtype)) if there else None

        X = draw(*(leading or (m,)), i, dtype=problem.dtype)
        W = draw(o, i, dtype=problem.dtype)
        b = draw(o, dtype=problem.dtype, there=problem.bias)
        A, B = draw(r, i), draw(o, r)
        c = draw(o, there=problem.adapter_bias)
        M = draw(o, there=problem.variant == "dora")
        if problem.layout == "conv1d":
            W = W.t().contiguous().t()
        elif problem.layout in QUANTISED:
            W = quantised(W.float(), None, problem.layout)
        case = cls(problem, X, (W, b, A, B, c, M), draw(*X.shape[:-1], o, dtype=problem.dtype))
        for name, leaf in case.leaves.items():
            leaf.requires_grad_(name in problem.gradients)
        return case

    @property
    def leaves(self):
        """What may need a gradient, by name."""
        _, _, A, B, c, M = self.tensors
        every = {"X": self.X, "A": A, "B": B, "c": c, "M": M}
        return {name: leaf for name, leaf in every.items() if leaf is not None}

    @property
    def needed(self):
        """The leaves that need a gradient."""
        return [self.leaves[name] for name in self.problem.gradients]

    @property
    def p(self):
        """The probability of dropout."""
        return P if self.problem.dropout else 0.0

    def run(self, graph):
        """Y along a graph."""
        made = executable(graph, self.problem)

        def layer(X):
            runs = run_traced if self.problem.mode == COMPILED else run
            return runs(made, X, self.tensors, S, self.p)

        if self.problem.mode == COMPILED:
            layer = torch.compile(layer, backend=self.backend, fullgraph=True)
        torch.default_generator.manual_seed(SEED)
        return layer(self.X)

    def exact(self, G=None):
        """Y and the needed gradients by plain autograd on the defining equation, in float64."""
        W, b = self.tensors[:2]
        W = W.double() if isinstance(W, torch.Tensor) else dequantize(W, torch.float64)
        leaf = {
            n: t.detach().double().requires_grad_(t.requires_grad) for n, t in self.leaves.items()
        }
        torch.default_generator.manual_seed(SEED)
        D = torch.nn.functional.dropout(leaf["X"], self.p)
        Y = leaf["X"] @ W.T
        U = S * (D @ leaf["A"].T) @ leaf["B"].T
        if "M" in leaf:
            with torch.no_grad():
                norms = (W + S * leaf["B"] @ leaf["A"]).norm(dim=1)
            g = leaf["M"] / norms
            Y, U = Y + (g - 1) * (D @ W.T), g * U
        if "c" in leaf:
            U = U + S * leaf["c"]
        Y = Y + U if b is None else Y + U + b.double()
        needed = [leaf[name] for name in self.problem.gradients]
        G = self.G if G is None else G
        return Y.detach(), torch.autograd.grad(Y, needed, G.double()) if needed else ()

    def check(self, graph, tolerance):
        """The graph's results are the exact ones."""
        self.known = self.known or self.exact()
        expected, gradients = self.known
        Y = self.run(graph)
        assert Y.shape == expected.shape
        assert Y.dtype == self.X.dtype
        assert_close(Y.detach().double(), expected, tolerance, graph.name)
        assert Y.requires_grad == bool(self.needed)
        mine = torch.autograd.grad(Y, self.needed, self.G) if self.needed else ()
        for leaf, gradient, theirs in zip(self.needed, mine, gradients, strict=True):
            assert gradient.dtype == leaf.dtype
            assert_close(gradient.double(), theirs, tolerance, graph.name)


def assert_close(mine, theirs, tolerance, name):
    """As torch.testing has it, which takes ten times as long to say that all is well."""
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, **tolerance):
        torch.testing.assert_close(mine, theirs, **tolerance, msg=lambda told: f"{name}: {told}")


def flop_counter():
    """torch's own counter, told of the product in place, which it does not know."""

    def addmm_in_place(onto, left, right, **_):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place})
