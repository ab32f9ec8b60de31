"""Reading and updating the table of records in a cache file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from autolora.cache.files.atomic_update import update_file
from autolora.cache.files.disk import LIMIT, Unreadable, read
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cache.records.table import Table
from autolora.errors import AutoloraError


def read_table(path: Path) -> tuple[Table, str]:
    """The table of a file, and why the file as a whole is corrupt, ``""`` if it is not.

    Raises:
        Unreadable: it cannot be read.
        NewerSchema: a newer autolora wrote it.
    """
    return _parse(read(path))


def update_table(path: Path, change: Callable[[Table], Table]) -> None:
    """Replaces the table of a file by what ``change`` makes of it.

    ``change`` is called again if another program wrote the file meanwhile.

    Raises:
        AutoloraError: it cannot be read or written, or a newer autolora wrote it.
    """

    def changed(data: bytes | None) -> tuple[bytes, str]:
        table, corrupt = _parse(data)
        new = render(change(table))
        if len(new) > LIMIT:
            raise OSError(f"it would be larger than {LIMIT // 10**6} MB")
        return new, corrupt or table.invalid_summary

    try:
        try:  # a symbolic link is kept, and the locks of all names of a file agree
            target = Path(os.path.realpath(path))
        except ValueError as error:  # a path with a zero byte
            raise OSError(str(error)) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        update_file(target, changed)
    except (OSError, Unreadable, NewerSchema) as error:
        cause = getattr(error, "strerror", None) or error
        raise AutoloraError(
            f"cannot write the timing cache {path}: {cause}; mend that, or name another file "
            "with AUTOLORA_CACHE, --cache or -o"
        ) from error


def _parse(data: bytes | None) -> tuple[Table, str]:
    if data is None:
        return Table(), ""
    try:
        return parse(data), ""
    except ValueError as error:
        return Table(), f"it is corrupt ({str(error)[:200]})"
    except MemoryError as error:
        raise Unreadable("there is not enough memory to read it") from error
