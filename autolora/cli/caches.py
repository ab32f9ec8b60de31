"""Cache files that a command is to read: unlike in training, a broken one is an error."""

from __future__ import annotations

from pathlib import Path

from autolora.cache.store import TimingCache
from autolora.cli.console import overheard
from autolora.errors import AutoloraError


def open_cache(path: Path, *, required: bool = True) -> TimingCache:
    """Reads a cache file, every record of it.

    Args:
        path: of the file.
        required: whether it must be there.

    Raises:
        AutoloraError: it is missing though required, or nothing of it can be used.
    """
    if required and not path.exists():
        raise AutoloraError(f"no such cache file: {path}")
    with overheard() as warnings:
        cache = TimingCache.load(path)
        if not cache.records and warnings:
            raise AutoloraError(warnings.pop(0))
    return cache
