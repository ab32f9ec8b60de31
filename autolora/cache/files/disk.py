"""A file on disk: read without trusting it, written beside its place, or set aside.

Readers take no lock: a file is only ever replaced by a whole one, so they see the old or the new.
This room knows bytes and paths, not what is in them.
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

Stamp = tuple[int, int, int, int]

_READINGS = 5  # of a file that somebody is just writing in place
_PAUSE_SECONDS = 0.02
_BINARY = getattr(os, "O_BINARY", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# Not to wait for the other end of a pipe; where the flag is missing, pipes have no path.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY


class Unreadable(Exception):
    """A file that cannot be read, and so must not be written either; the message says why."""


def read(path: Path) -> bytes | None:
    """The file's content, None if there is no such file.

    Raises:
        Unreadable: no permission, no regular file, larger than :data:`LIMIT`, or somebody is
            writing into it all the time.
    """
    for attempt in range(_READINGS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
            raise Unreadable(_cause(error)) from error
        try:
            if (data := _content(descriptor)) is not None:
                return data
        except OSError as error:
            if error.errno != errno.ESTALE:  # another host has replaced it meanwhile
                raise Unreadable(_cause(error)) from error
        except MemoryError as error:
            raise Unreadable("there is not enough memory to read it") from error
        finally:
            os.close(descriptor)
    raise Unreadable("it changes while it is read; some program writes into it in place")


def require_file(path: Path) -> None:
    """Makes sure that nothing else stands there, before anything is written beside it.

    Raises:
        Unreadable: a folder, a device or the like does.
        OSError: it cannot be said.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_file(path.stat())


def create(path: Path) -> BinaryIO:
    """A new file, open for writing, with the permissions that the umask leaves.

    Raises:
        OSError: it cannot be made, or something has that name, be it a symbolic link to nowhere.
    """
    return os.fdopen(os.open(path, _CREATE, 0o666), "wb", buffering=0)


def fill(file: BinaryIO, data: bytes) -> Stamp:
    """Writes all that a new file is to hold, sees it through to the disk, and closes it.

    Raises:
        OSError: it cannot be written, or not whole.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())
    written = _stamp(os.fstat(file.fileno()))
    file.close()  # a network file system may say only now that the disk is full
    return written


@contextlib.contextmanager
def draft(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside the target, to be filled and put in its place; removed if it is not.

    While it is there, others see that somebody is writing: :func:`drafts` lists them.

    Raises:
        OSError: it cannot be made.
    """
    path = target.with_name(f"{_draft_prefix(target)}{secrets.token_hex(6)}.tmp")
    file = create(path)
    try:
        yield path, file
    finally:
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)


def drafts(target: Path) -> Iterator[tuple[Path, int]]:
    """The drafts beside the target, each with the time of its last change in ns."""
    prefix = _draft_prefix(target)
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    yield Path(entry.path), found.st_mtime_ns


def put(new: Path, target: Path) -> None:
    """Gives a filled draft the target's name, at once and for good.

    Raises:
        OSError: that cannot be done; the target is what it was.
    """
    new.replace(target)
    with contextlib.suppress(OSError):  # makes the name survive a power cut, where that can be
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(target: Path) -> Path:
    """Keeps the file under another name, ``NAME.corrupt-1`` or the next that is free.

    A second link, so that the file does not go missing before its replacement is there. Nothing is
    overwritten and no symbolic link is followed.

    Raises:
        OSError: neither a link nor a new name could be made.
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


def stamp(path: Path) -> Stamp | None:
    """What changes whenever a file or its content does; None if there is no such file.

    It is opened for that: over a network that asks the server, which a look by name may not.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        return _stamp(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes | None:
    """The content, None if it has changed meanwhile."""
    kind = os.fstat(descriptor)
    _require_file(kind)
    if kind.st_size > LIMIT:
        raise Unreadable(f"it is larger than {LIMIT // 10**6} MB")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        data = file.read(kind.st_size + 1)
    steady = len(data) == kind.st_size and _stamp(os.fstat(descriptor)) == _stamp(kind)
    return data if steady else None


def _require_file(kind: os.stat_result) -> None:
    if stat.S_ISDIR(kind.st_mode):
        raise Unreadable(f"it is a folder; name a file in it, such as {FILE_NAME}")
    if not stat.S_ISREG(kind.st_mode):
        raise Unreadable("it is a device or a pipe, not a file")


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _draft_prefix(target: Path) -> str:
    return f".{target.name}."


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
