import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import CPU, OLDER, SAVED, make_problem, make_record

from autolora.cache.files import disk
from autolora.cache.files.store import TimingCache
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cache.records.record import Record
from autolora.errors import AutoloraError

ROOT = Path(disk.__file__).parents[3]
EXAMPLE = (ROOT / "cache_schema" / "v1.example.json").read_bytes()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- files that are no cache -------------------------------------------------------------------

CORRUPT = {
    "empty": b"",
    "blank": b"\n \n",
    "binary": bytes(range(256)),
    "zeros": bytes(1000),
    "utf-16": EXAMPLE.decode().encode("utf-16"),
    "half": EXAMPLE[: len(EXAMPLE) // 2],
    "without its last byte": EXAMPLE.rstrip()[:-1],
    "twice": EXAMPLE + EXAMPLE,
    "merge conflict": EXAMPLE.replace(b'"records":[\n', b'"records":[\n<<<<<<< HEAD\n'),
    "without a comma": EXAMPLE.replace(b"},\n{", b"}\n{"),
    "too many commas": EXAMPLE.replace(b"}\n]", b"},\n]"),
    "no list": b"null",
    "number": b"1",
    "list": b"[]",
    "text": b'"timings"',
    "object": b"{}",
    "NaN": b'{"schema_version":1,"environments":{},"records":[NaN]}',
    "infinity": b'{"schema_version":1,"environments":{},"records":[-Infinity]}',
    "a member twice": b'{"schema_version":1,"environments":{},"records":[],"records":[]}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep in its place": b'{"schema_version":1,"environments":{},"records":' + b"[" * 100_000,
    "giant integer": b"9" * 10_000,
    "giant version": b'{"schema_version":-' + b"9" * 1000 + b"}",
    "unknown member": b'{"schema_version":1,"environments":{},"records":[],"notes":1}',
    "no version": b'{"environments":{},"records":[]}',
    "version as text": b'{"schema_version":"1","environments":{},"records":[]}',
    "version as truth": b'{"schema_version":true,"environments":{},"records":[]}',
    "version as fraction": b'{"schema_version":1.0,"environments":{},"records":[]}',
    "version nought": b'{"schema_version":0,"environments":{},"records":[]}',
    "records as object": b'{"schema_version":1,"environments":{},"records":{}}',
    "environments as list": b'{"schema_version":1,"environments":[],"records":[]}',
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT.keys())
def test_a_corrupt_file_is_one_warning_and_is_set_aside(path, warnings, data):
    path.write_bytes(data)
    cache = TimingCache.load(path)
    assert cache.records == []
    assert cache.find(make_problem(), CPU) is None
    [warning] = warnings()
    assert str(path) in warning
    assert "corrupt" in warning
    assert len(warning) < 1000
    assert path.read_bytes() == data
    cache.publish(make_record())
    assert TimingCache.load(path).records == [make_record()]
    assert path.with_name("timings.v1.json.corrupt-1").read_bytes() == data
    assert len(warnings()) == 2  # the second says where it is kept


def test_nothing_that_was_set_aside_is_overwritten(path, tmp_path):
    outside = tmp_path / "outside"
    path.with_name(f"{path.name}.corrupt-1").symlink_to(outside)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        TimingCache.load(path).save()
    assert path.with_name(f"{path.name}.corrupt-2").read_bytes() == b"first"
    assert path.with_name(f"{path.name}.corrupt-3").read_bytes() == b"second"
    assert not outside.exists()


def test_without_links_a_corrupt_file_is_renamed(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        TimingCache.load(path).save()
    assert path.with_name(f"{path.name}.corrupt-1").read_bytes() == b"first"
    assert path.with_name(f"{path.name}.corrupt-2").read_bytes() == b"second"
    assert TimingCache.load(path).records == []


@pytest.mark.parametrize("version", ["2", "999999999", "9" * 30])
@pytest.mark.parametrize("rest", [',"records":[]}', ',"anything":[NaN, <binary>', "}"])
def test_a_newer_file_is_never_overwritten(path, warnings, version, rest):
    text = f'{{"schema_version":{version}{rest}'
    path.write_text(text)
    cache = TimingCache.load(path)
    assert cache.records == []
    [warning] = warnings()
    assert str(path) in warning
    assert "newer" in warning
    with pytest.raises(AutoloraError, match="newer"):
        cache.publish(make_record())
    assert path.read_text() == text
    assert "corrupt" not in "".join(names(path.parent))


# --- files some of whose records are none ------------------------------------------------------


def lines_of(path, *drawn):
    TimingCache(drawn, path).save()
    return path.read_text()


SPOILERS = {
    "unknown effort": ('"effort":"normal"', '"effort":"heroic"'),
    "unknown member": ('"effort":"normal"', '"effort":"normal","more":1'),
    "missing member": ('"effort":"normal",', ""),
    "a member twice": ('"effort":"normal"', '"effort":"normal","effort":"normal"'),
    "NaN": ('"seconds":1.5', '"seconds":NaN'),
    "infinite": ('"seconds":1.5', '"seconds":1e999'),
    "giant integer": ('"floor_ns":500', '"floor_ns":' + "9" * 5000),
    "deep": ('"floor_ns":500', '"floor_ns":' + "[" * 50_000 + "]" * 50_000),
    "unknown layout": ('"layout":"linear"', '"layout":"spiral"'),
    "unknown problem member": ('"bias":false', '"bias":false,"more":1'),
    "tokens of nought": ('"tokens":64', '"tokens":0'),
    "giant tokens": ('"tokens":64', '"tokens":' + "9" * 16),
    "no environment": (f'"environment":"{CPU.id}"', '"environment":"000000000000"'),
    "escape": (f'"winner":"{SAVED}"', '"winner":"\\u001b[2J"'),
    "half a line": ('"candidates":[', '"candidates":[}'),
}


@pytest.mark.parametrize(("old", "new"), SPOILERS.values(), ids=SPOILERS.keys())
def test_a_spoilt_record_is_one_warning_and_the_others_are_used(path, warnings, old, new):
    good, bad = make_record(128), make_record(64)
    text = lines_of(path, good, bad)
    line = bad.line.replace(old, new)
    assert line != bad.line
    damaged = text.replace(bad.line, line)
    path.write_text(damaged)
    try:
        json.loads(damaged)
    except (ValueError, RecursionError):
        whole = False  # then a parser loses all; cut into lines, one is lost
    else:
        whole = True
    cache = TimingCache.load(path)
    assert cache.find(make_problem(64), CPU) is None
    assert cache.find(make_problem(128), CPU) in ([good] if whole else [good, None])
    assert cache.records in ([[good]] if whole else [[good], []])
    [warning] = warnings()
    assert str(path) in warning
    assert "1 entry" in warning or "corrupt" in warning
    assert len(warning) < 1000
    cache.save()
    assert path.with_name(f"{path.name}.corrupt-1").read_text() == damaged
    again = TimingCache.load(path)
    assert again.records == cache.records
    assert len(warnings()) == 2


def test_all_spoilt_records_are_counted_at_the_first(path, warnings):
    text = lines_of(path, *(make_record(tokens) for tokens in (1, 2, 3, 4)))
    path.write_text(text.replace('"effort":"normal"', '"effort":"heroic"', 3))
    cache = TimingCache.load(path)
    assert cache.find(make_problem(2), CPU) is None
    assert cache.find(make_problem(1), CPU) is None
    assert len(cache.records) == 1
    [warning] = warnings()
    assert "3 entries" in warning


def test_a_spoilt_environment_spoils_its_records_alone(path, warnings):
    text = lines_of(path, make_record(64), make_record(64, environment=OLDER))
    path.write_text(text.replace("2.12.0+cpu", "2.11.0+cpu"))  # not what its id says
    assert TimingCache.load(path).records == [make_record(64)]
    assert len(warnings()) == 1


def test_a_spoilt_record_does_not_outlive_a_merge(path, tmp_path):
    text = lines_of(path, make_record(64), make_record(128))
    path.write_text(text.replace('"effort":"normal"', '"effort":"heroic"', 1))
    merged = TimingCache([make_record(64)]).merge(TimingCache.load(path))
    merged.save(tmp_path / "merged.json")
    assert merged.records == [make_record(64), make_record(128)]
    assert TimingCache.load(path).merge(TimingCache([make_record(64)])).records == merged.records


@given(data=st.data())
def test_no_damage_to_the_bytes_makes_a_reader_fail(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    start = data.draw(st.integers(0, len(EXAMPLE)))
    length = data.draw(st.integers(0, 40))
    middle = data.draw(
        st.binary(max_size=8) | st.sampled_from([b'"', b"[", b"},\n{", b"null", b"9"])
    )
    path.write_bytes(EXAMPLE[:start] + middle + EXAMPLE[start + length :])
    assert all(isinstance(record, Record) for record in TimingCache.load(path).records)


def test_no_truncation_makes_a_reader_fail(path):
    end = len(EXAMPLE) - 1  # where the file still lacks nothing but the line's end
    for length in (*range(0, end, 37), *range(end - 40, end)):
        path.write_bytes(EXAMPLE[:length])
        assert TimingCache.load(path).records == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(data=st.data(), hostile=JSON)
def test_no_value_anywhere_in_a_file_makes_a_reader_fail(data, hostile):
    value = json.loads(EXAMPLE)
    inner = value
    while True:
        step = data.draw(
            st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
        )
        if not isinstance(inner[step], dict | list) or not inner[step] or data.draw(st.booleans()):
            break
        inner = inner[step]
    inner[step] = hostile
    try:
        table = parse(json.dumps(value).encode())
    except (ValueError, NewerSchema):
        return
    assert parse(render(table)).lines == table.lines
