"""Reading and writing the cache files that a command names: files, folders, patterns, or ``-``.

Unlike in training, a named file that is missing or broken is an error. A file found in a folder or
by a pattern that is not a cache is left out with a warning.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolora.cache.files.disk import LIMIT, Unreadable, read
from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.joining import Joined, Source
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cache.records.table import Key, Table
from autolora.cli.output.console import collect_log
from autolora.errors import AutoloraError

STANDARD = "-"  # standard input where a file is read, standard output where one is written
MISSING = "there is no such file"

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class CacheFile:
    """A file that a command reads.

    Args:
        name: for messages.
        path: None for standard input.
        named: whether it was named itself, instead of found in a folder or by a pattern.
    """

    name: str
    path: Path | None
    named: bool = True


def open_cache(path: Path, *, required: bool = True) -> TimingCache:
    """Reads all records of a cache file.

    Args:
        path: of the file.
        required: whether it must exist.

    Raises:
        AutoloraError: it is required and missing, or none of it can be used.
    """
    if required and not path.exists():
        raise AutoloraError(f"no such cache file: {path}")
    with collect_log() as warnings:
        cache = TimingCache.load(path)
        if not cache.records and warnings:
            raise AutoloraError(warnings.pop(0))
    return cache


def open_caches(cache: str | None) -> list[TimingCache]:
    """Reads the cache file of ``--cache``, by default those of the search path.

    Raises:
        AutoloraError: the named file is missing, or nothing of one can be used.
    """
    if cache is not None:
        return [open_cache(Path(cache))]
    return [open_cache(path, required=False) for path in search_path()]


def find_files(words: Iterable[str]) -> list[CacheFile]:
    """The files that arguments name, without repeats, in their order.

    Args:
        words: paths of files or folders, patterns, or ``"-"``.

    Raises:
        AutoloraError: a word names no existing file, or standard input is named twice.
    """
    words = list(words)
    if words.count(STANDARD) > 1:
        raise AutoloraError("- is standard input, which can be read only once")
    found: dict[str, CacheFile] = {}
    for word in words:
        for file in _find(word):
            place = "" if file.path is None else os.path.realpath(file.path)
            found.setdefault(place, file)
    return list(found.values())


def named_or_own(words: Sequence[str]) -> list[CacheFile]:
    """The files that arguments name; without any the existing ones of the search path.

    Raises:
        AutoloraError: as in :func:`find_files`, or none of the search path exists.
    """
    if words:
        return find_files(words)
    inputs = [CacheFile(str(path), path) for path in search_path() if path.exists()]
    if not inputs:
        raise AutoloraError("no cache file of the search path exists; 'autolora tune' creates one")
    return inputs


def read_bytes(file: CacheFile) -> bytes:
    """Reads the content of a file.

    Raises:
        Unreadable: it cannot be read; the message is the cause.
    """
    if file.path is not None:
        data = read(file.path)
        if data is None:
            raise Unreadable(MISSING)
        return data
    try:
        data = sys.stdin.buffer.read(LIMIT + 1)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if len(data) > LIMIT:
        raise Unreadable(f"it is larger than {LIMIT // 10**6} MB")
    return data


def read_table(file: CacheFile) -> Table:
    """Reads the table of a file; its lines are not checked.

    Raises:
        Unreadable: none of it can be used; the message is the cause.
    """
    data = read_bytes(file)
    try:
        return parse(data)
    except NewerSchema as error:
        raise Unreadable(str(error)) from error
    except ValueError as error:
        raise Unreadable(f"it is corrupt ({str(error)[:200]})") from error


def read_sources(
    files: Sequence[CacheFile], left_out: dict[str, str], *, lenient: bool = False
) -> Iterator[Source]:
    """Yields the tables of files, each read when it is requested.

    Args:
        files: to be read.
        left_out: receives the cause for each file that cannot be used, by name.
        lenient: whether named files may be left out, too.

    Raises:
        AutoloraError: a named file cannot be used, or none can.
    """
    cause = ""
    for file in files:
        try:
            table = read_table(file)
        except Unreadable as error:
            cause = f"{file.name} cannot be used: {error}"
            if file.named and not lenient:
                raise AutoloraError(cause) from error
            left_out[file.name] = str(error)
            logger.warning("%s is left out: %s", file.name, error)
        else:
            yield Source(file.name, table)
    if left_out and len(left_out) == len(files):
        raise AutoloraError(
            cause if len(files) == 1 else f"none of these {len(files)} files can be used: {cause}"
        )


def warn_invalid(joined: Joined) -> None:
    """Warns of entries that could not be used."""
    for source in joined.contributions:
        if source.invalid_summary:
            logger.warning("in %s, %s", source.name, source.invalid_summary)


def output_path(word: str | None) -> Path | None:
    """The path of a file to write, None for standard output.

    Raises:
        AutoloraError: it is a folder.
    """
    if word is None or word == STANDARD:
        return None
    path = Path(word)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir may raise
        raise AutoloraError(
            f"{path} is a folder; name a file in it, such as {path / 'timings.v1.json'}"
        )
    return path


def print_cache(joined: Joined) -> None:
    """Writes a cache file to standard output."""
    data = render(joined.table)
    if len(data) > LIMIT:
        raise AutoloraError(f"the result would be larger than {LIMIT // 10**6} MB")
    sys.stdout.write(data.decode("ascii"))


def key_json(key: Key) -> dict[str, Any]:
    """The problem and the environment of a record."""
    return {"problem": key.problem.to_json(), "environment": key.environment}


def _find(word: str) -> list[CacheFile]:
    """The files that one argument names."""
    if word == STANDARD:
        return [CacheFile("standard input", None)]
    path = Path(word)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir may raise
        found = [CacheFile(str(hit), hit, named=False) for hit in sorted(path.glob("*.json"))]
        if not found:
            raise AutoloraError(f"the folder {word} holds no *.json file")
        return found
    if os.path.lexists(path):
        return [CacheFile(word, path)]
    if not glob.has_magic(word):
        raise AutoloraError(f"no such cache file: {word}")
    hits = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  # Path.glob needs a folder
    if not hits:
        raise AutoloraError(f"no file matches {word!r}; 'autolora cache path' says where yours is")
    return [CacheFile(hit, Path(hit), named=False) for hit in hits]
