"""Joining many tables into one, with what came from where and how each conflict was decided.

The result is that of :meth:`~autolora.cache.records.table.Table.joined`, whatever the order of the
tables. But a line is checked only if it may stand in the result: of records that compete, what
decides between them is read from their lines, and then the best one is checked. So tables that hold
the same problems cost little more than one of them, and an error in a record that loses may go
unseen.
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
    """A table to be joined, by the name that its users know.

    Args:
        name: such as the path of its file.
        table: its records.
    """

    name: str
    table: Table


@dataclass(slots=True)
class Share:
    """What a source brought to a join.

    Args:
        name: of the source.
        taken: records that stand in the result because of it.
        equal: those that an earlier source holds as well.
        worse: those in whose place another source's stands.
        invalid: why others could not be used.
    """

    name: str
    taken: int = 0
    equal: int = 0
    worse: int = 0
    invalid: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """How many it has that can be used."""
        return self.taken + self.equal + self.worse

    @property
    def damage(self) -> str:
        """What is wrong with some of its entries in words, ``""`` if nothing is known to be."""
        return Table(invalid=self.invalid).damage


class Conflict(NamedTuple):
    """Two sources with different records of one problem in one environment.

    Args:
        key: of the records.
        winner: the source whose record is in the result.
        loser: the other source.
        won: the merit of the winner's record.
        lost: that of the loser's.
    """

    key: Key
    winner: str
    loser: str
    won: Precedence
    lost: Precedence

    @property
    def decided_by(self) -> str:
        """The field of :class:`Precedence` that decided, or ``TEXT`` where none did."""
        return self.won.decided_by(self.lost)


@dataclass(frozen=True, slots=True)
class Joined:
    """The outcome of a join.

    Args:
        table: the records, each checked.
        shares: what each source brought, in the order of the sources.
        conflicts: in the order of the records.
    """

    table: Table
    shares: list[Share]
    conflicts: list[Conflict]

    @property
    def records(self) -> list[Record]:
        """The records in the order of a file."""
        found = map(self.table.record, sorted(self.table.lines))
        return [record for record in found if record is not None]

    @property
    def environments(self) -> dict[str, Environment]:
        """The environments that records are of, by id."""
        used = {key.environment for key in self.table.lines}
        return {name: self.table.environments[name] for name in sorted(used)}


class _Rival(NamedTuple):
    """One of the records that compete for a key, and the numbers of the sources that have it."""

    merit: Precedence
    line: str
    sources: list[int]


def join(sources: Iterable[Source]) -> Joined:
    """Joins tables: of each problem and environment the better record.

    Args:
        sources: each is asked for once, and its table is not kept.
    """
    table, shares = Table(), []
    claims: dict[Key, dict[str, tuple[int, ...]]] = {}  # not lists: there may be millions
    for number, source in enumerate(sources):
        shares.append(Share(source.name, invalid=list(source.table.invalid)))
        table.environments.update(source.table.environments)
        for key, line in source.table.lines.items():
            rivals = claims.setdefault(key, {})
            rivals[line] = (*rivals.get(line, ()), number)
    conflicts: list[Conflict] = []
    for key in sorted(claims):
        lines = claims.pop(key)
        if len(lines) == 1:  # nothing to decide
            ((line, numbers),) = lines.items()
            table.lines[key] = line
            if _is_sound(table, key, shares, numbers):
                _count(shares, numbers)
        else:
            conflicts += _decide(table, key, lines, shares)
    return Joined(table, shares, conflicts)


def save(joined: Joined, path: Path | str) -> TimingCache:
    """Joins the outcome with what a file holds by now, and writes the file.

    Returns:
        What the file holds afterwards.

    Raises:
        AutoloraError: it cannot be read or written, or a newer autolora wrote it.
    """
    cache = TimingCache(path=path)
    cache._table = joined.table  # its records are checked, and need not be written out again
    cache.save()
    return cache


def _decide(
    table: Table, key: Key, lines: Mapping[str, tuple[int, ...]], shares: list[Share]
) -> Iterator[Conflict]:
    """Puts the best line of a key into the table; an unusable one makes place for the next."""
    rivals = _rivals(table, key, lines, shares)
    while rivals:
        best = rivals[0]
        table.lines[key] = best.line
        if _is_sound(table, key, shares, best.sources):
            break
        del rivals[0]
    if not rivals:
        return
    _count(shares, best.sources)
    winner = shares[min(best.sources)].name
    for rival in rivals[1:]:
        for number in rival.sources:
            shares[number].worse += 1
            yield Conflict(key, winner, shares[number].name, best.merit, rival.merit)


def _rivals(
    table: Table, key: Key, lines: Mapping[str, tuple[int, ...]], shares: list[Share]
) -> list[_Rival]:
    """The records that compete, the best first; each is as good as its line says."""
    claimed = {line: Precedence.of_line(line) for line in lines}
    often = Counter(claimed.values())
    found: dict[str, _Rival] = {}
    for line, numbers in lines.items():
        merit = claimed[line]
        if merit is None or often[merit] > 1:  # the text decides: not any but the canonical one
            alone = Table(table.environments, {key: line})
            if (record := alone.record(key)) is None:
                _mark_invalid(shares, numbers, alone.invalid[0])
                continue
            merit, line = record.precedence, record.line
        known = found.setdefault(line, _Rival(merit, line, []))
        known.sources.extend(numbers)
    return sorted(found.values(), reverse=True)


def _is_sound(table: Table, key: Key, shares: list[Share], numbers: Iterable[int]) -> bool:
    """Whether the line of a key holds a record; if not it is dropped, and its sources are told."""
    if table.record(key) is not None:
        return True
    _mark_invalid(shares, numbers, table.invalid.pop())
    return False


def _count(shares: list[Share], numbers: Iterable[int]) -> None:
    first, *others = sorted(numbers)
    shares[first].taken += 1
    for number in others:
        shares[number].equal += 1


def _mark_invalid(shares: list[Share], numbers: Iterable[int], reason: str) -> None:
    for number in numbers:
        shares[number].invalid.append(reason)
