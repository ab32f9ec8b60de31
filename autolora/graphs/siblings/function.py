"""Running a graph of sibling layers under autograd, one layer after the other.

The first layer that is called makes what serves all of them, in a node of autograd whose backward
pass is that of all layers. Its outputs are *carriers*: tensors of the shape of each Y, without
memory of their own, whose gradients are those of the Ys. So every layer computes its Y when it is
called, and nothing is computed for one that is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.function import LayerTensors, not_differentiable
from autolora.graphs.operators import dequantize
from autolora.graphs.siblings.source import SiblingExecutable


class Token:
    """Lives as long as the graph of the layer that was called first; tells if it ran backward."""

    __slots__ = ("__weakref__", "spent")

    def __init__(self) -> None:
        self.spent = False


@dataclass(slots=True, repr=False)
class SiblingCall:
    """One call of sibling layers.

    Args:
        executable: the graph, compiled for these dtypes and gradients.
        x: of all layers, ``(..., in_features)``, of at least two axes.
        tensors: of each layer, see :data:`~autolora.graphs.function.LayerTensors`.
        scalings: s of each layer.
        edges: the columns of h at which each layer's begin.
        made: what serves all layers.
        carriers: of the layers that have not been called, by their number.
    """

    executable: SiblingExecutable
    x: Tensor
    tensors: Sequence[LayerTensors]
    scalings: Sequence[float]
    edges: tuple[int, ...] = ()
    made: tuple[Tensor, ...] = ()
    carriers: dict[int, Tensor] = field(default_factory=dict)

    def start(self, token: Token) -> None:
        """Begins the call; autocast must be off."""
        if not self.x.is_contiguous():
            self.x = self.x.contiguous()
        self.edges = _edges([layer[2] for layer in self.tensors])
        parameters = [t[n] for n in (2, 3) for t in self.tensors]
        carriers = _Siblings.apply(self, token, self.x, *parameters)  # type: ignore[no-untyped-call]
        self.carriers = dict(enumerate(carriers))

    def join(self, number: int, token: Token | None = None) -> Tensor:
        """Y of a layer; the token lives as long as its graph."""
        carrier = self.carriers[number]
        Y: Tensor = _Sibling.apply(self, number, carrier, token)  # type: ignore[no-untyped-call]
        del self.carriers[number]
        return Y

    def forward(self, number: int) -> Tensor:
        """Computes Y of one layer."""
        W, b, A, B, *_ = self.tensors[number]
        run = self.executable.forwards[number]
        return run(self.x, W, b, A, B, self.scalings[number], self.edges, self.made)


def run_siblings(
    executable: SiblingExecutable,
    x: Tensor,
    tensors: Sequence[LayerTensors],
    scalings: Sequence[float],
) -> list[Tensor]:
    """Computes every Y, the layers called in their order; autocast must be off."""
    call = SiblingCall(executable, x, tensors, scalings)
    call.start(Token())
    return [call.join(number) for number in range(len(tensors))]


def run_siblings_traced(
    executable: SiblingExecutable,
    x: Tensor,
    tensors: Sequence[LayerTensors],
    scalings: Sequence[float],
) -> tuple[Tensor, ...]:
    """Computes every Y of a compiled problem at once: the compiler drops what is not used.

    Autocast may be on: the graph converts by itself. No base layer may be quantised.
    """
    x = x.contiguous()
    flat = [each for layer in tensors for each in layer[:4]]
    with torch.autocast(executable.problem.device, enabled=False):
        return _TracedSiblings.apply(x, executable, tuple(scalings), *flat)  # type: ignore[no-any-return,no-untyped-call]


class _TracedSiblings(torch.autograd.Function):
    """All layers as one node, for a trace."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, executable: SiblingExecutable, scalings: Any, *flat: Any
    ) -> tuple[Tensor, ...]:
        count = len(scalings)
        layers = [flat[4 * n : 4 * n + 4] for n in range(count)]
        edges = _edges([layer[2] for layer in layers])
        made = executable.shared(x, [layer[2] for layer in layers], edges)
        outputs = [
            executable.forwards[n](x, *layers[n], scalings[n], edges, made) for n in range(count)
        ]
        ctx.save_for_backward(*_kept(executable, x, made, layers))
        ctx.call = (executable, scalings, edges, x.shape)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        executable, scalings, edges, shape = ctx.call
        rows = [G.reshape(-1, G.shape[-1]).contiguous() for G in gradients]
        quantised = [None] * len(rows)
        with torch.autocast(executable.problem.device, enabled=False):
            dX, dA, dB = executable.backward(rows, ctx.saved_tensors, quantised, scalings, edges)
        if dX is not None:
            dX = dX.reshape(shape)
        flat: list[Tensor | None] = []
        for a, b in zip(dA, dB, strict=True):
            flat += [None, None, a, b]
        return dX, None, None, *flat


def _kept(
    executable: SiblingExecutable,
    x: Tensor,
    made: Sequence[Tensor],
    layers: Sequence[Sequence[Any]],
) -> list[Tensor]:
    """The tensors that are kept for the backward pass, in the order of their names."""
    known = {"X": x, **dict(zip(executable.made_names, made, strict=True))}
    for number, (W, _, A, B, *_) in enumerate(layers, 1):
        known |= {f"W{number}": W, f"A{number}": A, f"B{number}": B}
    return [known[name] for name in executable.saved_names]


def _edges(narrow: Sequence[Tensor]) -> tuple[int, ...]:
    """The columns of h at which each layer's begin, from every A."""
    edges = [0]
    for A in narrow:
        edges.append(edges[-1] + A.shape[0])
    return tuple(edges)


class _Siblings(torch.autograd.Function):
    """What serves all layers of a call, and their backward pass.

    A backward pass that does not reach every layer leaves the rest of the graph as it was: the
    gradients of the others may come in another one, as with layers that have nothing in common.
    """

    @staticmethod
    def forward(
        ctx: Any, call: SiblingCall, token: Token, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        executable, tensors = call.executable, call.tensors
        call.made = executable.shared(x, parameters[: len(tensors)], call.edges)
        ctx.save_for_backward(*_kept(executable, x, call.made, tensors))
        ctx.set_materialize_grads(False)
        ctx.left = None  # what a backward pass needs that comes after one that was not of all
        quantised = tuple(None if isinstance(W, Tensor) else W for W, *_ in tensors)
        # the token must not live as long as the carriers, which hold this node
        first = weakref.ref(token)
        ctx.call = (executable, tuple(call.scalings), call.edges, quantised, x.shape, first)
        shapes = ((*x.shape[:-1], B.shape[0]) for _, _, _, B, *_ in tensors)
        return tuple(x.new_empty(()).expand(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        executable, scalings, edges, quantised, shape, first = ctx.call
        if (token := first()) is not None:
            token.spent = True
        saved = ctx.saved_tensors if ctx.left is None else ctx.left
        rows = [G if G is None or G.dim() == 2 else G.reshape(-1, G.shape[-1]) for G in gradients]
        partial = any(G is None for G in rows)
        ctx.left = saved if partial else None
        with torch.autocast(executable.problem.device, enabled=False):
            if partial or torch.is_grad_enabled():
                known = dict(zip(executable.saved_names, saved, strict=True))
                dX, dA, dB = _by_formula(executable, rows, known, quantised, scalings, edges)
            else:
                given = [G.contiguous() for G in rows if G is not None]
                dX, dA, dB = executable.backward(given, saved, quantised, scalings, edges)
        if dX is not None and len(shape) != 2:
            dX = dX.view(shape)
        return None, None, dX, *dA, *dB


class _Sibling(torch.autograd.Function):
    """One layer of a call; its gradient goes to the node of all."""

    @staticmethod
    def forward(
        ctx: Any, call: SiblingCall, number: int, carrier: Tensor, token: Token | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.token = token
        return call.forward(number)

    @staticmethod
    def backward(ctx: Any, G: Tensor | None) -> tuple[None, None, Tensor | None, None]:
        return None, None, G, None


def _by_formula(
    executable: SiblingExecutable,
    gradients: Sequence[Tensor | None],
    known: dict[str, Tensor],
    quantised: Sequence[Any],
    scalings: Sequence[float],
    edges: Sequence[int],
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """The gradients by their defining equations, in differentiable operations.

    For a backward pass that is to be differentiated again, and for one that does not reach every
    layer, whose parameters then get no gradient.
    """
    problem = executable.problem
    compute = getattr(torch, problem.compute_dtype)
    stored = getattr(torch, problem.adapter_dtype)
    if torch.is_grad_enabled() and "X" not in known and "X" in problem.gradients:
        raise not_differentiable()
    X = known["X"] if "X" in known else known["D"]
    D = X.reshape(-1, X.shape[-1]).to(compute)
    dX: Tensor | None = None
    dA: list[Tensor | None] = []
    dB: list[Tensor | None] = []
    for number, (G, Q, s) in enumerate(zip(gradients, quantised, scalings, strict=True), 1):
        if G is None:
            dA.append(None)
            dB.append(None)
            continue
        A, B = known[f"A{number}"].to(compute), known[f"B{number}"].to(compute)
        g = G.to(compute)
        Z = s * (g @ B)
        if "X" in problem.gradients:
            W = known[f"W{number}"] if Q is None else dequantize(Q, G.dtype)
            part = G @ W + (Z @ A).to(G.dtype)
            dX = part if dX is None else dX + part
        dA.append((Z.t() @ D).to(stored))
        dB.append((s * g.t() @ (D @ A.t())).to(stored))
    return dX, dA, dB
