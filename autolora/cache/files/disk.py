"""Reading and replacing files safely.

Readers take no lock: a file is only ever replaced as a whole, so they see the old or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autolora.cache.files.paths import FILE_NAME

LIMIT = 256 * 10**6  # bytes; 100,000 records need about as much

FileVersion = tuple[int, int, int, int]  # device, inode, size, time of the last change in ns

_ATTEMPTS = 5  # to read a file that is being written in place
_PAUSE_SECONDS = 0.02
_BINARY = getattr(os, "O_BINARY", 0)
# O_NONBLOCK: do not wait for the other end of a pipe
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | _BINARY


class Unreadable(Exception):
    """A file that cannot be read, and so must not be written either; the message says why."""


def read(path: Path) -> bytes | None:
    """The content of a file, None if there is no such file.

    Raises:
        Unreadable: no permission, not a regular file, larger than :data:`LIMIT`, or continuously
            written in place.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise Unreadable(_cause(error)) from error
        try:
            if (data := _content(descriptor)) is not None:
                return data
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced by another host meanwhile
                raise Unreadable(_cause(error)) from error
        except MemoryError as error:
            raise Unreadable("there is not enough memory to read it") from error
        finally:
            os.close(descriptor)
    raise Unreadable("it changes while it is read; some program writes into it in place")


def require_file(path: Path) -> None:
    """Checks that a path is a regular file or does not exist.

    Raises:
        Unreadable: it is a folder, a device or the like.
        OSError: it cannot be checked.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_file(path.stat())


def create(path: Path) -> BinaryIO:
    """Creates a file for writing, with the permissions that the umask leaves.

    Raises:
        OSError: it cannot be created, or exists, be it as a symbolic link to nowhere.
    """
    return os.fdopen(os.open(path, _CREATE, 0o666), "wb", buffering=0)


def write_all(file: BinaryIO, data: bytes) -> FileVersion:
    """Writes data to a new file, flushes it to the disk, and closes it.

    Raises:
        OSError: it cannot be written completely.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())
    version = _version(os.fstat(file.fileno()))
    file.close()  # a network file system may report a full disk only now
    return version


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside the target, for :func:`replace_file`; removed on exit if still there.

    As long as it exists, :func:`temporary_files` shows other writers that this one is at work.

    Raises:
        OSError: it cannot be created.
    """
    path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    file = create(path)
    try:
        yield path, file
    finally:
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)


def temporary_files(target: Path) -> Iterator[tuple[Path, int]]:
    """The temporary files beside the target, each with the time of its last change in ns."""
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f".{target.name}.") and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False).st_mtime_ns


def replace_file(new: Path, target: Path) -> None:
    """Renames a written temporary file to the target, atomically and durably.

    Raises:
        OSError: that failed; the target is unchanged.
    """
    new.replace(target)
    with contextlib.suppress(OSError):  # makes the rename survive a power failure, if possible
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def keep_corrupt(target: Path) -> Path:
    """Keeps a corrupt file as ``NAME.corrupt-1`` or with the next free number.

    By a hard link, so that the file is there until it is replaced. Nothing is overwritten, and no
    symbolic link is followed.

    Raises:
        OSError: it can be neither linked nor renamed.
    """
    for number in itertools.count(1):
        kept = target.with_name(f"{target.name}.corrupt-{number}")
        try:
            os.link(target, kept, follow_symlinks=False)
        except FileExistsError:
            continue
        except (OSError, NotImplementedError):  # a file system without links
            if os.path.lexists(kept):
                continue
            target.rename(kept)
        break
    return kept


def version_of(path: Path) -> FileVersion | None:
    """The version of a file, which changes with its content; None if there is no such file.

    The file is opened, since over a network a mere ``stat`` may not ask the server.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        return _version(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes | None:
    """The content, None if it has changed meanwhile."""
    before = os.fstat(descriptor)
    _require_file(before)
    if before.st_size > LIMIT:
        raise Unreadable(f"it is larger than {LIMIT // 10**6} MB")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        data = file.read(before.st_size + 1)
    unchanged = len(data) == before.st_size and _version(os.fstat(descriptor)) == _version(before)
    return data if unchanged else None


def _require_file(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise Unreadable(f"it is a folder; name a file in it, such as {FILE_NAME}")
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("it is a device or a pipe, not a file")


def _version(found: os.stat_result) -> FileVersion:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
