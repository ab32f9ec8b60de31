"""Crossovers: the token counts where the answer of a lookup changes from one graph to another."""

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
from autolora.problem import BaseProblem

ValidAt = Callable[[int], Valid]


@dataclass(frozen=True, slots=True)
class Range:
    """A range of token counts with the same answer.

    Args:
        first_tokens: the least token count.
        last_tokens: the largest one.
        graph: the name of the graph, None for a miss.
        measured: the token counts that were measured.
        first_speedup: time of the reference graph over that of the graph at ``first_tokens``, None
            if unknown.
        last_speedup: the same at ``last_tokens``.
    """

    first_tokens: int
    last_tokens: int
    graph: str | None
    measured: tuple[int, ...]
    first_speedup: float | None
    last_speedup: float | None


def crossovers(
    timings: TimingCache,
    problem: BaseProblem,
    environment: Environment,
    objective: Objective = TIME,
    valid_at: ValidAt = lambda tokens: lambda name: True,
) -> list[Range]:
    """The ranges of token counts with the same graph, ascending.

    They cover all counts from the least measured one to the largest; adjacent ranges have different
    graphs.

    Args:
        timings: the records.
        problem: at any token count.
        environment: the machine and its libraries.
        objective: what the graphs are chosen for.
        valid_at: for a token count, whether a graph of that name computes the problem. For each
            name this may change once as the tokens grow, and not back again.
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

    changes = [n for low, high in pairwise(counts) for n in change_points(low, high, state)]
    edges = [counts[0], *changes, counts[-1] + 1]
    pieces = [(answer(first).graph, first, after - 1) for first, after in pairwise(edges)]
    ranges = []
    for graph, group in groupby(pieces, key=itemgetter(0)):
        (_, first, last), *rest = group
        last = rest[-1][2] if rest else last
        measured = tuple(count for count in counts if first <= count <= last)
        ranges.append(
            Range(first, last, graph, measured, answer(first).speedup, answer(last).speedup)
        )
    return ranges


def change_points(first: int, last: int, state: Callable[[int], object]) -> Iterator[int]:
    """The token counts in ``(first, last]`` whose state differs from that of the number before.

    By bisection: if the state is equal at two numbers, so it is between them, since the options are
    the same there, and of several straight lines each is the lowest in a single interval.
    """
    if state(first) == state(last):
        return
    if last - first == 1:
        yield last
        return
    middle = (first + last) // 2
    yield from change_points(first, middle, state)
    yield from change_points(middle, last, state)


def _admitted(record: Record, objective: Objective, tokens: int) -> list[bool]:
    """Which candidates of a record are within the limit at another token count."""
    return [
        objective.admits(option_of(candidate, record, 0, tokens).saved_bytes)
        for candidate in record.candidates
    ]
