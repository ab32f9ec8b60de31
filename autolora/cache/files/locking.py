"""The lock of a file: a file beside it, which stays.

The system lets go of the lock of a process that has died, however it did. On a file system that
has no locks at all, writers go on without; :mod:`autolora.cache.files.atomic_update` is made for
that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger("autolora")

_LOCK_SECONDS = 60.0  # a writer needs milliseconds; one that is stopped must not stop all others
_POLL_SECONDS = 0.01
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other writers of the file out, on this host at least.

    Raises:
        OSError: the lock cannot be had, though there are locks.
    """
    from filelock import FileLock, Timeout  # 40 ms, which readers need not spend

    place = Path(f"{target}.lock")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS)
    except Timeout:
        held = f"another program has held {place} for {_LOCK_SECONDS:.0f} s"
        raise OSError(held) from None
    except NotImplementedError:  # older versions of filelock, where the system has no flock
        _say_unlocked(place)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _say_unlocked(place)
        elif isinstance(error, PermissionError) and os.path.lexists(place):
            raise OSError(f"no permission to write {place}, which is its lock") from error
        else:
            raise
    try:
        yield
    finally:
        lock.release()
        _share(place, target)


def _share(place: Path, target: Path) -> None:
    """Lets those write the lock who may write the file: else a shared file could not be shared."""
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: Windows, without fchmod
        wanted = stat.S_IMODE(target.stat().st_mode) & 0o666
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            found = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if wanted & ~found:
                os.fchmod(descriptor, found | wanted)
        finally:
            os.close(descriptor)


@lru_cache(maxsize=64)  # once for each file
def _say_unlocked(place: Path) -> None:
    logger.warning(
        "autolora: there are no locks for %s; records are kept by looking again after writing, "
        "which is slower where several programs write at once",
        place,
    )
