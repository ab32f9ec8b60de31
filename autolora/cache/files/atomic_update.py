"""Atomic updates of a file that many programs read, change and replace.

The lock keeps other writers out, except where two hosts do not see each other's locks, where the
lock file was deleted, or where the file system has no locks. So every writer also creates a
temporary file beside the target *before* it reads; after writing it waits until the temporary files
of others are gone, and starts again if the target is no longer what it wrote. Whoever overwrites it
after reading an older version had a temporary file there all the time, so nothing is lost if

- all hosts see the same folder: a network file system with outdated listings may hide a temporary
  file; a record lost by that is restored by its writer's next save;
- no writer is stopped between reading and writing for longer than others wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

from autolora.cache.files.disk import (
    FileVersion,
    keep_corrupt,
    read,
    replace_file,
    require_file,
    temporary_file,
    temporary_files,
    version_of,
    write_all,
)
from autolora.cache.files.locking import locked

logger = logging.getLogger("autolora")

Change = Callable[[bytes | None], tuple[bytes, str]]

_ATTEMPTS = 40
_POLL_SECONDS = 0.002
_WAIT_SECONDS = 0.25  # for other writers, beside a multiple of the time that our own write took
_STALE_NS = 3600 * 10**9


def update_file(target: Path, change: Change) -> None:
    """Replaces the content of a file by what ``change`` makes of it.

    A new file has the permissions that the umask leaves, a replaced one keeps its own.

    Args:
        target: the file, which need not exist; not a symbolic link.
        change: takes the content, None if there is no file; returns the new content, and what is
            corrupt in the old one, which is then kept, or ``""``. Must be idempotent: that is how
            writes of others are detected.

    Raises:
        OSError: it cannot be written, or others overwrite it again and again.
        Exception: raised by ``change`` or :func:`~autolora.cache.files.disk.read`. In all cases
            the file is unchanged.
    """
    require_file(target)
    with locked(target):
        for attempt in range(_ATTEMPTS):
            start = time.monotonic()
            written = _write(target, change, first=not attempt)
            took = time.monotonic() - start
            if written and _outlasts_others(target, written, _WAIT_SECONDS + 4 * took):
                return
            time.sleep(random.uniform(0, took * min(attempt + 1, 8)))  # or two stay in step
    raise OSError("other programs overwrite it all the time, without heeding its lock")


def _write(target: Path, change: Change, *, first: bool) -> FileVersion | None:
    """Reads and writes once; returns the version written, None if another writer was faster.

    After the first attempt the file is written only if it would change.
    """
    with temporary_file(target) as (path, file):
        _remove_stale(target, os.fstat(file.fileno()).st_mtime_ns)
        before = version_of(target)
        old = read(target)
        new, corrupt = change(old)
        if new == old and not first:
            return before
        mode = _mode(target)
        written = write_all(file, new)
        if version_of(target) != before:
            return None
        if mode is not None:
            path.chmod(mode)
        if corrupt:
            kept = keep_corrupt(target)
            logger.warning(
                "autolora: of the timing cache %s, %s; kept as %s", target, corrupt, kept
            )
        try:
            replace_file(path, target)
        except FileNotFoundError:  # removed as stale by a host whose clock was changed
            return None
        return written


def _outlasts_others(target: Path, written: FileVersion, wait: float) -> bool:
    """Whether the file is unchanged once all who may have read an older version are done.

    Args:
        target: the file.
        written: its expected version.
        wait: seconds; temporary files older than that are ignored.
    """
    changed_ns = written[-1]
    others = [path for path, at in temporary_files(target) if changed_ns - at < wait * 1e9]
    deadline = time.monotonic() + wait
    while others and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        others = [path for path in others if os.path.lexists(path)]
    return version_of(target) == written


def _mode(target: Path) -> int | None:
    """The permissions of a file, None if it does not exist.

    Raises:
        PermissionError: it is read-only, which would not prevent replacing it.
    """
    if not target.exists():
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError("the file is read-only")
    return stat.S_IMODE(target.stat().st_mode)


def _remove_stale(target: Path, now_ns: int) -> None:
    """Removes old temporary files of killed writers.

    ``now_ns`` is of the file system's clock, since the clocks of the hosts may differ.
    """
    for path, changed_ns in temporary_files(target):
        if now_ns - changed_ns > _STALE_NS:
            with contextlib.suppress(OSError):
                path.unlink()
