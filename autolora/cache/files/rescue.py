"""Where records go that the cache file does not take: the disk is full, or it must not be written.

One file for each cache, a whole cache file, in the first folder that takes it; rewritten as there
are more, and removed as soon as the cache file has them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autolora.cache.files.disk import create, draft, fill, put
from autolora.cache.files.paths import FILE_NAME, default_path

_ONLY = "only this program's memory has them"


class Rescue:
    """The file of one cache; none until it is needed."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._holds = 0  # records
        self._process = os.getpid()

    def keep(self, data: bytes, count: int, place: Path) -> str:
        """Writes a file that could not be written where it belongs.

        Args:
            data: the whole file.
            count: the records in it.
            place: the file that should hold them.

        Returns:
            Where they are, as a sentence for the user.
        """
        if self._process != os.getpid():  # a fork: the file is the parent's
            self.path, self._process = None, os.getpid()
        for folder in _folders(place):
            with contextlib.suppress(OSError, ValueError):
                kept = self._write(folder, data)
                if kept != self.path:
                    self.drop()
                self.path, self._holds = kept, count
                return f"the {_records(count)} measured {_is(count)} in {_hint(kept, place)}"
        if self.path is None:
            return f"the {_records(count)} measured could be written nowhere: {_ONLY}"
        return (
            f"of the {_records(count)} measured {count - self._holds} could be written nowhere: "
            f"{_ONLY}; {self._holds} {_is(self._holds)} in {_hint(self.path, place)}"
        )

    def drop(self) -> None:
        """Removes the file, since the records are elsewhere."""
        if self.path is not None and self._process == os.getpid():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.path = None

    def _write(self, folder: Path, data: bytes) -> Path:
        """Writes the file in a folder, the one that is there already or a new one."""
        folder.mkdir(parents=True, exist_ok=True)
        there = self.path is not None and self.path.parent == folder
        place = self.path if self.path is not None and there else _reserve(folder)
        try:
            with draft(place) as (path, file):
                fill(file, data)
                put(path, place)
        except OSError:
            if not there:
                place.unlink(missing_ok=True)
            raise
        return place


def _reserve(folder: Path) -> Path:
    """A new, empty file, so that nobody else takes the name."""
    for number in itertools.count(1):
        place = folder / f"{Path(FILE_NAME).stem}.rescued-{os.getpid()}-{number}.json"
        with contextlib.suppress(FileExistsError):
            create(place).close()
            break
    return place


def _folders(place: Path) -> Iterator[Path]:
    """Where to try, in order."""
    yield place.absolute().parent
    yield default_path().parent
    with contextlib.suppress(OSError):  # none of the usual ones can be written
        yield Path(tempfile.gettempdir())


def _hint(kept: Path, place: Path) -> str:
    quoted, target = (shlex.quote(str(each)) for each in (kept, place))
    return f"{kept}; join them with: autolora cache merge {quoted} -o {target}"


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
