"""Joining many tables into one, with the contribution of each and how conflicts were decided.

The result is that of :meth:`~autolora.cache.records.table.Table.joined`, in any order of the
tables. But only records of the result are validated: the precedence of the others is read from
their lines. So joining many tables of the same problems costs little more than reading one, and an
error in a record that loses may go unnoticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from autolora.cache.files.store import TimingCache
from autolora.cache.records.precedence import Precedence
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table
from autolora.environment import Environment


@dataclass(frozen=True, slots=True)
class Source:
    """A table to be joined, with a name such as the path of its file."""

    name: str
    table: Table


@dataclass(slots=True)
class Contribution:
    """What a source contributed to a join.

    Args:
        name: of the source.
        taken: number of its records in the result.
        equal: number of records that an earlier source has as well.
        worse: number of records that lost against another source's.
        invalid: why other records could not be used.
    """

    name: str
    taken: int = 0
    equal: int = 0
    worse: int = 0
    invalid: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Number of its valid records."""
        return self.taken + self.equal + self.worse

    @property
    def invalid_summary(self) -> str:
        """What is wrong with its invalid entries, ``""`` if there are none."""
        return Table(invalid=self.invalid).invalid_summary


class Conflict(NamedTuple):
    """Two sources with different records of one problem in one environment.

    Args:
        key: of the records.
        winner: the source whose record is in the result.
        loser: the other source.
        won: the precedence of the winner's record.
        lost: that of the loser's.
    """

    key: Key
    winner: str
    loser: str
    won: Precedence
    lost: Precedence

    @property
    def decided_by(self) -> str:
        """The field of :class:`Precedence` that decided, or ``TEXT`` if none did."""
        return self.won.decided_by(self.lost)


@dataclass(frozen=True, slots=True)
class Joined:
    """The result of a join.

    Args:
        table: the records, all validated.
        contributions: in the order of the sources.
        conflicts: in the order of the records.
    """

    table: Table
    contributions: list[Contribution]
    conflicts: list[Conflict]

    @property
    def records(self) -> list[Record]:
        """The records in the order of a file."""
        found = map(self.table.record, sorted(self.table.lines))
        return [record for record in found if record is not None]

    @property
    def environments(self) -> dict[str, Environment]:
        """The environments of the records, by id."""
        used = {key.environment for key in self.table.lines}
        return {name: self.table.environments[name] for name in sorted(used)}


class _Competitor(NamedTuple):
    """One of several records of a key, and the indices of the sources that have it."""

    precedence: Precedence
    line: str
    sources: list[int]


def join(sources: Iterable[Source]) -> Joined:
    """Joins tables: for each problem and environment the better record.

    Args:
        sources: iterated once; their tables are not kept.
    """
    table, contributions = Table(), []
    found: dict[Key, dict[str, tuple[int, ...]]] = {}  # tuples, since there may be millions
    for index, source in enumerate(sources):
        contributions.append(Contribution(source.name, invalid=list(source.table.invalid)))
        table.environments.update(source.table.environments)
        for key, line in source.table.lines.items():
            lines = found.setdefault(key, {})
            lines[line] = (*lines.get(line, ()), index)
    conflicts: list[Conflict] = []
    for key in sorted(found):
        lines = found.pop(key)
        if len(lines) == 1:  # no conflict
            ((line, indices),) = lines.items()
            table.lines[key] = line
            if _is_valid(table, key, contributions, indices):
                _count(contributions, indices)
        else:
            conflicts += _decide(table, key, lines, contributions)
    return Joined(table, contributions, conflicts)


def save(joined: Joined, path: Path | str) -> TimingCache:
    """Joins the result with the records of a file, and writes the file.

    Returns:
        What the file holds afterwards.

    Raises:
        AutoloraError: it cannot be read or written, or a newer autolora wrote it.
    """
    cache = TimingCache(path=path)
    cache._table = joined.table  # validated, and not unsaved: the sources keep them
    cache.save()
    return cache


def _decide(
    table: Table,
    key: Key,
    lines: Mapping[str, tuple[int, ...]],
    contributions: list[Contribution],
) -> Iterator[Conflict]:
    """Adds the best valid line of a key to the table; yields the conflicts that it won."""
    competitors = _competitors(table, key, lines, contributions)
    while competitors:
        best, *competitors = competitors
        table.lines[key] = best.line
        if _is_valid(table, key, contributions, best.sources):
            _count(contributions, best.sources)
            winner = contributions[min(best.sources)].name
            for other in competitors:
                for source in (contributions[index] for index in other.sources):
                    source.worse += 1
                    yield Conflict(key, winner, source.name, best.precedence, other.precedence)
            return


def _competitors(
    table: Table,
    key: Key,
    lines: Mapping[str, tuple[int, ...]],
    contributions: list[Contribution],
) -> list[_Competitor]:
    """The records of a key, the best first, with the precedence that their lines state."""
    stated = {line: Precedence.of_line(line) for line in lines}
    counts = Counter(stated.values())
    found: dict[str, _Competitor] = {}
    for line, indices in lines.items():
        precedence = stated[line]
        if precedence is None or counts[precedence] > 1:  # the canonical text decides
            alone = Table(table.environments, {key: line})
            if (record := alone.record(key)) is None:
                _mark_invalid(contributions, indices, alone.invalid[0])
                continue
            precedence, line = record.precedence, record.line
        found.setdefault(line, _Competitor(precedence, line, [])).sources.extend(indices)
    return sorted(found.values(), reverse=True)


def _is_valid(
    table: Table, key: Key, contributions: list[Contribution], indices: Iterable[int]
) -> bool:
    """Whether the line of a key is valid; if not, it is dropped and counted as invalid."""
    if table.record(key) is not None:
        return True
    _mark_invalid(contributions, indices, table.invalid.pop())
    return False


def _count(contributions: list[Contribution], indices: Iterable[int]) -> None:
    first, *others = sorted(indices)
    contributions[first].taken += 1
    for index in others:
        contributions[index].equal += 1


def _mark_invalid(contributions: list[Contribution], indices: Iterable[int], reason: str) -> None:
    for index in indices:
        contributions[index].invalid.append(reason)
