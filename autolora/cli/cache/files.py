"""Cache files that a command is to read: unlike in training, a broken one is an error.

A command may name files, folders and patterns. What it names must be there; what is merely found in
a folder or by a pattern, and is no cache, is told and left out.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autolora.cache.files.disk import LIMIT, Unreadable, read
from autolora.cache.files.store import TimingCache
from autolora.cache.joining import Joined, Source
from autolora.cache.records.document import NewerSchema, parse
from autolora.cache.records.table import Table
from autolora.cli.output.console import overheard
from autolora.errors import AutoloraError

STANDARD = "-"  # standard input where a file is read, standard output where one is written
MISSING = "there is no such file"

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class CacheFile:
    """A file that a command reads.

    Args:
        name: for people.
        path: None for standard input.
        named: whether it was named itself, not found in a folder or by a pattern.
    """

    name: str
    path: Path | None
    named: bool = True


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


def files_of(words: Iterable[str]) -> list[CacheFile]:
    """The files that a command names, each once, in the order in which they are named.

    Args:
        words: paths of files or folders, patterns, or ``"-"``.

    Raises:
        AutoloraError: a word names nothing that is there, or standard input is named twice.
    """
    words = list(words)
    if words.count(STANDARD) > 1:
        raise AutoloraError("- is standard input, which can be read only once")
    found: dict[str, CacheFile] = {}
    for word in words:
        for file in _named(word):
            place = "" if file.path is None else os.path.realpath(file.path)
            found.setdefault(place, file)
    return list(found.values())


def bytes_of(file: CacheFile) -> bytes:
    """The content of a file.

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


def table_of(file: CacheFile) -> Table:
    """The table of a file, its lines unchecked.

    Raises:
        Unreadable: none of it can be used; the message is the cause.
    """
    data = bytes_of(file)
    try:
        return parse(data)
    except NewerSchema as error:
        raise Unreadable(str(error)) from error
    except ValueError as error:
        raise Unreadable(f"it is corrupt ({str(error)[:200]})") from error


def sources_of(
    files: Sequence[CacheFile], left_out: dict[str, str], *, lenient: bool = False
) -> Iterator[Source]:
    """The tables of files, each read when it is asked for.

    Args:
        files: to be read.
        left_out: is told of files that cannot be used, by name with the cause.
        lenient: whether one that was named may be left out as well as one that was found.

    Raises:
        AutoloraError: one cannot be used that must not be left out, or none can.
    """
    cause = ""
    for file in files:
        try:
            table = table_of(file)
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


def warn_of_damage(joined: Joined) -> None:
    """Tells of entries that could not be used."""
    for share in joined.shares:
        if share.damage:
            logger.warning("in %s, %s", share.name, share.damage)


def refuse_folder(path: Path) -> None:
    """Raises an ``AutoloraError`` where a file is to be written and a folder stands."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir may raise
        raise AutoloraError(
            f"{path} is a folder; name a file in it, such as {path / 'timings.v1.json'}"
        )


def _named(word: str) -> list[CacheFile]:
    """The files of one word."""
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


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, be it there or not."""
    return os.path.realpath(one) == os.path.realpath(other)
