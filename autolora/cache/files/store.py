"""The timing cache: records in memory and the JSON file that holds them.

Reading never fails: what cannot be read is one warning and an empty cache. Writing joins: nobody's
records are lost, what was in the way is kept beside the file, and what cannot be written there is
written elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from autolora.cache.files.disk import Unreadable
from autolora.cache.files.paths import default_path, search_path
from autolora.cache.files.rescue import Rescue
from autolora.cache.files.writing import join, read_table, rewrite
from autolora.cache.records.document import NewerSchema, render
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table, family_of
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
        self._unsaved: set[Key] = set()  # what no file holds
        self._rescue = Rescue()
        for record in records:
            self._add(record)

    @classmethod
    def load(cls, path: Path | str) -> TimingCache:
        """Reads a file; a missing one is an empty cache.

        Never raises: a file or a record that cannot be used is one logged warning. A record is
        checked only when it is asked for, so a warning about records may come that late.
        """
        cache = cls(path=path)
        try:
            cache._table, damage = read_table(Path(path))
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
        merged._unsaved = self._unsaved | other._unsaved
        return merged

    def publish(self, *records: Record) -> Path:
        """Joins records and saves.

        Raises:
            AutoloraError: as :meth:`save` does.
        """
        for record in records:
            self._add(record)
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
        key = self._add(new)
        self._written(place, TimingCache([new])._table, without=old)
        self._unsaved.discard(key)
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
            AutoloraError: it cannot be read or written, or a newer autolora wrote it. Records that
                are in no file yet have then been written to one that the message names.
        """
        place = self._place(path)
        self._table.settle()
        self._tell()
        self._table = self._written(place, self._table)
        self._unsaved.clear()
        self._rescue.drop()
        return place

    @classmethod
    def rewrite(cls, path: Path | str, keep: Callable[[Record], bool]) -> tuple[int, int]:
        """Takes records out of a file for good.

        Done under the lock, so that nothing is lost that others write meanwhile. Damaged parts are
        set aside as :meth:`save` does.

        Args:
            path: of the file.
            keep: says of each record whether it stays; asked again if somebody else wrote.

        Returns:
            How many records were kept, and how many taken out.

        Raises:
            AutoloraError: as :meth:`save` does.
        """
        return rewrite(Path(path), keep)

    def _place(self, path: Path | str | None = None) -> Path:
        place = self.path if path is None else Path(path)
        if place is None:
            raise AutoloraError("this timing cache has no path; save it with save(path)")
        return place

    def _add(self, record: Record) -> Key:
        self._table.add(record)
        key = Key.of(record.problem, record.environment)
        self._unsaved.add(key)
        return key

    def _written(self, place: Path, table: Table, without: Record | None = None) -> Table:
        """The table joined with that of the file; or an error that says where the records are."""
        try:
            return join(place, table, without)
        except AutoloraError as error:
            unsaved = self._table.part(self._unsaved)
            if not unsaved.lines:
                raise
            kept = self._rescue.keep(render(unsaved), len(unsaved.lines), place)
            raise AutoloraError(f"{error}; {kept}") from error

    def _tell(self) -> None:
        """Warns once of records that cannot be used; one that proved bad has all checked."""
        if self._table.damage and not self._told:
            self._told = True
            self._table.settle()
            logger.warning("autolora: in the timing cache %s, %s", self.path, self._table.damage)
