"""A lookup: the search path asked for the graph of a problem; every answer says how it was found.

Exact, else interpolated between two token counts, else nearest, else from another environment, else
a miss. A name counts only where the caller says that it is a valid graph. Which of the candidates
answers is up to the objective; where only time counts it is the winner.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from autolora.cache.choice import Valid, choose, lacks, option_of
from autolora.cache.record import Candidate, Record
from autolora.cache.store import TimingCache, search_path
from autolora.environment import Environment
from autolora.objective import TIME, Objective, Option, pick
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
        detail: for people: ``"between 1024 and 2048 tokens"``, ``"from torch 2.12.0"``, and what
            the objective asks for that the record cannot give.
    """

    graph: str | None
    reason: str
    record: Record | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked: see :meth:`Lookup.find`."""

    problem: Problem
    environment: Environment
    valid: Valid
    objective: Objective


class Lookup:
    """The cache files of a search path, read when first asked and then kept.

    Args:
        paths: the files; :func:`~autolora.cache.store.search_path` unless given.
    """

    def __init__(self, paths: Sequence[Path] | None = None) -> None:
        self._paths = paths

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
    ) -> Answer:
        """The answer of the best grade; of two layers with the same grade, the first one's.

        Args:
            problem: what is to be computed.
            environment: on which machine, with which libraries.
            valid: whether a name is that of a graph which computes the problem.
            objective: what the graph is for.
        """
        asked = _Question(problem, environment, valid, objective)
        for grade in GRADES:
            for layer in self.layers:
                if (answer := grade(layer, asked)) is not None:
                    return answer
        return Answer(None, "miss", detail="not measured")

    def closest(
        self, problem: Problem, environment: Environment
    ) -> tuple[Record, tuple[str, ...]] | None:
        """The record that differs in the fewest fields, and the names of these.

        Of several, the one nearest in the sizes; None if there are no records at all.
        """
        measured = [(layer, *pair) for layer in self.layers for pair in layer.problems()]
        wanted = (problem, environment)
        measured.sort(key=lambda entry: _distance(wanted, entry[1:]))
        for layer, other, machine in measured:
            if (record := layer.find(other, machine)) is not None:
                return record, tuple(_differing(wanted, (other, machine)))
        return None


def _exact(layer: TimingCache, asked: _Question) -> Answer | None:
    record = layer.find(asked.problem, asked.environment)
    return None if record is None else _answer(asked, "exact", record)


def _interpolated(layer: TimingCache, asked: _Question) -> Answer | None:
    problem, environment, valid = asked.problem, asked.environment, asked.valid
    counts = layer.token_counts(problem).get(environment, [])
    middle = bisect_left(counts, problem.tokens)
    below = _first(layer, problem, environment, reversed(counts[:middle]))
    above = _first(layer, problem, environment, counts[middle:])
    if below is None or above is None or above.problem.tokens == problem.tokens:
        return None
    low, high = below.problem.tokens, above.problem.tokens
    share = math.log(problem.tokens / low) / math.log(high / low)
    nearer = below if share < 0.5 else above
    times = _interpolate(_times(below, valid), _times(above, valid), share)
    times |= _carried(_times(nearer, valid), times, nearer.reference)
    best = pick(_options(times, nearer, problem.tokens), asked.objective)
    if best is None:
        return None
    origin = f"between {low} and {high} tokens"
    return Answer(best.name, "interpolated", nearer, _detail(asked, nearer, origin, best.detail))


def _nearest(layer: TimingCache, asked: _Question) -> Answer | None:
    problem, environment = asked.problem, asked.environment
    counts = layer.token_counts(problem).get(environment, [])
    for tokens in sorted(counts, key=lambda count: _apart(count, problem.tokens)):
        if _apart(tokens, problem.tokens) > NEAR:
            break
        record = layer.find(problem.at(tokens), environment)
        if record is not None:
            answer = _answer(asked, "nearest", record, f"measured at {tokens} tokens")
            if answer is not None:
                return answer
    return None


def _other_environment(layer: TimingCache, asked: _Question) -> Answer | None:
    problem, environment = asked.problem, asked.environment
    found = [
        record
        for other, counts in layer.token_counts(problem).items()
        if other != environment
        and (other.device, other.device_name) == (environment.device, environment.device_name)
        for tokens in counts
        if _apart(tokens, problem.tokens) <= NEAR
        and (record := layer.find(problem.at(tokens), other)) is not None
    ]
    found.sort(key=lambda record: record.measured_at, reverse=True)
    found.sort(
        key=lambda record: _apart(record.problem.tokens, problem.tokens)
    )  # stays newest first
    for record in found:
        origin = _origin(record, problem, environment)
        if (answer := _answer(asked, "other-environment", record, origin)) is not None:
            return answer
    return None


GRADES = (_exact, _interpolated, _nearest, _other_environment)


def _first(
    layer: TimingCache,
    problem: Problem,
    environment: Environment,
    counts: Iterable[int],
) -> Record | None:
    """The record of the first of the token counts that has one."""
    records = (layer.find(problem.at(tokens), environment) for tokens in counts)
    return next((record for record in records if record is not None), None)


def _answer(asked: _Question, reason: str, record: Record, origin: str = "") -> Answer | None:
    """What one record answers, None where it has no graph that may be used."""
    best = choose(record, asked.objective, asked.valid, asked.problem.tokens)
    if best is None:
        return None
    return Answer(best.name, reason, record, _detail(asked, record, origin, best.detail))


def _detail(asked: _Question, record: Record, *parts: str) -> str:
    return "; ".join(filter(None, (*parts, lacks(record, asked.objective))))


def _options(times: Mapping[str, float], nearer: Record, tokens: int) -> list[Option]:
    """The candidates of a record at other times; each is among them, see :func:`_interpolated`."""
    return [
        option_of(candidate, nearer, times[candidate.graph], tokens)
        for candidate in nearer.candidates
        if candidate.graph in times
    ]


def _times(record: Record, valid: Valid) -> dict[str, float]:
    """The time of each candidate that was timed, was not rejected, and is valid."""
    return {
        c.graph: float(c.median_ns)
        for c in record.candidates
        if c.median_ns is not None and _accepted(c, record) and valid(c.graph)
    }


def _accepted(candidate: Candidate, record: Record) -> bool:
    judged = candidate.verdict
    return judged is None or judged.ok or candidate.graph == record.reference


def _interpolate(
    below: Mapping[str, float], above: Mapping[str, float], share: float
) -> dict[str, float]:
    """Times of what both have, on a straight line in the logarithms of time and tokens."""
    return {
        name: below[name] ** (1 - share) * above[name] ** share for name in below.keys() & above
    }


def _carried(
    nearer: Mapping[str, float], known: Mapping[str, float], reference: str
) -> dict[str, float]:
    """Times of what only the nearer record has, as far from the reference's as they are there.

    Each record holds the few graphs that looked best at its own count. Without these the winners
    of both might be missing from what the two have in common.
    """
    if reference not in known:
        return {}
    scale = known[reference] / nearer[reference]
    return {name: time * scale for name, time in nearer.items() if name not in known}


def _apart(tokens: int, wanted: int) -> float:
    """How many times more or fewer tokens."""
    return max(tokens, wanted) / min(tokens, wanted)


def _origin(record: Record, problem: Problem, environment: Environment) -> str:
    names = _differing((environment,), (record.environment,))
    origin = "from " + ", ".join(f"{name} {getattr(record.environment, name)}" for name in names)
    tokens = record.problem.tokens
    return origin if tokens == problem.tokens else f"{origin}, measured at {tokens} tokens"


def _differing(wanted: tuple[Any, ...], found: tuple[Any, ...]) -> list[str]:
    """The names of the fields in which problems and environments differ, each once."""
    return list(
        dict.fromkeys(
            field.name
            for one, other in zip(wanted, found, strict=True)
            for field in fields(one)
            if getattr(one, field.name) != getattr(other, field.name)
        )
    )


def _distance(
    wanted: tuple[Problem, Environment], found: tuple[Problem, Environment]
) -> tuple[int, float]:
    sizes = ("in_features", "out_features", "tokens", "rank")
    ratios = (_apart(getattr(found[0], s), getattr(wanted[0], s)) for s in sizes)
    return len(_differing(wanted, found)), sum(map(math.log, ratios))
