"""Families: one problem at several token counts, with the graph that runs at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.choice import Valid
from autolora.cache.lookup.crossovers import Range, crossovers
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.graphs.kinds import find_graph
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem


@dataclass(frozen=True, slots=True)
class Family:
    """One problem at several token counts.

    Args:
        problem: at the smallest of them.
        environment: of the records.
        measured: the token counts, ascending.
        ranges: which graph runs where.
    """

    problem: BaseProblem
    environment: Environment
    measured: tuple[int, ...]
    ranges: list[Range]


def families(
    records: Sequence[Record], asked: Objective = TIME, *, least: int = 1
) -> Iterator[Family]:
    """The families of records, in their order.

    Args:
        records: sorted by the sizes of their problems.
        asked: what graphs are chosen for.
        least: number of token counts below which a family is left out.
    """
    timings = TimingCache(records)
    found: dict[tuple[BaseProblem, Environment], list[Record]] = {}
    for record in records:
        found.setdefault((record.problem.at(1), record.environment), []).append(record)
    for (problem, environment), group in found.items():
        if len(group) < least:
            continue

        def valid_at(tokens: int, problem: BaseProblem = problem) -> Valid:
            there = problem.at(tokens)
            return lambda name: find_graph(name, there) is not None

        yield Family(
            group[0].problem,
            environment,
            tuple(record.problem.tokens for record in group),
            crossovers(timings, problem, environment, asked, valid_at),
        )
