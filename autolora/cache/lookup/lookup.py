"""A lookup: the search path asked for the graph of a problem; every answer says how it was found.

Exact, else interpolated between two token counts, else nearest, else from another environment, else
a miss. A name counts only where the caller says that it is a valid graph. Which of the candidates
answers is up to the objective; where only time counts it is the winner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autolora.cache.files.store import TimingCache, search_path
from autolora.cache.lookup.choice import Valid, choose, lacks
from autolora.cache.lookup.closest import SIMILARITIES, apart, closest, differing, similarity
from autolora.cache.lookup.interpolation import between, options_at, usable_times
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.objective import TIME, Objective, pick
from autolora.problem import Problem

NEAR = 2.0  # how many times more or fewer tokens the nearest measured count may have


@dataclass(frozen=True, slots=True)
class Answer:
    """What the search path says about a problem.

    Args:
        graph: the name of the graph to run, None for a miss.
        reason: ``"exact"``, ``"interpolated"``, ``"nearest"``, ``"other-environment"`` or
            ``"miss"``.
        record: the evidence; where two were interpolated, the one nearer in tokens.
        detail: for people: ``"between 1024 and 2048 tokens"``, ``"same device and torch minor:
            differs in units 8"``, and what the objective asks for that the record cannot give.
        speedup: time of the reference graph over that of the graph, as far as it is known.
    """

    graph: str | None
    reason: str
    record: Record | None = None
    detail: str = ""
    speedup: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, see :meth:`Lookup.find`, and where the answer may be found.

    ``measured`` holds the records of the problem in the environment by their token counts, which
    ascend; of each count those of all layers, in the order of these.
    """

    problem: Problem
    environment: Environment
    valid: Valid
    objective: Objective
    layers: Sequence[TimingCache]
    measured: dict[int, list[Record]]
    elsewhere: bool


class Lookup:
    """The cache files of a search path, read when first asked and then kept.

    Args:
        paths: the files; :func:`~autolora.cache.files.store.search_path` unless given.
    """

    def __init__(self, paths: Sequence[Path] | None = None) -> None:
        self._paths = paths
        self._families: dict[tuple[Problem, Environment], dict[int, list[Record]]] = {}

    @classmethod
    def of(cls, *layers: TimingCache) -> Lookup:
        """A lookup in caches that were read already."""
        lookup = cls([])
        lookup.layers.extend(layers)
        return lookup

    @cached_property
    def layers(self) -> list[TimingCache]:
        """The files, in order."""
        return list(map(TimingCache.load, search_path() if self._paths is None else self._paths))

    def find(
        self,
        problem: Problem,
        environment: Environment,
        valid: Valid,
        objective: Objective = TIME,
        *,
        elsewhere: bool = True,
    ) -> Answer:
        """The answer of the best grade.

        Of two layers with the same grade, the first one's. But the nearest token counts are taken
        from all layers together, so that one may hold the count below and another the one above.
        Among the records of other environments those of the same device and torch minor release
        are a better grade than those of the same device alone, see
        :func:`~autolora.cache.lookup.closest.similarity`; another device never answers.

        Args:
            problem: what is to be computed.
            environment: on which machine, with which libraries.
            valid: whether a name is that of a graph which computes the problem.
            objective: what the graph is for.
            elsewhere: whether records of other environments may answer.
        """
        measured = self._measured(problem.at(1), environment)
        asked = _Question(problem, environment, valid, objective, self.layers, measured, elsewhere)
        for grade in GRADES:
            if (answer := grade(asked)) is not None:
                return answer
        return Answer(None, "miss", detail="not measured")

    def _measured(self, family: Problem, environment: Environment) -> dict[int, list[Record]]:
        """The records of a problem, given at one token, see :class:`_Question`; then kept."""
        found = self._families.get((family, environment))
        if found is None:
            layers = [layer.same_but_tokens(family, environment) for layer in self.layers]
            found = {
                tokens: [layer[tokens] for layer in layers if tokens in layer]
                for tokens in sorted(set().union(*layers))
            }
            self._families[family, environment] = found
        return found

    def closest(
        self, problem: Problem, environment: Environment
    ) -> tuple[Record, tuple[str, ...]] | None:
        """The record that differs in the fewest fields, and the names of these.

        Of several, the one nearest in the sizes; None if there are no records at all.
        """
        return closest(self.layers, problem, environment)


def _exact(asked: _Question) -> Answer | None:
    for record in asked.measured.get(asked.problem.tokens, ()):
        if (answer := _answer(asked, "exact", record)) is not None:
            return answer
    return None


def _interpolated(asked: _Question) -> Answer | None:
    tokens = asked.problem.tokens
    below = _first_usable(asked, (n for n in reversed(asked.measured) if n < tokens))
    above = _first_usable(asked, (n for n in asked.measured if n > tokens))
    if below is None or above is None:
        return None
    nearer, times = between(below, above, tokens)
    best = pick(options_at(times, nearer, tokens), asked.objective)
    if best is None:
        return None
    origin = f"between {below[0].problem.tokens} and {above[0].problem.tokens} tokens"
    detail = _detail(asked, nearer, origin, best.detail)
    speedup = _speedup(times, best.name, nearer.reference)
    return Answer(best.name, "interpolated", nearer, detail, speedup)


def _nearest(asked: _Question) -> Answer | None:
    tokens = asked.problem.tokens
    near = [count for count in asked.measured if apart(count, tokens) <= NEAR]
    for count in sorted(near, key=lambda count: apart(count, tokens)):
        for record in asked.measured[count]:
            answer = _answer(asked, "nearest", record, f"measured at {count} tokens")
            if answer is not None:
                return answer
    return None


def _other_environment(asked: _Question) -> Answer | None:
    if not asked.elsewhere:
        return None
    for kin in SIMILARITIES:
        for layer in asked.layers:
            for record in _of_similar(layer, asked, kin):
                origin = _origin(record, asked, kin)
                if (answer := _answer(asked, "other-environment", record, origin)) is not None:
                    return answer
    return None


def _of_similar(layer: TimingCache, asked: _Question, kin: str) -> list[Record]:
    """The records of one kind of other environments, the one that should answer first.

    It is the nearest in tokens, then the one that differs in the fewest fields, then the newest.
    """
    problem, environment = asked.problem, asked.environment
    found = [
        record
        for other, counts in layer.token_counts(problem).items()
        if other != environment and similarity(environment, other) == kin
        for tokens in counts
        if apart(tokens, problem.tokens) <= NEAR
        and (record := layer.find(problem.at(tokens), other)) is not None
    ]
    found.sort(key=lambda record: record.measured_at, reverse=True)
    found.sort(  # a stable sort: what is equal in these stays newest first
        key=lambda record: (
            apart(record.problem.tokens, problem.tokens),
            len(differing((environment,), (record.environment,))),
        )
    )
    return found


GRADES = (_exact, _interpolated, _nearest, _other_environment)


def _first_usable(
    asked: _Question, counts: Iterable[int]
) -> tuple[Record, dict[str, float]] | None:
    """The first record that has a graph that may be used, and the times of those."""
    for tokens in counts:
        for record in asked.measured[tokens]:
            if times := usable_times(record, asked.valid):
                return record, times
    return None


def _answer(asked: _Question, reason: str, record: Record, origin: str = "") -> Answer | None:
    """What one record answers, None where it has no graph that may be used."""
    best = choose(record, asked.objective, asked.valid, asked.problem.tokens)
    if best is None:
        return None
    times = {c.graph: c.median_ns for c in record.candidates if c.median_ns is not None}
    detail = _detail(asked, record, origin, best.detail)
    return Answer(best.name, reason, record, detail, _speedup(times, best.name, record.reference))


def _speedup(times: Mapping[str, float], graph: str, reference: str) -> float | None:
    return times[reference] / times[graph] if reference in times else None


def _detail(asked: _Question, record: Record, *parts: str) -> str:
    return "; ".join(filter(None, (*parts, lacks(record, asked.objective))))


def _origin(record: Record, asked: _Question, kin: str) -> str:
    there = record.environment
    names = differing((asked.environment,), (there,))
    origin = f"{kin}: differs in " + ", ".join(f"{name} {getattr(there, name)}" for name in names)
    tokens = record.problem.tokens
    return origin if tokens == asked.problem.tokens else f"{origin}, measured at {tokens} tokens"
