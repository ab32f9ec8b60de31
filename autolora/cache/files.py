"""A file on disk: read without trusting it, locked, replaced whole, or set aside.

Readers take no lock: a file is only ever replaced by a whole one, so they see the old or the new.
This room knows bytes and paths, not what is in them.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from autolora.cache.paths import FILE_NAME

LIMIT = 256 * 10**6  # bytes; 100,000 records need about as much

_LOCK_SECONDS = 60.0  # a writer needs milliseconds; one that is stopped must not stop all others
_POLL_SECONDS = 0.01
_STALE_SECONDS = 3600.0


class Unreadable(Exception):
    """A file that cannot be read, and so must not be written either; the message says why."""


def read(path: Path) -> bytes | None:
    """The file's content, None if there is no such file.

    Raises:
        Unreadable: no permission, no regular file, or larger than :data:`LIMIT`.
    """
    # Not to wait for the other end of a pipe; where the flag is missing, pipes have no path.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        raise Unreadable(_cause(error)) from error
    try:
        return _content(descriptor)
    except OSError as error:
        raise Unreadable(_cause(error)) from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other writers of the file out; the lock is a file beside it, which stays.

    Raises:
        OSError: the lock cannot be had.
    """
    from filelock import FileLock, Timeout  # 40 ms, which readers need not spend

    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS)
    except Timeout:
        held = f"another program has held {target}.lock for {_LOCK_SECONDS:.0f} s"
        raise OSError(held) from None
    except NotImplementedError as error:  # older versions of filelock, where flock is missing
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def replace(target: Path, data: bytes) -> None:
    """Puts ``data`` in the place of the file, at once and for good; call it under the lock.

    A new file gets the permissions that the umask leaves, a replaced one keeps its own.

    Raises:
        OSError: it cannot be written; the file is what it was.
    """
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError("the file is read-only")  # os.replace would not mind
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


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


def _content(descriptor: int) -> bytes:
    kind = os.fstat(descriptor)
    if stat.S_ISDIR(kind.st_mode):
        raise Unreadable(f"it is a folder; name a file in it, such as {FILE_NAME}")
    if not stat.S_ISREG(kind.st_mode):
        raise Unreadable("it is a device or a pipe, not a file")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        data = file.read(LIMIT + 1) if kind.st_size <= LIMIT else b""
    if max(kind.st_size, len(data)) > LIMIT:
        raise Unreadable(f"it is larger than {LIMIT // 10**6} MB")
    return data


def _sweep(target: Path) -> None:
    """Removes what writers left behind that were killed; old enough to be nobody's work."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
