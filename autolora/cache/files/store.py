"""The timing cache: records in memory and the JSON file that holds them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from autolora.cache.files.disk import Unreadable
from autolora.cache.files.fallback import FallbackFile
from autolora.cache.files.writing import read_table, update_table
from autolora.cache.records.document import NewerSchema, render
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table, family_of
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.problem import BaseProblem

logger = logging.getLogger("autolora")


class TimingCache:
    """Records, at most one for each problem and environment.

    Args:
        records: of two for the same problem and environment the better one is kept.
        path: the file that :meth:`save`, :meth:`publish` and :meth:`replace` write.
    """

    def __init__(self, records: Iterable[Record] = (), path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._table = Table()
        self._warned = False
        self._unsaved: set[Key] = set()  # in no file
        self._fallback = FallbackFile()
        for record in records:
            self._add(record)

    @classmethod
    def load(cls, path: Path | str) -> TimingCache:
        """Reads a file; a missing one is an empty cache.

        Never raises: an unusable file or record is one logged warning. Records are validated on
        first use, so the warning may come later.
        """
        cache = cls(path=path)
        try:
            cache._table, corrupt = read_table(Path(path))
        except (Unreadable, NewerSchema) as error:
            corrupt = str(error)
        if corrupt:
            logger.warning("autolora: the timing cache %s is not used: %s", path, corrupt)
        cache._warn()
        return cache

    @property
    def records(self) -> list[Record]:
        """All records, sorted by the sizes of their problems."""
        self._table.check_all()
        self._warn()
        found = (self._table.record(key) for key in sorted(self._table.lines))
        return [record for record in found if record is not None]

    def find(self, problem: BaseProblem, environment: Environment) -> Record | None:
        """The record of a problem in an environment."""
        record = self._table.record(Key.of(problem, environment))
        self._warn()
        return record

    def same_but_tokens(self, problem: BaseProblem, environment: Environment) -> dict[int, Record]:
        """The records of a problem by token count, ascending."""
        counts = self.token_counts(problem).get(environment, [])
        found = {tokens: self.find(problem.at(tokens), environment) for tokens in counts}
        return {tokens: record for tokens, record in found.items() if record is not None}

    def token_counts(self, problem: BaseProblem) -> dict[Environment, list[int]]:
        """The measured token counts of a problem in each environment, ascending.

        The records are not validated.
        """
        counts = self._table.token_counts(family_of(problem))
        return {self._table.environments[name]: found for name, found in counts.items()}

    def problems(self) -> Iterator[tuple[BaseProblem, Environment]]:
        """The problems and environments of all records, which are not validated."""
        for key in sorted(self._table.lines):
            try:
                yield key.problem, self._table.environments[key.environment]
            except ValueError:
                continue  # an invalid record

    def merge(self, other: TimingCache) -> TimingCache:
        """A new cache with the better record of both for each problem and environment.

        Commutative, associative and idempotent, to the byte of the files saved. The path is this
        cache's.
        """
        merged = TimingCache(path=self.path)
        merged._table = self._table.joined(other._table)
        merged._unsaved = self._unsaved | other._unsaved
        return merged

    def publish(self, *records: Record) -> Path:
        """Adds records and saves.

        Raises:
            AutoloraError: as in :meth:`save`.
        """
        for record in records:
            self._add(record)
        return self.save()

    def replace(self, old: Record, new: Record) -> Path:
        """Removes a record from this cache and its file, and adds another to both.

        For a record known to be wrong, which :meth:`save` would keep if it is the better one. Only
        exactly that record is removed; all others of the file stay. Another file that still has it,
        or a program that read it before, may bring it back.

        Returns:
            The file written.

        Raises:
            AutoloraError: as in :meth:`save`.
        """
        target = self._target()
        self._table.remove(old)
        key = self._add(new)
        self._write(target, TimingCache([new])._table, without=old)
        self._unsaved.discard(key)
        return target

    def save(self, path: Path | str | None = None) -> Path:
        """Joins the records with those in the file, and writes the file.

        Afterwards this cache holds what the file holds. A file that is corrupt, or has corrupt
        records, is kept as ``NAME.corrupt-1`` (or the next free number) beside it.

        Args:
            path: another file than :attr:`path`.

        Returns:
            The file written.

        Raises:
            AutoloraError: it cannot be read or written, or a newer autolora wrote it. Records that
                are in no file yet have then been written to one that the message names.
        """
        target = self._target(path)
        self._table.check_all()
        self._warn()
        self._table = self._write(target, self._table)
        self._unsaved.clear()
        self._fallback.remove()
        return target

    @classmethod
    def rewrite(cls, path: Path | str, keep: Callable[[Record], bool]) -> tuple[int, int]:
        """Removes records from a file, under its lock.

        A corrupt file is kept as by :meth:`save`; a missing one is not created.

        Args:
            path: of the file.
            keep: whether to keep a record; called again if another program wrote meanwhile.

        Returns:
            How many records were kept, and how many removed.

        Raises:
            AutoloraError: as in :meth:`save`.
        """
        if not os.path.lexists(path):
            return 0, 0
        kept: set[Key] = set()
        removed: set[Key] = set()

        def change(table: Table) -> Table:
            table.check_all()
            kept.clear()
            for key in list(table.lines):
                record = table.record(key)
                if record is not None and keep(record):
                    kept.add(key)
                elif record is not None:
                    removed.add(key)
                    table.remove(record)
            return table

        update_table(Path(path), change)
        return len(kept), len(removed - kept)

    def _target(self, path: Path | str | None = None) -> Path:
        target = self.path if path is None else Path(path)
        if target is None:
            raise AutoloraError("this timing cache has no path; save it with save(path)")
        return target

    def _add(self, record: Record) -> Key:
        self._table.add(record)
        key = Key.of(record.problem, record.environment)
        self._unsaved.add(key)
        return key

    def _write(self, target: Path, table: Table, without: Record | None = None) -> Table:
        """Joins a validated table with that of the file, without one of its records.

        Returns the table written. If that fails, the error says where the unsaved records are.
        """
        joined = table

        def change(present: Table) -> Table:
            nonlocal joined
            present.check_all(known=table)
            if without is not None:
                present.remove(without)
            joined = present.joined(table)
            return joined

        try:
            update_table(target, change)
        except AutoloraError as error:
            unsaved = self._table.subset(self._unsaved)
            if not unsaved.lines:
                raise
            where = self._fallback.write(render(unsaved), len(unsaved.lines), target)
            raise AutoloraError(f"{error}; {where}") from error
        return joined

    def _warn(self) -> None:
        """Warns once of invalid records; after a first one all are validated."""
        if self._table.invalid_summary and not self._warned:
            self._warned = True
            self._table.check_all()
            summary = self._table.invalid_summary
            logger.warning("autolora: in the timing cache %s, %s", self.path, summary)
