"""Crossovers: which graph rules at which token counts, between the least and the largest measured.

Nothing is decided here: every range is what a :class:`~autolora.cache.lookup.lookup.Lookup` answers
in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.choice import Valid, option_of
from autolora.cache.lookup.lookup import Answer, Lookup
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.objective import TIME, Objective
from autolora.problem import Problem

ValidAt = Callable[[int], Valid]


@dataclass(frozen=True, slots=True)
class Range:
    """Token counts for which one graph is the answer.

    Args:
        first_tokens: the least of them.
        last_tokens: the largest; all between belong to the range.
        graph: the name of the graph, None where there is no answer.
        measured: those of them that were measured.
        first_speedup: time of the reference graph over that of the graph, at the least of them;
            None where it is not known.
        last_speedup: the same at the largest.
    """

    first_tokens: int
    last_tokens: int
    graph: str | None
    measured: tuple[int, ...]
    first_speedup: float | None
    last_speedup: float | None


def crossovers(
    timings: TimingCache,
    problem: Problem,
    environment: Environment,
    objective: Objective = TIME,
    valid_at: ValidAt = lambda tokens: lambda name: True,
) -> list[Range]:
    """The ranges that a problem's graphs rule, ascending, without gaps.

    They begin at the least token count that was measured and end at the largest; without any there
    are none. What lies next to each other is ruled by different graphs.

    Args:
        timings: what was measured.
        problem: which one, at whatever token count.
        environment: on which machine, with which libraries.
        objective: what the graphs are for.
        valid_at: for a token count, whether a name is that of a graph which computes the problem.
            For each name that may change once as the tokens grow, not back again.
    """
    records = timings.same_but_tokens(problem, environment)
    if not records:
        return []
    counts = list(records)
    names = sorted({c.graph for record in records.values() for c in record.candidates})
    lookup = Lookup.of(timings)

    @cache
    def answer(tokens: int) -> Answer:
        return lookup.find(problem.at(tokens), environment, valid_at(tokens), objective)

    def state(tokens: int) -> tuple[object, ...]:
        found, valid = answer(tokens), valid_at(tokens)
        return (
            found.graph,
            found.reason,
            found.record and found.record.problem.tokens,
            list(map(valid, names)),
            [] if found.record is None else _admitted(found.record, objective, tokens),
        )

    changes = [n for low, high in pairwise(counts) for n in _changes(low, high, state)]
    edges = [counts[0], *changes, counts[-1] + 1]
    pieces = [(answer(first).graph, first, after - 1) for first, after in pairwise(edges)]
    ranges = []
    for graph, group in groupby(pieces, key=itemgetter(0)):
        joined = list(group)
        first, last = joined[0][1], joined[-1][2]
        ranges.append(
            Range(
                first,
                last,
                graph,
                tuple(count for count in counts if first <= count <= last),
                answer(first).speedup,
                answer(last).speedup,
            )
        )
    return ranges


def _changes(first: int, last: int, state: Callable[[int], object]) -> Iterator[int]:
    """The numbers after the first, up to the last, whose state is not that of the one before.

    Where the state is equal at two numbers it is so between them: the options are the same there,
    and of some straight lines each is the lowest in one stretch.
    """
    if state(first) == state(last):
        return
    if last - first == 1:
        yield last
        return
    middle = (first + last) // 2
    yield from _changes(first, middle, state)
    yield from _changes(middle, last, state)


def _admitted(record: Record, objective: Objective, tokens: int) -> list[bool]:
    """Which of a record's candidates are within the limit at another token count."""
    return [
        objective.admits(option_of(candidate, record, 0, tokens).saved_bytes)
        for candidate in record.candidates
    ]
