"""One step of a model: what its layers take together, and what they keep for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolora.cache.records.record import Candidate, Record
from autolora.cli.output.figures import count, duration, percent, ratio
from autolora.graphs.graph import REFERENCE
from autolora.graphs.space import find_graph
from autolora.graphs.tensors import bytes_of
from autolora.problem import Problem

if TYPE_CHECKING:
    from autolora.capture.capture import Capture

Chosen = Callable[[Record], Candidate]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of training, as far as it was measured.

    Args:
        tokens: of the step, None where there are steps of one size only.
        layers: path of each layer, with its problem.
        records: of these problems.
        inputs: as in :class:`~autolora.capture.capture.Capture`.
    """

    tokens: int | None
    layers: tuple[tuple[str, Problem], ...]
    records: Mapping[Problem, Record]
    inputs: Mapping[tuple[str, Problem], int]

    @property
    def when(self) -> str:
        """Which step, in words."""
        return "In one step" + ("" if self.tokens is None else f" of {self.tokens} tokens")

    def nanoseconds(self, chosen: Chosen) -> int:
        """What all layers take, forward and backward, along the candidates chosen."""
        return sum(chosen(self.records[problem]).median_ns or 0 for _, problem in self.layers)

    def saved_bytes(self, chosen: Chosen) -> int:
        """What all layers keep together; an X that several of them are known to get, once."""
        total, counted = 0, set()
        for name, problem in self.layers:
            candidate = chosen(self.records[problem])
            total += candidate.saved_bytes
            number = self.inputs.get((name, problem))
            if number is not None and _keeps_input(candidate.graph, problem):
                total -= bytes_of("X", problem) if number in counted else 0
                counted.add(number)
        return total

    @property
    def sentence(self) -> str:
        """What the winners bring."""
        reference, tuned = self.nanoseconds(reference_of), self.nanoseconds(winner_of)
        text = (
            f"{self.when}, forward and backward, these {count(len(self.layers), 'layer')} take "
            f"{duration(reference)} along the reference graphs and {duration(tuned)} tuned: "
            f"{ratio(reference / tuned)} as fast"
        )
        floors = [self.records[problem].floor_ns for _, problem in self.layers]
        if None not in floors:
            floor = sum(each or 0 for each in floors)
            if floor < reference:
                share = percent((reference - tuned) / (reference - floor))
                text += f", {share} of the LoRA overhead removed"
        return text + "."


def steps(records: Sequence[Record], found: Capture) -> Iterator[Step]:
    """One for each size of step that a layer of which was measured."""
    measured = {record.problem: record for record in records}
    once: dict[tuple[str, int], Problem] = {}  # a layer's gradients may be known only as either-or
    usual = _usual(found)
    for name, problem in found.layers:
        if usual.get(name, problem.tokens) != problem.tokens:
            continue
        once.setdefault((name, problem.tokens), problem)
    layers = [(name, problem) for (name, _), problem in once.items() if problem in measured]
    sizes = found.sizes if len(found.sizes) > 1 else (None,)
    for tokens in sizes:
        some = tuple(layer for layer in layers if tokens in (None, layer[1].tokens))
        if some:
            yield Step(tokens, some, measured, found.inputs)


def _usual(found: Capture) -> dict[str, int]:
    """Of layers whose tokens the data decide, the count that is nearest to what they were sent."""
    nearest: dict[str, int] = {}
    for name, problem in found.layers:
        if name in found.varying:
            middle = math.prod(found.varying[name]) ** 0.5
            counts = problem.tokens, nearest.get(name, problem.tokens)
            nearest[name] = min(counts, key=lambda n: abs(math.log(n / middle)))
    return nearest


def reference_of(record: Record) -> Candidate:
    """The candidate that is the reference graph."""
    return _named(record, record.reference)


def winner_of(record: Record) -> Candidate:
    """The winner."""
    return _named(record, record.winner)


def _named(record: Record, graph: str) -> Candidate:
    candidate = record.candidate(graph)
    assert candidate is not None  # a record holds to that
    return candidate


def _keeps_input(name: str, problem: Problem) -> bool:
    """Whether a graph keeps X itself, not a copy in another dtype or after dropout."""
    if name == REFERENCE:
        own = problem.dropout or problem.compute_dtype != problem.dtype
        return "A" in problem.gradients and not own
    graph = find_graph(name, problem)
    return graph is not None and "X" in graph.saved(problem)
