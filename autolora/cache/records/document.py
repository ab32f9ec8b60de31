"""The text of a cache file: its layout, read and written.

History: version 1, autolora 0.1: ``schema_version``, ``environments`` by id, ``records``.

What this room writes has one record per line, and a file that has is cut into lines without being
parsed. Any other JSON of the same content is read too, only slower.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from autolora.cache.records.checks import dumps, members
from autolora.cache.records.json_reader import JsonReader
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table
from autolora.environment import Environment

SCHEMA_VERSION = 1

_MEMBERS = ("schema_version", "environments", "records")
_START = f'{{"schema_version":{SCHEMA_VERSION},\n"environments":{{'
_MIDDLE = '},\n"records":['
_END = "]}\n"
_MOST_INVALID = 10_000  # else reading a hostile file would take minutes
_VERSION = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"schema_version"\s*:\s*(\d{1,100})\s*[,}]')


class NewerSchema(Exception):
    """A file that a newer autolora wrote: not to be understood here, nor to be overwritten."""

    def __init__(self) -> None:
        super().__init__("its schema is newer than this autolora; upgrade autolora")


def parse(data: bytes) -> Table:
    """The records of a file. Those that are none are counted in :attr:`Table.invalid`.

    Raises:
        NewerSchema: a newer autolora wrote it.
        ValueError: it is no cache file, or half of one.
    """
    # Asked first, since the rest of a newer file may be anything.
    if (version := _VERSION.match(data)) and int(version[1]) > SCHEMA_VERSION:
        raise NewerSchema
    text = data.decode("utf-8-sig")
    table = _from_lines(text)
    return _from_json(text) if table is None else table


def render(table: Table) -> bytes:
    """The file of a table: sorted, and the same bytes for the same records."""
    table.check_all()
    keys = sorted(table.lines)
    environments = sorted({key.environment for key in keys})
    parts = (
        _START,
        _block(f'"{name}":{dumps(table.environments[name].to_json())}' for name in environments),
        _MIDDLE,
        _block(table.lines[key] for key in keys),
        _END,
    )
    return "".join(parts).encode("ascii")


def text_of(records: Iterable[Record]) -> str:
    """The text of a file of records, fit to be sent to another process."""
    table = Table()
    for record in records:
        table.add(record)
    return render(table).decode("ascii")


def _block(items: Iterable[str]) -> str:
    joined = ",\n".join(items)
    return f"\n{joined}\n" if joined else ""


def _from_lines(text: str) -> Table | None:
    """The table of a text in the layout that :func:`render` writes, None if it is in another."""
    middle = text.find(_MIDDLE, len(_START))
    if middle < 0 or not text.startswith(_START) or not text.endswith(_END):
        return None
    try:
        environments = _environments(text, middle)
    except ValueError:
        return None
    lines: dict[Key, str] = {}
    for line in _items(text, middle + len(_MIDDLE), len(text) - len(_END)):
        key = Key.of_line(line)
        if key is None or key in lines or key.environment not in environments:
            return None
        lines[key] = line
    return Table(environments, lines)


def _items(text: str, start: int, end: int) -> Iterator[str]:
    """What :func:`_block` put together, one by one: a hostile text may look like a billion."""
    if start == end:
        return
    if text[start] != "\n" or text[end - 1] != "\n":  # cut off right behind a record's line
        yield ""
        return
    start, last = start + 1, end - 1
    while (cut := text.find("\n", start, last)) >= 0:
        yield text[start : cut - 1] if text[cut - 1] == "," else ""
        start = cut + 1
    yield text[start:last]


def _environments(text: str, end: int) -> dict[str, Environment]:
    """Those of a text in that layout.

    Raises:
        ValueError: one is none, or they do not end there.
    """
    reader = JsonReader(text, len(_START) - 1)
    found = dict(_environment(name, reader.value()) for name in reader.members())
    if reader.at != end + 1:
        raise ValueError("something else stands there")
    return found


def _from_json(text: str) -> Table:
    """The table of any JSON text; each environment and record is checked at once."""
    places, version = _outline(text)
    if type(version) is int and version > SCHEMA_VERSION:
        raise NewerSchema
    members("a cache file", places, _MEMBERS)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}")
    table = Table()
    entries = JsonReader(text, places["environments"])
    for name in entries.members():
        value = entries.value()
        with _counting_invalid(table):
            table.environments.update([_environment(name, value)])
    for record in JsonReader(text, places["records"]).items():
        with _counting_invalid(table):
            table.add(Record.from_json(record, table.environments))
        table.free_records()  # here, where the text is there as well, they would be too much
    return table


def _outline(text: str) -> tuple[dict[str, int], Any]:
    """Where the values of a file's members begin, and that of ``schema_version``."""
    reader = JsonReader(text)
    places: dict[str, int] = {}
    version = None
    for name in reader.members():
        places[name] = reader.at
        if name == "schema_version":
            version = reader.value()
        else:
            reader.skip()
    if reader.peek():
        raise ValueError(f"more follows behind its end, at character {reader.at}")
    return places, version


@contextlib.contextmanager
def _counting_invalid(table: Table) -> Iterator[None]:
    """Counts an entry as invalid where it proves to be none."""
    try:
        yield
    except ValueError as error:
        table.invalid.append(str(error))
        if len(table.invalid) > _MOST_INVALID:
            raise ValueError(f"more than {_MOST_INVALID:,} entries cannot be used") from error


def _environment(name: str, value: Any) -> tuple[str, Environment]:
    environment = Environment.from_json(value)
    if environment.id != name:
        raise ValueError("an environment's id must be derived from its content")
    return name, environment
