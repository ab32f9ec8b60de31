"""What may be wrong with a file that is read: one warning with path and cause, then a miss."""

import copy
import errno
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from accounts import as_user, needs_root, shared_folder
from hostile import EMPTY, HOSTILE, dense_record, read_apart, real_file, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from records import CPU, MERGED, OLDER, make_problem, make_record

from autolora.cache.files import disk
from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.checks import LONGEST
from autolora.errors import AutoloraError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "cache_schema" / "v1.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
SMALL = 64 << 20  # bytes that reading any file may take, however small it is
SIZE = 10_000_000


def file_of(*records):
    with tempfile.TemporaryDirectory() as folder:
        return TimingCache(records, Path(folder) / "x.json").save().read_bytes()


ONE = file_of(make_record(64))
THREE = file_of(make_record(64), make_record(777), make_record(64, environment=OLDER))


def every(name):
    return True


def is_a_miss(path, warnings, word="", tokens=64):
    """Whether a look-up in the file is a miss, after one warning that says why."""
    before = len(warnings())
    lookup = Lookup([path])
    assert lookup.find(make_problem(tokens), CPU, every).reason == "miss"
    assert lookup.layers[0].records == []  # a record that nobody asks for is checked only here
    [warning] = warnings()[before:]
    assert str(path) in warning
    assert word in warning
    assert len(warning) < 1000 + len(str(path))


def is_not_written(path):
    with pytest.raises(AutoloraError, match="AUTOLORA_CACHE") as caught:
        TimingCache.load(path).publish(make_record())
    assert f"cannot write the timing cache {path}" in str(caught.value)


# --- what is no file, or cannot be read ----------------------------------------------------------


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def a_sparse_gigabyte(path):
    with path.open("wb") as file:
        file.truncate(10**9)


NO_FILES = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "symbolic links": lambda path: path.symlink_to(path),
    "larger than 256 MB": a_sparse_gigabyte,
    "No such device": a_socket,
}


@pytest.mark.parametrize(("word", "make"), NO_FILES.items(), ids=NO_FILES.keys())
def test_what_is_no_file_is_a_miss_and_not_written(tmp_path, monkeypatch, warnings, word, make):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    path = Path("timings.v1.json")
    make(path)
    before = path.lstat()
    is_a_miss(path, warnings, word)
    is_not_written(path)
    assert (path.lstat().st_mode, path.lstat().st_size) == (before.st_mode, before.st_size)
    if not path.is_file():  # nothing is created beside a device either
        assert not os.path.lexists(f"{os.path.realpath(path)}.lock")


@needs_root
def test_a_file_without_permission_is_a_miss(warnings):
    with shared_folder() as folder:
        path = folder / "timings.v1.json"
        path.write_bytes(ONE)
        path.chmod(0o600)
        with as_user(1001):
            is_a_miss(path, warnings, "Permission denied")
            is_not_written(path)


def test_a_file_that_grew_over_the_limit_is_not_read(path, monkeypatch, warnings):
    path.write_bytes(ONE)
    monkeypatch.setattr(disk, "LIMIT", len(ONE) - 1)
    is_a_miss(path, warnings, "larger than")


# --- what is in it -------------------------------------------------------------------------------


def test_every_truncation_is_a_miss(path, warnings):
    whole = ONE.rstrip()
    for length in range(len(whole)):
        path.write_bytes(ONE[:length])
        is_a_miss(path, warnings, "corrupt")
    path.write_bytes(whole)
    assert TimingCache.load(path).records == [make_record(64)]


_RECORDS = b'{"schema_version":1,"environments":{},"records":['

CONTENTS = {
    "utf-16": ONE.decode().encode("utf-16"),
    "utf-16 without a mark": ONE.decode().encode("utf-16-le"),
    "utf-32": ONE.decode().encode("utf-32"),
    "latin-1": ONE.replace(b"EPYC", b"\xc9PYC"),
    "two marks": b"\xef\xbb\xbf" * 2 + ONE,
    "a zero behind": ONE + b"\0",
    "a zero within": ONE.replace(b'"records"', b'"rec\0ords"'),
    "a lone surrogate": ONE.replace(b"EPYC", b"\xed\xa0\x80"),
    "deep lists": _RECORDS + b"[" * 10**5,
    "deep lists closed": b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "deep objects": b'{"schema_version":1,"environments":' + b'{"a":' * 10**5,
    "a million numbers": _RECORDS + b"1" + b",1" * 10**6 + b"]}",
    "many objects": _RECORDS + b"{}" + b",{}" * 10**5 + b"]}",
    "a version twice": ONE.replace(b'{"schema_version":1,', b'{"schema_version":1,' * 2),
    "another version later": ONE.replace(b"]}", b'],"schema_version":1}'),
    "an environment twice": ONE.replace(b'},\n"rec', f',"{CPU.id}":0}},\n"rec'.encode()),
    "a name that is no text": b"{1:2}",
    "an unclosed text": _RECORDS + b'"' + b"a" * 2 * LONGEST,
}


@pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS.keys())
def test_what_is_no_cache_is_a_miss(path, warnings, data):
    path.write_bytes(data)
    is_a_miss(path, warnings, "corrupt")


LINES = {
    "deep lists": (b'"floor_ns":500', b'"floor_ns":' + b"[" * 10**5 + b"]" * 10**5),
    "digits": (b'"floor_ns":500', b'"floor_ns":5' + b"0" * 10**6),
    "digits of a fraction": (b'"seconds":1.5', b'"seconds":1.5' + b"0" * 10**6),
    "NaN": (b'"seconds":1.5', b'"seconds":NaN'),
    "-Infinity": (b'"floor_ns":500', b'"floor_ns":-Infinity'),
    "a member twice": (b'"effort":', b'"effort":"quick","effort":'),
    "a zero": (b'"effort":"normal"', b'"effort":"nor\0mal"'),
    "an escape": (b'"effort":"normal"', b'"effort":"nor\\x6dal"'),
    "a long record": (b'"load_1min":', b'"x":"' + b"x" * LONGEST + b'","load_1min":'),
}


@pytest.mark.parametrize("spaces", [b"", b" "], ids=["as written", "in another layout"])
@pytest.mark.parametrize(("old", "new"), LINES.values(), ids=LINES.keys())
def test_a_bad_line_is_a_miss(path, warnings, old, new, spaces):
    assert old in THREE
    path.write_bytes(spaces + THREE.replace(old, new))
    is_a_miss(path, warnings)


def test_unknown_graphs_are_a_miss(path, warnings):
    TimingCache([make_record(64)], path).save()
    for valid in (lambda name: False, lambda name: name == MERGED + "?"):
        assert Lookup([path]).find(make_problem(64), CPU, valid).reason == "miss"
    assert warnings() == []


def places(value, way=()):
    """The ways to all values inside a value, itself included."""
    yield way
    if isinstance(value, list):
        value = dict(enumerate(value))
    for step, each in value.items() if isinstance(value, dict) else ():
        yield from places(each, (*way, step))


def with_new(value, way, new):
    if not way:
        return new
    changed = copy.copy(value)
    changed[way[0]] = with_new(value[way[0]], way[1:], new)
    return changed


WRONG = (None, True, -1, 0.5, 2**53, 1e300, "", "\x1b", "x" * 501, [], {}, [[]], {"x": None})


@pytest.mark.parametrize("way", list(places(json.loads(ONE))), ids=str)
def test_a_wrong_type_anywhere_is_a_miss(path, warnings, way):
    wrong = 0
    for new in WRONG:
        changed = with_new(json.loads(ONE), way, new)
        if VALIDATOR.is_valid(changed):
            continue
        wrong += 1
        for text in (json.dumps(changed), json.dumps(changed, separators=(",", ":"))):
            laid_out = text.replace('1,"env', '1,\n"env').replace('},"rec', '},\n"rec')
            laid_out = laid_out.replace("[{", "[\n{", 1).replace("}]}]}", "}]}\n]}\n")
            path.write_text(laid_out)
            is_a_miss(path, warnings)
    assert wrong > len(WRONG) / 3


EDITS = st.lists(
    st.tuples(
        st.integers(0, len(THREE)),
        st.integers(0, 60),
        st.binary(max_size=6)
        | st.sampled_from([b'"', b"\\", b"[", b"]", b"{}", b",\n", b"\n", b"9" * 20, b"-", b"\xff"])
        | st.integers(0, len(THREE)).map(lambda at: THREE[at : at + 300]),
    ),
    min_size=1,
    max_size=4,
)


@given(EDITS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_edit_of_the_bytes_makes_a_reader_fail(tmp_path_factory, caplog, edits):
    data = THREE
    for at, length, new in edits:
        data = data[:at] + new + data[at + length :]
    path = tmp_path_factory.getbasetemp() / "edited.json"
    path.write_bytes(data)
    caplog.clear()
    cache = TimingCache.load(path)
    cache.find(make_problem(64), CPU)
    found = cache.records
    Lookup.of(cache).find(make_problem(700), OLDER, every)
    told = [record.getMessage() for record in caplog.records]
    try:
        json.loads(data.decode())
    except ValueError:
        assert len(told) == 1
        assert str(path) in told[0]
    else:
        assert len(told) <= 1
        assert len(found) >= 3 or told or data.count(b'"effort"') < 3


# --- what it costs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


needs_proc = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system tells no peak"
)


@needs_proc
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_costs_no_more_than_12_times_its_size(folder, make):
    path = folder / "hostile.json"
    path.write_bytes(make(SIZE))
    size = path.stat().st_size
    assert size > 0.9 * SIZE
    read = read_apart(path)
    assert read["records"] == 0
    [warning] = read["told"]
    assert str(path) in warning
    assert len(warning) < 1000
    assert read["bytes"] <= 12 * size


REAL = {
    "as written": {},
    "indented": {"indent": 1},
    "with a wide letter": {"wide": True},
    "with many short texts": {"record": dense_record()},
}


@needs_proc
@pytest.mark.parametrize("name", REAL)
def test_a_large_file_costs_no_more_than_12_times_its_size(folder, name):
    path = folder / "large.json"
    data, count = real_file(SIZE // 2, **REAL[name])
    path.write_bytes(data)
    if name == "as written":
        TimingCache.load(path).save(path)
    read = read_apart(path)
    assert read["records"] == count
    assert read["told"] == []
    assert read["bytes"] <= 12 * path.stat().st_size


@needs_proc
@pytest.mark.parametrize("name", ["empty lists in one record", "lists in a line", "whole numbers"])
def test_a_small_file_costs_little(folder, name):
    path = folder / "small.json"
    path.write_bytes(HOSTILE[name](LONGEST))
    assert read_apart(path)["bytes"] <= SMALL


STARVED = """
import resource, sys
from pathlib import Path
from autolora.cache.files.store import TimingCache
TimingCache.load(sys.argv[2]).records
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]), -1))
print(TimingCache.load(sys.argv[1]).records)
"""


@needs_proc
@pytest.mark.parametrize("room", [SIZE // 2, SIZE * 3 // 2])
def test_without_enough_memory_it_is_not_read(folder, room):
    path, empty = folder / "large.json", folder / "empty.json"
    path.write_bytes(b" " * SIZE)
    empty.write_bytes(EMPTY)
    process = run(STARVED, path, empty, room, stderr=-1)
    output, told = process.communicate(timeout=60)
    assert output == "[]\n"
    assert told.count(str(path)) == 1
    assert "not enough memory" in told


# --- a file that changes while it is read --------------------------------------------------------


@pytest.fixture
def meanwhile(monkeypatch):
    """Makes something happen each time that a file has been opened and is about to be read."""

    def arrange(*events):
        left, real = list(events), os.fdopen

        def fdopen(descriptor, mode="r", *args, **options):
            if mode == "rb" and left:
                left.pop(0)()
            return real(descriptor, mode, *args, **options)

        monkeypatch.setattr(os, "fdopen", fdopen)

    return arrange


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(path, meanwhile, warnings):
    path.write_bytes(ONE)
    other = path.with_name("other")
    other.write_bytes(file_of(make_record(128)))
    meanwhile(lambda: other.replace(path))
    assert TimingCache.load(path).records == [make_record(64)]
    assert TimingCache.load(path).records == [make_record(128)]
    assert warnings() == []


@pytest.mark.parametrize("start", [ONE[:-300], ONE + b" " * 300], ids=["grows", "shrinks"])
def test_a_file_that_changes_while_it_is_read_is_read_again(path, meanwhile, warnings, start):
    path.write_bytes(start)
    meanwhile(lambda: os.truncate(path, 0), lambda: path.write_bytes(ONE))
    assert TimingCache.load(path).records == [make_record(64)]
    assert warnings() == []


def test_a_file_that_changes_all_the_time_is_neither_read_nor_set_aside(path, meanwhile, warnings):
    path.write_bytes(ONE)
    meanwhile(*[lambda: append(path, b" ")] * 100)
    is_a_miss(path, warnings, "changes while it is read")
    with pytest.raises(disk.Unreadable):
        disk.read(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("times", [1, 100])
def test_a_file_that_another_host_has_replaced_is_opened_again(path, meanwhile, warnings, times):
    path.write_bytes(ONE)

    def stale():
        raise OSError(errno.ESTALE, "Stale file handle")

    meanwhile(*[stale] * times)
    if times == 1:
        assert TimingCache.load(path).records == [make_record(64)]
    else:
        is_a_miss(path, warnings)


COPY = """
import sys
data = open(sys.argv[2], "rb").read()
for _ in range(int(sys.argv[3])):
    with open(sys.argv[1], "wb", buffering=256) as file:
        for at in range(0, len(data), 200):
            file.write(data[at : at + 200])
"""


def test_reading_while_a_process_writes_in_place_gives_all_or_a_warning(path, tmp_path, warnings):
    source = tmp_path / "source.json"
    source.write_bytes(THREE)
    path.write_bytes(THREE)
    process = run(COPY, path, source, 2000)
    while process.poll() is None:
        before = len(warnings())
        found = len(TimingCache.load(path).records)
        assert (found, len(warnings()) - before) in ((3, 0), (0, 1))
    process.communicate()
    assert process.returncode == 0
    assert len(TimingCache.load(path).records) == 3
