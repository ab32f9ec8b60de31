"""The source of a graph of sibling layers.

The forward pass is in pieces, since the layers are called one by one: what serves all of them, and
the rest of each. The backward pass is one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from autolora.graphs.contraction import Step
from autolora.graphs.siblings.graph import SiblingGraph, at_size_one, onednn, transposed
from autolora.graphs.source import Emitter, run_source
from autolora.problem import QUANTISED, Siblings

_UNPACKED = "    {}, = {}"


@dataclass(frozen=True, slots=True, eq=False)
class SiblingExecutable:
    """A graph of sibling layers compiled for given dtypes and gradients, at any size.

    ``shared(input, A, e)`` returns the tensors that serve all layers, for ``saved_names`` among
    others; ``forwards[j](input, W, b, A, B, s, e, made)`` returns Y of one layer; ``backward(G,
    saved, Q, s, e)`` returns ``(dX, dA, dB)``, the latter of every layer. A, G, Q, s, dA and dB are
    sequences with an entry for each layer; e are the columns of h at which each layer's begin.
    """

    graph: SiblingGraph
    problem: Siblings
    made_names: tuple[str, ...]
    saved_names: tuple[str, ...]
    shared: Callable[..., tuple[Tensor, ...]]
    forwards: tuple[Callable[..., Tensor], ...]
    backward: Callable[..., tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]]


def sibling_executable(graph: SiblingGraph, problem: Siblings) -> SiblingExecutable:
    """Compiles a graph; problems that differ in sizes alone share one."""
    return _executable(graph, at_size_one(problem))


@lru_cache(maxsize=1024)
def _executable(graph: SiblingGraph, problem: Siblings) -> SiblingExecutable:
    if not graph.is_joint:
        raise ValueError(f"the graph {graph.name} has no source of its own")
    numbers = range(1, len(problem.ranks) + 1)
    weight = "Q" if problem.layout in QUANTISED else "W"
    shared, backward = graph.shared_steps(problem), graph.backward_steps(problem)
    forwards = graph.forward_steps(problem)
    read = {name for steps in (*forwards, backward) for step in steps for name in step.reads}
    made = tuple(step.out for step in shared if step.out in read)
    adapters = {f"{name}{number}" for name in "AB" for number in numbers}
    kept = sorted({*graph.saved(problem), *adapters})
    saved = tuple(name for name in kept if not name.startswith("Q"))
    rows = "    X = input if input.dim() == 2 else input.flatten(0, -2)"
    edges = _UNPACKED.format(", ".join(f"e{n}" for n in (0, *numbers)), "e")

    def named(letter: str) -> str:
        return ", ".join(f"{letter}{number}" for number in numbers)

    def body(steps: Sequence[Step], *, last: bool = False) -> list[str]:
        emitter = Emitter(problem.parts[0], transposed(graph), onednn(graph))
        return [f"    {line.text}" for line in emitter.emit(steps, last=last)]

    source = [
        "def shared(input, A, e):",
        rows,
        edges,
        _UNPACKED.format(named("A"), "A"),
        *body(shared),
        f"    return ({''.join(f'{name}, ' for name in made)})",
    ]
    for number, steps in zip(numbers, forwards, strict=True):
        parameters = ", ".join(f"{name}{number}" for name in (weight, "b", "A", "B", "s"))
        source += [
            f"def forward{number}(input, {parameters}, e, made):",
            rows,
            edges,
            *([_UNPACKED.format(", ".join(made), "made")] if made else []),
            *body(steps),
            f"    if input.dim() == 2: return Y{number}",
            f"    return reshaped(Y{number}, (*input.shape[:-1], Y{number}.shape[1]))",
        ]
    joined = "dA" in graph.together
    source += [
        "def backward(G, saved, Q, s, e):",
        edges,
        *(_UNPACKED.format(named(letter), letter) for letter in ("G", "Q", "s")),
        _UNPACKED.format(", ".join("input" if name == "X" else name for name in saved), "saved"),
        *([rows] if "X" in saved else []),
        *body(backward, last=True),
        f"    return {'dX' if 'X' in problem.gradients else 'None'}, ("
        + ", ".join(f"dA[e{n - 1}:e{n}]" if joined else f"dA{n}" for n in numbers)
        + f"), ({named('dB')})",
    ]
    functions = run_source("\n".join(source), graph.name, problem.mode)
    return SiblingExecutable(
        graph,
        problem,
        made,
        saved,
        functions["shared"],
        tuple(functions[f"forward{number}"] for number in numbers),
        functions["backward"],
    )
