"""A file that many programs write: each reads it, and puts in its place what that is to become.

Where the lock keeps writers apart, nothing more is needed. It may not: two hosts may not see each
other's locks, somebody may delete the lock file, or the file system has none. So every writer also
shows that it is writing, by a draft beside the file, *before* it reads; and having written it waits
until all drafts that were there are gone, and looks whether what it wrote still stands. If it does
not, it begins again with what stands there now. Who overwrites a file that they have read before it
was written has had a draft there all the time, so nothing is lost as long as

- the hosts see the same folder: a network file system that keeps old listings for a while may
  hide a draft, and then a record lost from the file is brought back by its writer's next save;
- a writer is not stopped for longer between reading and writing than others wait for its draft.
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
    Stamp,
    draft,
    drafts,
    fill,
    put,
    read,
    require_file,
    set_aside,
    stamp,
)
from autolora.cache.files.locking import locked

logger = logging.getLogger("autolora")

Change = Callable[[bytes | None], tuple[bytes, str]]

_ATTEMPTS = 40
_POLL_SECONDS = 0.002
_PATIENCE_SECONDS = 0.25  # for others' drafts, beside a multiple of what our own has taken
_STALE_NS = 3600 * 10**9


def update_file(target: Path, change: Change) -> None:
    """Puts what ``change`` makes of a file's content in its place, so that it stays there.

    A new file gets the permissions that the umask leaves, a replaced one keeps its own.

    Args:
        target: the file, which need not be there; no symbolic link.
        change: given the content, or None, the new one; and what is wrong with the old one, so that
            it is kept beside, ``""`` if nothing is. Of what it has given it makes the same again:
            that is how others' writing is noticed.

    Raises:
        OSError: it cannot be written, or others overwrite it all the time; an ``Exception`` that
            ``change`` or :func:`~autolora.cache.files.disk.read` raises. The file is what it was.
    """
    require_file(target)
    with locked(target):
        for attempt in range(_ATTEMPTS):
            start = time.monotonic()
            standing = _write(target, change, first=not attempt)
            took = time.monotonic() - start
            if standing and _outlives_others(target, standing, _PATIENCE_SECONDS + 4 * took):
                return
            time.sleep(random.uniform(0, took * min(attempt + 1, 8)))  # or two go on in step
    raise OSError("other programs overwrite it all the time, without heeding its lock")


def _write(target: Path, change: Change, *, first: bool) -> Stamp | None:
    """Reads and writes once; what stands there then, None if somebody else was faster.

    Later than the first time nothing is written if nothing needs to be.
    """
    with draft(target) as (path, file):
        _sweep(target, os.fstat(file.fileno()).st_mtime_ns)
        before = stamp(target)
        old = read(target)
        new, damage = change(old)
        if new == old and not first:
            return before
        mode = _mode(target)
        written = fill(file, new)
        if stamp(target) != before:
            return None
        if mode is not None:
            path.chmod(mode)
        if damage:
            kept = set_aside(target)
            logger.warning("autolora: of the timing cache %s, %s; kept as %s", target, damage, kept)
        try:
            put(path, target)
        except FileNotFoundError:  # taken for a dead writer's, by a clock that was set
            return None
        return written


def _outlives_others(target: Path, standing: Stamp, patience: float) -> bool:
    """Whether the file is still the same when all have done who may have read an older one.

    Args:
        target: the file.
        standing: what is to stand there.
        patience: seconds; a draft that was last changed longer ago is nobody's work.
    """
    changed_ns = standing[-1]
    others = [path for path, at in drafts(target) if changed_ns - at < patience * 1e9]
    deadline = time.monotonic() + patience
    while others and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        others = [path for path in others if os.path.lexists(path)]
    return stamp(target) == standing


def _mode(target: Path) -> int | None:
    """The permissions of a file, None if there is none.

    Raises:
        PermissionError: it must not be written, which replacing it would not mind.
    """
    if not target.exists():
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError("the file is read-only")
    return stat.S_IMODE(target.stat().st_mode)


def _sweep(target: Path, now_ns: int) -> None:
    """Removes what writers left behind that were killed; old enough to be nobody's work.

    Old by the clock of the file system, in ns: those of the hosts may differ, and may be set.
    """
    for path, changed_ns in drafts(target):
        if now_ns - changed_ns > _STALE_NS:
            with contextlib.suppress(OSError):
                path.unlink()
