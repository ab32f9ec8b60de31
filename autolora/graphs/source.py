"""Code generation: each step of a graph becomes one line of torch, a graph two functions.

The lines of a step are the same whether the tuner times the step alone or a layer trains with the
whole graph. Generated code adds no dispatch to the torch calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from autolora.graphs.base import REFERENCE
from autolora.graphs.contraction import (
    Concat,
    Contraction,
    Elementwise,
    Step,
    number_of,
    stem,
)
from autolora.graphs.dropout import dropout_mask, traced_dropout_mask
from autolora.graphs.graph import Graph
from autolora.graphs.operators import dequantize, onednn, traced_onednn
from autolora.graphs.tensors import BYTES, NARROW, at_size_one, run_dtype, tensor_dtype
from autolora.problem import COMPILED, DTYPES, GRADIENTS, QUANTISED, Problem

PARAMETERS = ("A", "B", "c", "M")  # of the adapter, stored in adapter_dtype
_GRADIENTS = tuple(f"d{name}" for name in PARAMETERS)

# The global names of generated code, and those that differ where torch.compile traces it.
_SCOPE: dict[str, Any] = {
    "torch": torch,
    "onednn": onednn,
    "dropout_mask": dropout_mask,
    "dequantize": dequantize,
    # As in torch.matmul: no view for autograd, which forbids changing a view of a custom function
    # in place, as nn.ReLU(inplace=True) would.
    "reshaped": torch.ops.aten._unsafe_view.default,
    **{f"zero_{dtype}": torch.zeros((), dtype=getattr(torch, dtype)) for dtype in DTYPES},
}
_TRACED_SCOPE = _SCOPE | {"onednn": traced_onednn, "dropout_mask": traced_dropout_mask}
_IN_PLACE = re.compile(r"(\.[a-z]+)_\(")  # every such method has a twin that makes a new tensor


@dataclass(frozen=True, slots=True)
class Line:
    """One statement of a graph.

    Args:
        text: the statement, in the names of :data:`autolora.graphs.contraction.AXES`.
        reads: the variables it reads.
        writes: the variable it assigns, or changes in place.
        views: those of ``reads`` that are transposed views: memory order decides speed.
    """

    text: str
    reads: tuple[str, ...]
    writes: str
    views: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A graph compiled for given dtypes and gradients, at any size.

    ``forward(input, W, b, A, B, c, M, s, p)`` returns ``(Y, saved)``, and ``backward(G, saved, Q,
    s, p)`` returns ``(dX, dA, dB, dc, dM)``, None for a gradient that is not needed. ``input`` is X
    with any leading axes, as has Y; G and dX are matrices. A quantised layer is passed itself, for
    W and for Q. ``saved`` are the tensors named in ``saved_names``, ``input`` for X.
    """

    graph: Graph
    problem: Problem
    saved_names: tuple[str, ...]
    forward: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    backward: Callable[..., tuple[torch.Tensor | None, ...]]


def executable(graph: Graph, problem: Problem) -> Executable:
    """Compiles a graph; problems that differ in sizes alone share one."""
    return _executable(graph, at_size_one(problem))


def lines(graph: Graph, problem: Problem) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """The statements of the forward and of the backward pass."""
    problem = at_size_one(problem)
    return (
        Emitter(problem, graph.transposed, graph.onednn).emit(graph.forward_steps(problem)),
        Emitter(problem, graph.transposed, graph.onednn).emit(
            graph.backward_steps(problem), last=True
        ),
    )


@lru_cache(maxsize=4096)
def _executable(graph: Graph, problem: Problem) -> Executable:
    if graph.forward == REFERENCE:
        raise ValueError("the reference graph is plain autograd and has no source of its own")
    gradients = problem.gradients
    forward, backward = lines(graph, problem)
    names = tuple(n for n in graph.saved(problem) if n != "Q") if gradients else ()
    saved = "".join(f"{'input' if name == 'X' else name}, " for name in names)
    rows = "    X = input if input.dim() == 2 else input.flatten(0, -2)"
    scale = ["    sk = s / (1 - p)"] if _scale(problem) == "sk" else []
    weight = "Q" if problem.layout in QUANTISED else "W"
    results = ", ".join(f"d{n}" if n in gradients else "None" for n in GRADIENTS)
    source = "\n".join(
        [
            f"def forward(input, {weight}, b, A, B, c, M, s, p):",
            rows,
            *scale,
            *(f"    {line.text}" for line in forward),
            "    Y = Y if input.dim() == 2 else reshaped(Y, (*input.shape[:-1], Y.shape[1]))",
            f"    return Y, ({saved})",
            "def backward(G, saved, Q, s, p):",
            *([f"    {saved}= saved"] if names else []),
            *([rows] if "X" in names else []),
            *scale,
            *(f"    {line.text}" for line in backward),
            f"    return {results}",
        ]
    )
    made = run_source(source, graph.name, problem.mode)
    return Executable(graph, problem, names, made["forward"], made["backward"])


def run_source(
    source: str, name: str, mode: str, more: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The functions that the source of a graph defines, by name; ``more`` are its own globals."""
    scope = {**(_TRACED_SCOPE if mode == COMPILED else _SCOPE), **more}
    exec(compile(source, f"<autolora graph {name}>", "exec"), scope)
    return scope


def _scale(problem: Problem) -> str:
    """The factor of scaled products: ``sk = s / (1 - p)`` where D is not scaled by dropout.

    DoRA sends D through the base as well, and so scales D itself.
    """
    return "sk" if problem.dropout and problem.variant == "lora" else "s"


class Emitter:
    """Writes the lines of one pass; tracks which variable holds a tensor in which dtype.

    Args:
        problem: of the layer, or of one of several with one X: their dtypes are the same.
        transposed: the thin products computed as the transpose of the swapped product.
        onednn: the results of the products that oneDNN computes in float32.
    """

    def __init__(
        self, problem: Problem, transposed: Collection[str], onednn: Collection[str]
    ) -> None:
        self.problem, self.transposed, self.onednn = problem, transposed, onednn
        self.copies: dict[str, str] = {}
        self.lines: list[Line] = []

    def emit(self, steps: Sequence[Step], *, last: bool = False) -> tuple[Line, ...]:
        """The lines of some steps; ``last``: of a backward pass, whose gradients are converted."""
        for step in steps:
            if isinstance(step, Concat):
                self._concat(step)
            elif isinstance(step, Elementwise):
                self._elementwise(step)
            else:
                self._product(step, sum(step.onto in other.reads for other in steps) == 1)
        if last:
            dtype = self.problem.adapter_dtype
            for name in dict.fromkeys(line.writes for line in self.lines):
                if stem(name) in _GRADIENTS and tensor_dtype(name, self.problem) != dtype:
                    self._line(f"{name} = {name}.to(torch.{dtype})", (name,), name)
        return tuple(self.lines)

    def _dtype_of(self, name: str) -> str:
        """The dtype of the variable that has the name of a tensor: parameters are as stored."""
        stored = stem(name) in PARAMETERS
        return self.problem.adapter_dtype if stored else tensor_dtype(name, self.problem)

    def _scale(self, step: Contraction | Concat) -> str:
        return _scale(self.problem) + number_of(step.out)

    def _in(self, name: str, dtype: str) -> str:
        """The variable that holds a tensor in ``dtype``, after a conversion if necessary."""
        if self._dtype_of(name) == dtype:
            return name
        copy = f"{name}_{dtype}"
        if copy not in self.copies:
            self._line(f"{copy} = {name}.to(torch.{dtype})", (name,), copy)
            self.copies[copy] = dtype
        return copy

    def _product(self, step: Contraction, only_reader: bool) -> None:
        """``only_reader``: whether no other step reads what this one adds onto."""
        dtype, result_dtype = run_dtype(step, self.problem), tensor_dtype(step.out, self.problem)
        (first, first_transposed), (second, second_transposed) = step.operands
        # a weight stored as (in, out) is copied fastest in that order
        transposed = step.out in self.transposed or (
            stem(step.out) == "V" and self.problem.layout == "conv1d"
        )
        if transposed:
            first, second = second, first
            first_transposed, second_transposed = not second_transposed, not first_transposed
        left, right = self._in(first, dtype), self._in(second, dtype)
        a, b = f"{left}{'.t()' * first_transposed}", f"{right}{'.t()' * second_transposed}"
        scaling = self._scale(step)
        onto = step.onto if step.onto != "b" or self.problem.bias else ""
        if onto and tensor_dtype(onto, self.problem) != result_dtype:
            onto = self._in(onto, result_dtype)
        scale = f", alpha={scaling}" if step.scaled else ""
        # a dequantised weight is a temporary, which may become the merged weight in place
        in_place = onto == step.out or (
            stem(onto) == "W" and only_reader and self.problem.layout in QUANTISED
        )
        wide = ".float()" * (dtype in NARROW)
        by_onednn = step.out in self.onednn and bool(wide or stem(step.onto) in ("", "b"))
        made = "float32" if by_onednn else dtype
        end = ".t()" * transposed + f".to(torch.{result_dtype})" * (made != result_dtype)
        if by_onednn:
            bias = f"{onto}{wide}" * (stem(onto) == "b")
            b = f"{right}{'.t()' * (not second_transposed)}{wide}"
            text = f"onednn({a}{wide}, {b}{f', {bias}' if bias and not scale else ''})"
            text += f".mul_({scaling})" * step.scaled
            text += f".add_({bias})" * bool(bias and scale) + end
            if onto and not bias:
                text = f"{onto}.add_({text})" if in_place else f"torch.add({onto}, {text})"
        elif not onto and scale:
            text = f"torch.addmm({self._zero(left)}, {a}, {b}, beta=0{scale}){end}"
        elif not onto:
            text = f"torch.mm({a}, {b}){end}"
        elif dtype == result_dtype and in_place:
            text = f"{onto}.addmm_({a}, {b}{scale})"
        elif dtype == result_dtype and transposed:
            text = f"torch.addmm({onto}.t(), {a}, {b}{scale}).t()"
        elif dtype == result_dtype:
            text = f"torch.addmm({onto}, {a}, {b}{scale})"
        elif BYTES[dtype] > BYTES[result_dtype]:
            wide = f"{onto}{'.t()' * transposed}.to(torch.{dtype})"
            text = f"torch.addmm({wide}, {a}, {b}{scale}){end}"
        elif in_place:
            text = f"{onto}.add_(torch.mm({a}, {b}){'.t()' * transposed}{scale})"
        else:
            text = f"torch.add({onto}, torch.mm({a}, {b}){'.t()' * transposed}{scale})"
        self._line(f"{step.out} = {text}", (left, right, *([onto] if onto else [])), step.out)

    def _zero(self, like: str) -> str:
        """What a scaled product is added to, times zero, since torch.mm takes no factor."""
        dtype = self.problem.compute_dtype
        return f"zero_{dtype}" if self.problem.device == "cpu" else f"{like}.new_empty(())"

    def _concat(self, step: Concat) -> None:
        dtype, parts, reads = self._dtype_of(step.out), [], []
        for name in step.reads:
            last = name == step.reads[-1] and stem(name) != stem(step.out)
            own = tensor_dtype(name, self.problem) if last else dtype
            reads.append(self._in(name, own))
            scale = f".mul({self._scale(step)})" * (last and step.scaled)
            parts.append(reads[-1] + scale + f".to(torch.{dtype})" * (own != dtype))
        text = f"{step.out} = torch.cat(({', '.join(parts)}), {step.axis})"
        self._line(text, tuple(reads), step.out)

    def _elementwise(self, step: Elementwise) -> None:
        dtype = tensor_dtype(step.out, self.problem)
        dtypes = {"dtype": dtype, "adapter_dtype": self.problem.adapter_dtype}
        reads: list[str] = []

        def variable(match: re.Match[str]) -> str:
            name, own = match.groups()
            if name in dtypes:
                return dtypes[name]
            reads.append(name if own else self._in(name, dtype))
            return reads[-1]

        code = re.sub(r"\{(\w+)(!?)\}", variable, step.code)
        self._line(f"{step.out} = {code}", tuple(dict.fromkeys(reads)), step.out)

    def _line(self, text: str, reads: tuple[str, ...], writes: str) -> None:
        if self.problem.mode == COMPILED:
            text = _IN_PLACE.sub(r"\1(", text)
        views = tuple(
            name for name in dict.fromkeys(reads) if name.partition("_")[0] in self.transposed
        )
        self.lines.append(Line(text, reads, writes, views))


def statement(line: Line) -> Callable[[Mapping[str, Any]], Any]:
    """One line as a function of the variables it reads, for timing it alone."""
    names = tuple(dict.fromkeys((*line.reads, "s", "sk", "p")))
    body = line.text.partition(" = ")[2]
    scope = dict(_SCOPE)
    exec(f"def run({', '.join(names)}):\n    return {body}", scope)
    run = scope["run"]
    return lambda values: run(*(values[name] for name in names))
