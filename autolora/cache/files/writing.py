"""Tables and their files: read without fail, joined, or changed, so that nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from autolora.cache.files.atomic_update import update_file
from autolora.cache.files.disk import LIMIT, Unreadable, read
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table
from autolora.errors import AutoloraError


def read_table(path: Path) -> tuple[Table, str]:
    """The table of a file, and what makes the file as a whole corrupt, ``""`` if nothing does.

    Raises:
        Unreadable: it cannot be read.
        NewerSchema: a newer autolora wrote it.
    """
    return _parsed(read(path))


def join(place: Path, table: Table, without: Record | None = None) -> Table:
    """Joins a checked table with that of a file, which is written anew; gives what was written.

    Args:
        place: the file.
        table: to be joined.
        without: a record that is taken out of the file first.

    Raises:
        AutoloraError: it cannot be read or written, or a newer autolora wrote it.
    """
    joined = table

    def change(present: Table) -> Table:
        nonlocal joined
        present.settle(known=table)
        if without is not None:
            present.drop(without)
        joined = present.joined(table)
        return joined

    _update(place, change)
    return joined


def rewrite(place: Path, keep: Callable[[Record], bool]) -> tuple[int, int]:
    """Takes the records out of a file that are not to be kept; how many stayed, and how many went.

    A file that is not there is not made.

    Raises:
        AutoloraError: as :func:`join`.
    """
    if not os.path.lexists(place):
        return 0, 0
    kept: set[Key] = set()
    gone: set[Key] = set()

    def change(present: Table) -> Table:
        present.settle()
        kept.clear()
        for key in list(present.lines):
            record = present.record(key)
            if record is not None and keep(record):
                kept.add(key)
            elif record is not None:
                gone.add(key)
                present.drop(record)
        return present

    _update(place, change)
    return len(kept), len(gone - kept)


def _update(place: Path, change: Callable[[Table], Table]) -> None:
    """Puts a changed table in the place of the one that a file holds."""

    def changed(data: bytes | None) -> tuple[bytes, str]:
        present, damage = _parsed(data)
        new = render(change(present))
        if len(new) > LIMIT:
            raise OSError(f"it would be larger than {LIMIT // 10**6} MB")
        return new, damage or present.damage

    try:
        update_file(_target(place), changed)
    except (OSError, Unreadable, NewerSchema) as error:
        cause = getattr(error, "strerror", None) or error
        raise AutoloraError(
            f"cannot write the timing cache {place}: {cause}; mend that, or name another file "
            "with AUTOLORA_CACHE, --cache or -o"
        ) from error


def _target(place: Path) -> Path:
    """The file itself: a symbolic link stays one, and the locks of all its names agree."""
    try:
        target = Path(os.path.realpath(place))
    except ValueError as error:  # a path that holds a zero byte
        raise OSError(str(error)) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _parsed(data: bytes | None) -> tuple[Table, str]:
    if data is None:
        return Table(), ""
    try:
        return parse(data), ""
    except ValueError as error:
        return Table(), f"it is corrupt ({str(error)[:200]})"
    except MemoryError as error:
        raise Unreadable("there is not enough memory to read it") from error
