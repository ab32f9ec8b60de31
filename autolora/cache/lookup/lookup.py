"""Looking up the graph of a problem in the cache files of the search path.

An answer is exact, interpolated between two token counts, from the nearest one, from another mode,
from another environment, or a miss. The objective decides among the candidates of a record; for
time alone it is the winner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.choice import Valid, choose, not_tuned_for
from autolora.cache.lookup.closest import SIMILARITIES, apart, closest, differing, similarity
from autolora.cache.lookup.interpolation import interpolate, options_at, usable_times
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.objective import TIME, Objective, pick
from autolora.problem import COMPILED, EAGER, BaseProblem

NEAR = 2.0  # the largest ratio of token counts of a "nearest" answer
_WINS_COMPILED = 1.0  # least speedup of an eager record whose graph is used compiled


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a lookup.

    Args:
        graph: the name of the graph to run, None for a miss.
        reason: ``"exact"``, ``"interpolated"``, ``"nearest"``, ``"other-mode"``,
            ``"other-environment"`` or ``"miss"``.
        record: the evidence; of two interpolated records the one nearer in tokens.
        detail: for people: ``"between 1024 and 2048 tokens"``, ``"same device and torch minor:
            differs in units 8"``, and what the record was not tuned for.
        speedup: time of the reference graph over that of the graph, None if unknown.
        nanoseconds: the graph's time at the token count asked for, None if unknown.
    """

    graph: str | None
    reason: str
    record: Record | None = None
    detail: str = ""
    speedup: float | None = field(default=None, compare=False)
    nanoseconds: float | None = field(default=None, compare=False)

    @property
    def saved_ns(self) -> float:
        """By which the graph is faster than the reference graph; 0 if unknown."""
        if self.nanoseconds is None or self.speedup is None:
            return 0.0
        return (self.speedup - 1) * self.nanoseconds


@dataclass(frozen=True, slots=True)
class _Query:
    """The arguments of :meth:`Lookup.find`, and where to look.

    ``measured`` holds the records of the problem in the environment by token count, ascending; for
    each count in the order of the layers.
    """

    problem: BaseProblem
    environment: Environment
    valid: Valid
    objective: Objective
    layers: Sequence[TimingCache]
    measured: dict[int, list[Record]]


class Lookup:
    """The cache files of a search path, each read on first use and kept in memory.

    Args:
        paths: the files; by default :func:`~autolora.cache.files.paths.search_path`.
    """

    def __init__(self, paths: Sequence[Path] | None = None) -> None:
        self._paths = paths
        self._families: dict[tuple[BaseProblem, Environment], dict[int, list[Record]]] = {}

    @classmethod
    def of(cls, *layers: TimingCache) -> Lookup:
        """A lookup in caches already read."""
        lookup = cls([])
        lookup.layers.extend(layers)
        return lookup

    @cached_property
    def layers(self) -> list[TimingCache]:
        """The files, in order."""
        return list(map(TimingCache.load, search_path() if self._paths is None else self._paths))

    def find(
        self,
        problem: BaseProblem,
        environment: Environment,
        valid: Valid,
        objective: Objective = TIME,
        *,
        strict: bool = False,
    ) -> Answer:
        """The answer of the best reason, and for the same reason of the first layer.

        The two nearest token counts are taken from all layers together. A compiled problem may be
        answered by eager records, not the other way round. Among other environments
        those of the same torch minor release come first, see
        :func:`~autolora.cache.lookup.closest.similarity`; another device never answers.

        Args:
            problem: what is to be computed.
            environment: the machine and its libraries.
            valid: whether a graph of that name computes the problem.
            objective: what the graph is chosen for.
            strict: whether only records of this mode and environment may answer.
        """
        query = self._query(problem, environment, valid, objective)
        answer = _same_mode(query)
        if answer is None and not strict:
            if problem.mode == COMPILED:
                eager = problem.in_mode(EAGER)
                answer = _other_mode(self._query(eager, environment, valid, objective))
            answer = answer or _other_environment(query)
        return answer or Answer(None, "miss", detail="not measured")

    def _query(
        self, problem: BaseProblem, environment: Environment, valid: Valid, objective: Objective
    ) -> _Query:
        measured = self._measured(problem.at(1), environment)
        return _Query(problem, environment, valid, objective, self.layers, measured)

    def _measured(self, family: BaseProblem, environment: Environment) -> dict[int, list[Record]]:
        """The records of a problem, given at one token, see :class:`_Query`; memoized."""
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
        self, problem: BaseProblem, environment: Environment
    ) -> tuple[Record, tuple[str, ...]] | None:
        """The record that differs in the fewest fields, and their names.

        Of several, the one nearest in the sizes; None if there are no records.
        """
        return closest(self.layers, problem, environment)


def _same_mode(query: _Query) -> Answer | None:
    for strategy in (_exact, _interpolated, _nearest):
        if (answer := strategy(query)) is not None:
            return answer
    return None


def _other_mode(query: _Query) -> Answer | None:
    """The answer of eager records for a compiled problem; ``query`` is of the eager problem.

    The compiler makes the reference graph faster too, by joining its elementwise steps, so a graph
    that wins by little in eager mode need not win compiled.
    """
    answer = _same_mode(query)
    if answer is None or answer.speedup is None or answer.speedup < _WINS_COMPILED:
        return None
    detail = "; ".join(filter(None, (f"measured {query.problem.mode}", answer.detail)))
    return replace(answer, reason="other-mode", detail=detail)


def _exact(query: _Query) -> Answer | None:
    for record in query.measured.get(query.problem.tokens, ()):
        if (answer := _answer(query, "exact", record)) is not None:
            return answer
    return None


def _interpolated(query: _Query) -> Answer | None:
    tokens = query.problem.tokens
    below = _first_usable(query, (n for n in reversed(query.measured) if n < tokens))
    above = _first_usable(query, (n for n in query.measured if n > tokens))
    if below is None or above is None:
        return None
    nearer, times = interpolate(below, above, tokens)
    best = pick(options_at(times, nearer, tokens), query.objective)
    if best is None:
        return None
    counts = f"between {below[0].problem.tokens} and {above[0].problem.tokens} tokens"
    detail = _detail(query, nearer, counts, best.detail)
    return Answer(best.name, "interpolated", nearer, detail, *_figures(times, best.name, nearer))


def _nearest(query: _Query) -> Answer | None:
    tokens = query.problem.tokens
    near = [count for count in query.measured if apart(count, tokens) <= NEAR]
    for count in sorted(near, key=lambda count: apart(count, tokens)):
        for record in query.measured[count]:
            answer = _answer(query, "nearest", record, f"measured at {count} tokens")
            if answer is not None:
                return answer
    return None


def _other_environment(query: _Query) -> Answer | None:
    for level in SIMILARITIES:
        for layer in query.layers:
            for record in _similar_records(layer, query, level):
                difference = _difference(record, query, level)
                answer = _answer(query, "other-environment", record, difference)
                if answer is not None:
                    return answer
    return None


def _similar_records(layer: TimingCache, query: _Query, level: str) -> list[Record]:
    """The records of other environments of one level of similarity, the most similar first.

    They are sorted by token ratio, then by the number of different fields, then newest first.
    """
    problem, environment = query.problem, query.environment
    found = [
        record
        for other, counts in layer.token_counts(problem).items()
        if other != environment and similarity(environment, other) == level
        for tokens in counts
        if apart(tokens, problem.tokens) <= NEAR
        and (record := layer.find(problem.at(tokens), other)) is not None
    ]
    found.sort(key=lambda record: record.measured_at, reverse=True)
    found.sort(  # stable
        key=lambda record: (
            apart(record.problem.tokens, problem.tokens),
            len(differing((environment,), (record.environment,))),
        )
    )
    return found


def _first_usable(query: _Query, counts: Iterable[int]) -> tuple[Record, dict[str, float]] | None:
    """The first record with a usable graph, and the times of its usable graphs."""
    for tokens in counts:
        for record in query.measured[tokens]:
            if times := usable_times(record, query.valid):
                return record, times
    return None


def _answer(query: _Query, reason: str, record: Record, detail: str = "") -> Answer | None:
    """The answer of one record, None if it has no usable graph."""
    best = choose(record, query.objective, query.valid, query.problem.tokens)
    if best is None:
        return None
    times = {c.graph: c.median_ns for c in record.candidates if c.median_ns is not None}
    detail = _detail(query, record, detail, best.detail)
    scale = query.problem.tokens / record.problem.tokens
    return Answer(best.name, reason, record, detail, *_figures(times, best.name, record, scale))


def _figures(
    times: Mapping[str, float], graph: str, record: Record, scale: float = 1.0
) -> tuple[float | None, float]:
    """Speedup of a graph, and its nanoseconds, times a scale."""
    reference, taken = times.get(record.reference), times[graph]
    return None if reference is None else reference / taken, scale * taken


def _detail(query: _Query, record: Record, *parts: str) -> str:
    return "; ".join(filter(None, (*parts, not_tuned_for(record, query.objective))))


def _difference(record: Record, query: _Query, level: str) -> str:
    there = record.environment
    names = differing((query.environment,), (there,))
    text = f"{level}: differs in " + ", ".join(f"{name} {getattr(there, name)}" for name in names)
    tokens = record.problem.tokens
    return text if tokens == query.problem.tokens else f"{text}, measured at {tokens} tokens"
