"""Training steps: the total time and saved bytes of a model's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolora.cache.records.candidate import Candidate
from autolora.cache.records.payback import Payback
from autolora.cache.records.record import Record
from autolora.graphs.kinds import find_graph
from autolora.problem import BaseProblem
from autolora.units import count, duration, percent, ratio

if TYPE_CHECKING:
    from autolora.capture.found import Capture

Chosen = Callable[[Record], Candidate]


@dataclass(frozen=True, slots=True)
class Step:
    """The measured layers of one training step.

    Args:
        tokens: of the step, None if all steps have one size.
        layers: path and problem of each layer; siblings that run together are one entry.
        records: of these problems.
        inputs: as in :class:`~autolora.capture.capture.Capture`.
    """

    tokens: int | None
    layers: tuple[tuple[str, BaseProblem], ...]
    records: Mapping[BaseProblem, Record]
    inputs: Mapping[tuple[str, BaseProblem], int]

    @property
    def when(self) -> str:
        """The beginning of a sentence about the step."""
        return "In one step" + ("" if self.tokens is None else f" of {self.tokens} tokens")

    @property
    def number(self) -> int:
        """How many layers there are."""
        return sum(max(len(problem.parts), 1) for _, problem in self.layers)

    def nanoseconds(self, chosen: Chosen) -> int:
        """The time of all layers, forward and backward, with the chosen candidates."""
        return sum(chosen(self.records[problem]).median_ns or 0 for _, problem in self.layers)

    def saved_bytes(self, chosen: Chosen) -> int:
        """The bytes that all layers save; an X known to be shared by several counts once."""
        total, counted = 0, set()
        for name, problem in self.layers:
            candidate = chosen(self.records[problem])
            total += candidate.saved_bytes
            number = self.inputs.get((name, problem))
            kept = 0 if number is None else _saved_input_bytes(candidate.graph, problem)
            if number is not None and kept:
                total -= kept if number in counted else 0
                counted.add(number)
        return total

    @property
    def payback(self) -> Payback:
        """What measuring these layers cost, and what it saves."""
        cost = sum(record.seconds for record in self.records.values())
        saved = self.nanoseconds(reference_of) - self.nanoseconds(winner_of)
        return Payback(cost, saved / 1e9)

    @property
    def sentence(self) -> str:
        """The speed-up of the winners, as a sentence."""
        reference, tuned = self.nanoseconds(reference_of), self.nanoseconds(winner_of)
        text = (
            f"{self.when}, forward and backward, these {count(self.number, 'layer')} take "
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
    """One step for each size of which a layer was measured."""
    measured = {record.problem: record for record in records}
    once: dict[tuple[str, int], BaseProblem] = {}  # one of those that differ in gradients
    usual = _usual(found)
    for name, problem in found.layers:
        if usual.get(name, problem.tokens) != problem.tokens:
            continue
        once.setdefault((name, problem.tokens), problem)
    layers = [(name, problem) for (name, _), problem in once.items() if problem in measured]
    inputs = dict(found.inputs)
    for names, problem in found.families:
        alone = list(zip(names, problem.parts, strict=True))
        if _run_together(measured.get(problem)) and set(alone) <= set(layers):
            layers = [layer for layer in layers if layer not in alone]
            layers.append((", ".join(names), problem))
            if alone[0] in inputs:
                inputs[layers[-1]] = inputs[alone[0]]
    sizes = found.sizes if len(found.sizes) > 1 else (None,)
    for tokens in sizes:
        some = tuple(layer for layer in layers if tokens in (None, layer[1].tokens))
        if some:
            yield Step(tokens, some, measured, inputs)


def _run_together(record: Record | None) -> bool:
    """Whether siblings run together by their record."""
    graph = None if record is None else find_graph(record.winner, record.problem)
    return graph is not None and not graph.is_apart


def _usual(found: Capture) -> dict[str, int]:
    """For layers whose token count varies, the count nearest to the middle of its range."""
    nearest: dict[str, int] = {}
    for name, problem in found.layers:
        if name in found.varying:
            middle = math.prod(found.varying[name]) ** 0.5
            counts = problem.tokens, nearest.get(name, problem.tokens)
            nearest[name] = min(counts, key=lambda n: abs(math.log(n / middle)))
    return nearest


def reference_of(record: Record) -> Candidate:
    """The candidate of the reference graph."""
    return _named(record, record.reference)


def winner_of(record: Record) -> Candidate:
    """The candidate of the winner."""
    return _named(record, record.winner)


def _named(record: Record, graph: str) -> Candidate:
    candidate = record.candidate(graph)
    assert candidate is not None  # checked by the record
    return candidate


def _saved_input_bytes(name: str, problem: BaseProblem) -> int:
    """The bytes of the input that a graph saves, 0 if it saves a copy or none."""
    graph = find_graph(name, problem)
    return 0 if graph is None else graph.saved_input_bytes(problem)
