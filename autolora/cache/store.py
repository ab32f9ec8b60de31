"""The timing cache: records in memory and the JSON file that holds them.

Reading never fails: what cannot be read is one warning and an empty cache. Writing joins: nobody's
records are lost, and what was in the way is kept beside the file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from autolora.cache.document import NewerSchema, parse, render
from autolora.cache.files import LIMIT, Unreadable, locked, read, replace, set_aside
from autolora.cache.paths import default_path, search_path
from autolora.cache.record import Record
from autolora.cache.table import Key, Table, family_of
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.problem import Problem

__all__ = ["TimingCache", "default_path", "search_path"]

logger = logging.getLogger("autolora")


class TimingCache:
    """Records, at most one for each problem and environment.

    Args:
        records: of two for the same problem and environment the better one stays.
        path: the file that :meth:`save`, :meth:`publish` and :meth:`replace` write.
    """

    def __init__(self, records: Iterable[Record] = (), path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._table = Table()
        self._told = False
        for record in records:
            self._table.add(record)

    @classmethod
    def load(cls, path: Path | str) -> TimingCache:
        """Reads a file; a missing one is an empty cache.

        Never raises: a file or a record that cannot be used is one logged warning. A record is
        checked only when it is asked for, so a warning about records may come that late.
        """
        cache = cls(path=path)
        try:
            cache._table, damage = _read(Path(path))
        except (Unreadable, NewerSchema) as error:
            damage = str(error)
        if damage:
            logger.warning("autolora: the timing cache %s is not used: %s", path, damage)
        cache._tell()
        return cache

    @property
    def records(self) -> list[Record]:
        """All records, by the sizes of their problems."""
        self._table.settle()
        self._tell()
        found = (self._table.record(key) for key in sorted(self._table.lines))
        return [record for record in found if record is not None]

    def find(self, problem: Problem, environment: Environment) -> Record | None:
        """The record of a problem in an environment."""
        record = self._table.record(Key.of(problem, environment))
        self._tell()
        return record

    def same_but_tokens(self, problem: Problem, environment: Environment) -> dict[int, Record]:
        """The records of the problem at whatever token counts, those ascending."""
        counts = self.token_counts(problem).get(environment, [])
        found = {tokens: self.find(problem.at(tokens), environment) for tokens in counts}
        return {tokens: record for tokens, record in found.items() if record is not None}

    def token_counts(self, problem: Problem) -> dict[Environment, list[int]]:
        """In which environments, and there for which token counts, the problem was measured.

        Whatever its own tokens; the counts are ascending. Says what the file promises: the record
        itself may still turn out to be unusable.
        """
        counts = self._table.token_counts(family_of(problem))
        return {self._table.environments[name]: found for name, found in counts.items()}

    def problems(self) -> Iterator[tuple[Problem, Environment]]:
        """What there are records of, without checking these."""
        for key in sorted(self._table.lines):
            try:
                yield key.problem, self._table.environments[key.environment]
            except ValueError:
                continue  # its record is none either

    def merge(self, other: TimingCache) -> TimingCache:
        """A new cache with the records of both: for each problem and environment the better.

        Commutative, associative and idempotent, to the byte of the files saved. The path is this
        cache's.
        """
        merged = TimingCache(path=self.path)
        merged._table = self._table.joined(other._table)
        return merged

    def publish(self, record: Record) -> Path:
        """Joins one record and saves.

        Raises:
            AutoloraError: as :meth:`save` does.
        """
        self._table.add(record)
        return self.save()

    def replace(self, old: Record, new: Record) -> Path:
        """Takes one record out of this cache and of its file, and joins another to both.

        For a record that is known to be wrong, however well it was measured: a join would keep it
        if it is the better of the two. It is taken out only as it is given: one that somebody else
        has put in its place meanwhile is joined with the new one like any other. All other records
        of the file stay as they are.

        This holds for one file. A file that still has the old record may bring it back when the two
        are merged, and so may a program that has read it before and saves later.

        Returns:
            The file written.

        Raises:
            AutoloraError: as :meth:`save` does.
        """
        place = self._place()
        self._table.drop(old)
        self._table.add(new)
        _join(place, TimingCache([new])._table, without=old)
        return place

    def save(self, path: Path | str | None = None) -> Path:
        """Joins the records with those in the file, and writes the file anew.

        Afterwards this cache holds what the file holds. A file that is corrupt, or some of whose
        records are, is kept as ``NAME.corrupt-1`` (or the next number that is free) beside it.

        Args:
            path: another file than :attr:`path`.

        Returns:
            The file written.

        Raises:
            AutoloraError: it cannot be read or written, or a newer autolora wrote it.
        """
        place = self._place(path)
        self._table.settle()
        self._tell()
        self._table = _join(place, self._table)
        return place

    def _place(self, path: Path | str | None = None) -> Path:
        place = self.path if path is None else Path(path)
        if place is None:
            raise AutoloraError("this timing cache has no path; save it with save(path)")
        return place

    def _tell(self) -> None:
        """Warns once of records that cannot be used; one that proved bad has all checked."""
        if self._table.damage and not self._told:
            self._told = True
            self._table.settle()
            logger.warning("autolora: in the timing cache %s, %s", self.path, self._table.damage)


def _read(path: Path) -> tuple[Table, str]:
    """The table of a file, and what makes the file as a whole corrupt, ``""`` if nothing does.

    Raises:
        Unreadable: it cannot be read.
        NewerSchema: a newer autolora wrote it.
    """
    data = read(path)
    if data is None:
        return Table(), ""
    try:
        return parse(data), ""
    except ValueError as error:
        return Table(), f"it is corrupt ({str(error)[:200]})"


def _join(place: Path, table: Table, without: Record | None = None) -> Table:
    """Joins a checked table with that of a file, which is written anew; gives what was written.

    Args:
        place: the file.
        table: to be joined.
        without: a record that is taken out of the file first.

    Raises:
        AutoloraError: it cannot be read or written, or a newer autolora wrote it.
    """
    try:
        target = Path(os.path.realpath(place))  # a symbolic link stays one, and locks agree
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            return _write(target, table, without)
    except (OSError, Unreadable, NewerSchema) as error:
        cause = getattr(error, "strerror", None) or error
        raise AutoloraError(
            f"cannot write the timing cache {place}: {cause}; mend that, or name another file "
            "with --cache or AUTOLORA_CACHE"
        ) from error


def _write(target: Path, table: Table, without: Record | None) -> Table:
    present, damage = _read(target)
    present.settle(known=table)
    if without is not None:
        present.drop(without)
    joined = present.joined(table)
    data = render(joined)
    if len(data) > LIMIT:
        raise OSError(f"it would be larger than {LIMIT // 10**6} MB")
    if damage := damage or present.damage:
        kept = set_aside(target)
        logger.warning("autolora: of the timing cache %s, %s; kept as %s", target, damage, kept)
    replace(target, data)
    return joined
