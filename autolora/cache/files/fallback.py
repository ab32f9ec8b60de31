"""The fallback file for records that cannot be written to their cache file.

It is a cache file in the first folder that can be written, rewritten as records are added, and
removed once they are where they belong.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autolora.cache.files.disk import create, replace_file, temporary_file, write_all
from autolora.cache.files.paths import FILE_NAME, default_path

_ONLY = "only this program's memory has them"


class FallbackFile:
    """The fallback file of one cache, created by the first :meth:`write`."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._records = 0
        self._process = os.getpid()

    def write(self, data: bytes, count: int, target: Path) -> str:
        """Writes the file.

        Args:
            data: the content.
            count: number of records in it.
            target: the cache file that could not be written.

        Returns:
            Where the records are, as a sentence for the user.
        """
        if self._process != os.getpid():  # after a fork the file is the parent's
            self.path, self._process = None, os.getpid()
        for folder in _folders(target):
            with contextlib.suppress(OSError, ValueError):
                path = self._write(folder, data)
                if path != self.path:
                    self.remove()
                self.path, self._records = path, count
                return f"the {_measured(count)} {_is(count)} in {_hint(path, target)}"
        if self.path is None:
            return f"the {_measured(count)} could be written nowhere: {_ONLY}"
        return (
            f"of the {_measured(count)} {count - self._records} could be written nowhere: "
            f"{_ONLY}; {self._records} {_is(self._records)} in {_hint(self.path, target)}"
        )

    def remove(self) -> None:
        """Removes the file, once the records are elsewhere."""
        if self.path is not None and self._process == os.getpid():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.path = None

    def _write(self, folder: Path, data: bytes) -> Path:
        """Writes the file in a folder, replacing the one that is there already."""
        folder.mkdir(parents=True, exist_ok=True)
        exists = self.path is not None and self.path.parent == folder
        path = self.path if self.path is not None and exists else _reserve(folder)
        try:
            with temporary_file(path) as (temporary, file):
                write_all(file, data)
                replace_file(temporary, path)
        except OSError:
            if not exists:
                path.unlink(missing_ok=True)
            raise
        return path


def _reserve(folder: Path) -> Path:
    """Creates an empty file with a free name."""
    for number in itertools.count(1):
        path = folder / f"{Path(FILE_NAME).stem}.rescued-{os.getpid()}-{number}.json"
        with contextlib.suppress(FileExistsError):
            create(path).close()
            break
    return path


def _folders(target: Path) -> Iterator[Path]:
    """The folders to try, in order."""
    yield target.absolute().parent
    yield default_path().parent
    with contextlib.suppress(OSError):  # no usable folder for temporary files
        yield Path(tempfile.gettempdir())


def _hint(path: Path, target: Path) -> str:
    command = shlex.join(["autolora", "cache", "merge", str(path), "-o", str(target)])
    return f"{path}; join them with: {command}"


def _measured(count: int) -> str:
    return "1 record measured" if count == 1 else f"{count} records measured"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
