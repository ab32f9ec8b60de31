"""The lock of a cache file: a file beside it, which is never removed.

The operating system releases the locks of a dead process. On a file system without locks writers go
on without, which :mod:`autolora.cache.files.atomic_update` is made for.
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

_LOCK_SECONDS = 60.0  # a writer needs milliseconds; a stopped one must not stop all others
_POLL_SECONDS = 0.01
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Excludes other writers of the file, at least on this host.

    Raises:
        OSError: the lock cannot be acquired on a file system with locks.
    """
    from filelock import FileLock, Timeout  # takes 40 ms, and readers do not need it

    path = Path(f"{target}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS)
    except Timeout:
        message = f"another program has held {path} for {_LOCK_SECONDS:.0f} s"
        raise OSError(message) from None
    except NotImplementedError:  # older versions of filelock on a system without flock
        _warn_no_locks(path)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _warn_no_locks(path)
        elif isinstance(error, PermissionError) and os.path.lexists(path):
            raise OSError(f"no permission to write {path}, which is its lock") from error
        else:
            raise
    try:
        yield
    finally:
        lock.release()
        _copy_permissions(path, target)


def _copy_permissions(path: Path, target: Path) -> None:
    """Lets everyone who may write the file write its lock as well."""
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: Windows, without fchmod
        wanted = stat.S_IMODE(target.stat().st_mode) & 0o666
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            found = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if wanted & ~found:
                os.fchmod(descriptor, found | wanted)
        finally:
            os.close(descriptor)


@lru_cache(maxsize=64)  # once for each file
def _warn_no_locks(path: Path) -> None:
    logger.warning(
        "autolora: there are no locks for %s; records are kept by looking again after writing, "
        "which is slower where several programs write at once",
        path,
    )
