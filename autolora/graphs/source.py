"""A graph as Python source: each step becomes one line of torch, the whole becomes two functions.

The lines of a step are the same whether the tuner times the step alone or a layer trains with the
whole graph. Generated source keeps the dispatch of a step at the price of one torch call, and a
user can read exactly what runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from autolora.graphs.contraction import Contraction, Elementwise, Join, Step
from autolora.graphs.dropout import keep
from autolora.graphs.graph import REFERENCE, Graph
from autolora.graphs.onednn import onednn
from autolora.graphs.quantised import dense
from autolora.graphs.tensors import BYTES, home_dtype, run_dtype, sizeless
from autolora.problem import DTYPES, GRADIENTS, QUANTISED, Problem

PARAMETERS = ("A", "B", "c", "M")  # of the adapter, stored in adapter_dtype

# What the source of a graph may name, beside its own variables.
_SCOPE: dict[str, Any] = {
    "torch": torch,
    "onednn": onednn,
    "keep": keep,
    "dense": dense,
    # As torch.matmul does it: no view for autograd, which lets nobody change a view of a custom
    # function in place, as nn.ReLU(inplace=True) would.
    "reshaped": torch.ops.aten._unsafe_view.default,
    **{f"nothing_{dtype}": torch.zeros((), dtype=getattr(torch, dtype)) for dtype in DTYPES},
}


@dataclass(frozen=True, slots=True)
class Line:
    """One statement of a graph.

    Args:
        text: the statement, in the names of :data:`autolora.graphs.contraction.AXES`.
        reads: the variables it needs.
        writes: the variable it makes, or changes in place.
        views: those of ``reads`` that are transposed views, since memory order decides speed.
    """

    text: str
    reads: tuple[str, ...]
    writes: str
    views: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A graph made to run for problems of given dtypes.

    ``forward(input, W, b, A, B, c, M, s, p)`` gives ``(Y, saved)``; ``backward(G, saved, Q, s, p)``
    gives ``(dX, dA, dB, dc, dM)``, None for a gradient that is not needed. ``input`` is X with any
    leading axes, and Y has the same; G and dX are matrices. W is the layer itself where it is
    quantised, and then Q is it too. ``saved`` holds the tensors of ``keeps`` in that order, with
    ``input`` itself for X.
    """

    graph: Graph
    problem: Problem
    keeps: tuple[str, ...]
    forward: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    backward: Callable[..., tuple[torch.Tensor | None, ...]]
    source: str


def executable(graph: Graph, problem: Problem) -> Executable:
    """Compiles a composed graph; sizes do not matter, so all token counts share one."""
    return _executable(graph, sizeless(problem))


def lines(graph: Graph, problem: Problem) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """The statements of the forward and of the backward pass."""
    return _lines(graph, sizeless(problem))


def _lines(graph: Graph, problem: Problem) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    return (
        _Emitter(graph, problem).emit(graph.forward_steps(problem)),
        _Emitter(graph, problem).emit(graph.backward_steps(problem), last=True),
    )


@lru_cache(maxsize=4096)
def _executable(graph: Graph, problem: Problem) -> Executable:
    if graph.forward == REFERENCE:
        raise ValueError("the reference graph is plain autograd and has no source of its own")
    gradients = problem.gradients
    forward, backward = _lines(graph, problem)
    keeps = tuple(n for n in graph.saved(problem) if n != "Q") if gradients else ()
    kept = "".join(f"{'input' if name == 'X' else name}, " for name in keeps)
    rows = "    X = input if input.dim() == 2 else input.flatten(0, -2)"
    scale = ["    sk = s / (1 - p)"] if _scale(problem) == "sk" else []
    results = ", ".join(f"d{n}" if n in gradients else "None" for n in GRADIENTS)
    source = "\n".join(
        [
            f"def forward(input, {_weight(problem)}, b, A, B, c, M, s, p):",
            rows,
            *scale,
            *(f"    {line.text}" for line in forward),
            "    Y = Y if input.dim() == 2 else reshaped(Y, (*input.shape[:-1], Y.shape[1]))",
            f"    return Y, ({kept})",
            "",
            "",
            "def backward(G, saved, Q, s, p):",
            *([f"    {kept}= saved"] if keeps else []),
            *([rows] if "X" in keeps else []),
            *scale,
            *(f"    {line.text}" for line in backward),
            f"    return {results}",
            "",
        ]
    )
    scope = dict(_SCOPE)
    exec(compile(source, f"<autolora graph {graph.name}>", "exec"), scope)
    return Executable(graph, problem, keeps, scope["forward"], scope["backward"], source)


def _weight(problem: Problem) -> str:
    """What the base weight is called in the source: as it is given, which may be quantised."""
    return "Q" if problem.layout in QUANTISED else "W"


def _scale(problem: Problem) -> str:
    """The factor of all scaled products: dropout's own is taken into it, since D goes without.

    DoRA sends D through the base too, and so has the factor in D.
    """
    return "sk" if problem.dropout and problem.variant == "lora" else "s"


class _Emitter:
    """Writes the lines of one pass; remembers which variable holds a tensor in which dtype."""

    def __init__(self, graph: Graph, problem: Problem) -> None:
        self.graph = graph
        self.problem = problem
        self.held: dict[str, str] = dict.fromkeys(PARAMETERS, problem.adapter_dtype)
        self.scale = _scale(problem)
        self.lines: list[Line] = []

    def emit(self, steps: Sequence[Step], *, last: bool = False) -> tuple[Line, ...]:
        for step in steps:
            if isinstance(step, Join):
                self._join(step)
            elif isinstance(step, Elementwise):
                self._elementwise(step)
            else:
                self._product(step, sum(step.onto in other.reads for other in steps) == 1)
        if last:
            for name in PARAMETERS:
                if any(line.writes == f"d{name}" for line in self.lines):
                    self._convert(f"d{name}", self.problem.adapter_dtype)
        return tuple(self.lines)

    def _convert(self, name: str, dtype: str) -> None:
        if home_dtype(name, self.problem) != dtype:
            self._line(f"{name} = {name}.to(torch.{dtype})", (name,), name)

    def _in(self, name: str, dtype: str) -> str:
        """The variable that holds a tensor in ``dtype``, converted where it is not there yet."""
        held = self.held.get(name, home_dtype(name, self.problem))
        if held == dtype:
            return name
        copy = f"{name}_{dtype}"
        if copy not in self.held:
            self._line(f"{copy} = {name}.to(torch.{dtype})", (name,), copy)
            self.held[copy] = dtype
        return copy

    def _product(self, step: Contraction, only_reader: bool) -> None:
        """``only_reader``: whether no other step reads what this one adds onto."""
        dtype, home = run_dtype(step, self.problem), home_dtype(step.out, self.problem)
        (first, first_turned), (second, second_turned) = step.operands
        # a weight kept as (in, out) is copied fastest in that order
        turned = step.out in self.graph.transposed or (
            step.out == "V" and self.problem.layout == "conv1d"
        )
        if turned:
            (first, first_turned), (second, second_turned) = (
                (second, not second_turned),
                (first, not first_turned),
            )
        left, right = self._in(first, dtype), self._in(second, dtype)
        a, b = f"{left}{'.t()' * first_turned}", f"{right}{'.t()' * second_turned}"
        onto = step.onto if step.onto != "b" or self.problem.bias else ""
        if onto and home_dtype(onto, self.problem) != home:
            onto = self._in(onto, home)
        scale = f", alpha={self.scale}" if step.scaled else ""
        # the dense form of a quantised weight is ours, and may become the merged weight in place
        mine = onto == "W" and only_reader and self.problem.layout in QUANTISED
        if step.out in self.graph.onednn and step.onto in ("", "b"):
            b = f"{right}{'.t()' * (not second_turned)}"
            text = f"onednn({a}, {b}{f', {onto}' if onto and not step.scaled else ''})"
            text += f".mul_({self.scale})" * step.scaled + f".add_({onto})" * bool(
                onto and step.scaled
            )
            text += _result(turned, dtype, home)
        elif not onto:
            product = (
                f"torch.addmm({self._nothing(left)}, {a}, {b}, beta=0{scale})"
                if scale
                else f"torch.mm({a}, {b})"
            )
            text = product + _result(turned, dtype, home)
        elif dtype == home and (onto == step.out or mine):
            text = f"{onto}.addmm_({a}, {b}{scale})"
        elif dtype == home and turned:
            text = f"torch.addmm({onto}.t(), {a}, {b}{scale}).t()"
        elif dtype == home:
            text = f"torch.addmm({onto}, {a}, {b}{scale})"
        elif BYTES[dtype] > BYTES[home]:
            wide = f"{onto}{'.t()' * turned}.to(torch.{dtype})"
            text = f"torch.addmm({wide}, {a}, {b}{scale})" + _result(turned, dtype, home)
        elif onto == step.out or mine:
            text = f"{onto}.add_(torch.mm({a}, {b}){'.t()' * turned}{scale})"
        else:
            text = f"torch.add({onto}, torch.mm({a}, {b}){'.t()' * turned}{scale})"
        self._line(f"{step.out} = {text}", (left, right, *([onto] if onto else [])), step.out)

    def _nothing(self, like: str) -> str:
        """What a product with a factor is added to, times zero: torch gives mm no factor."""
        dtype = self.problem.compute_dtype
        return f"nothing_{dtype}" if self.problem.device == "cpu" else f"{like}.new_empty(())"

    def _join(self, step: Join) -> None:
        first = self._in(step.first, home_dtype(step.out, self.problem))
        second = self._in(step.second, home_dtype(step.second, self.problem))
        part = f"{second}.mul({self.scale})" if step.scaled else second
        if home_dtype(step.second, self.problem) != self.problem.dtype:
            part += f".to(torch.{self.problem.dtype})"
        self._line(
            f"{step.out} = torch.cat(({first}, {part}), {step.axis})", (first, second), step.out
        )

    def _elementwise(self, step: Elementwise) -> None:
        dtype = home_dtype(step.out, self.problem)
        names = {"dtype": dtype, "adapter_dtype": self.problem.adapter_dtype}
        reads: list[str] = []

        def put(match: re.Match[str]) -> str:
            name, own = match.groups()
            if name in names:
                return names[name]
            reads.append(name if own else self._in(name, dtype))
            return reads[-1]

        code = re.sub(r"\{(\w+)(!?)\}", put, step.code)
        self._line(f"{step.out} = {code}", tuple(dict.fromkeys(reads)), step.out)

    def _line(self, text: str, reads: tuple[str, ...], writes: str) -> None:
        views = tuple(
            name for name in dict.fromkeys(reads) if name.partition("_")[0] in self.graph.transposed
        )
        self.lines.append(Line(text, reads, writes, views))


def _result(turned: bool, dtype: str, home: str) -> str:
    """Turns a product back and brings it to the dtype that its tensor is kept in."""
    return ".t()" * turned + f".to(torch.{home})" * (dtype != home)


def statement(line: Line) -> Callable[[Mapping[str, Any]], Any]:
    """One line as a function of the variables it reads, for timing it alone."""
    names = tuple(dict.fromkeys((*line.reads, "s", "sk", "p")))
    body = line.text.partition(" = ")[2]
    scope = dict(_SCOPE)
    exec(f"def run({', '.join(names)}):\n    return {body}", scope)
    run = scope["run"]
    return lambda values: run(*(values[name] for name in names))
