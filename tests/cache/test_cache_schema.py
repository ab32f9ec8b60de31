import contextlib
import copy
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from records import CPU, OLDER, make_problem, make_record, records

from autolora.cache import joining
from autolora.cache.files.disk import LIMIT
from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.candidate import OUTPUTS
from autolora.cache.records.checks import LONGEST
from autolora.cache.records.document import SCHEMA_VERSION, NewerSchema, parse, render
from autolora.cache.records.precedence import EFFORTS
from autolora.errors import AutoloraError
from autolora.graphs.kinds import find_graph
from autolora.objective import KINDS
from autolora.problem import DEVICES, DTYPES, LAYOUTS, MODES, VARIANTS

FOLDER = Path(__file__).parents[2] / "cache_schema"
SCHEMA = json.loads((FOLDER / "v1.schema.json").read_text(encoding="utf-8"))
EXAMPLE = (FOLDER / "v1.example.json").read_bytes()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_the_example_is_of_the_schema():
    VALIDATOR.validate(json.loads(EXAMPLE))


def test_the_example_is_loaded_without_a_warning_and_saved_to_the_same_bytes(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cache = TimingCache.load(FOLDER / "v1.example.json")
    assert len(cache.records) == len(json.loads(EXAMPLE)["records"])
    saved = cache.save(tmp_path / "timings.v1.json")
    assert saved.read_bytes() == EXAMPLE
    assert caplog.records == []


def test_the_example_shows_every_member_and_each_kind_of_value():
    candidates = [c for record in json.loads(EXAMPLE)["records"] for c in record["candidates"]]
    for figure in ("median_ns", "peak_bytes"):
        assert {c[figure] is None for c in candidates} == {True, False}
    verdicts = [c["verdict"] for c in candidates if c["verdict"]]
    assert {verdict["ok"] for verdict in verdicts} == {True, False}
    assert any(None in pair for verdict in verdicts for pair in verdict["errors"].values())
    assert "out of memory" in {verdict["reason"] for verdict in verdicts}
    assert len(json.loads(EXAMPLE)["environments"]) > 1


@given(st.lists(records(), max_size=3))
def test_every_file_that_is_written_is_of_the_schema(drawn):
    VALIDATOR.validate(json.loads(render(TimingCache(drawn)._table)))


def test_schema_and_code_know_the_same_words():
    definitions = SCHEMA["$defs"]
    problem = definitions["problem"]["properties"]
    assert tuple(definitions["record"]["properties"]["effort"]["enum"]) == EFFORTS
    kinds = definitions["record"]["properties"]["objectives"]["enum"]
    assert {kind for some in kinds for kind in some} == set(KINDS)
    assert tuple(definitions["verdict"]["properties"]["errors"]["properties"]) == OUTPUTS
    for name in ("dtype", "adapter_dtype", "compute_dtype"):
        assert tuple(problem[name]["enum"]) == DTYPES
    assert tuple(problem["device"]["enum"]) == DEVICES
    assert tuple(problem["layout"]["enum"]) == LAYOUTS
    assert tuple(problem["variant"]["enum"]) == VARIANTS
    assert tuple(problem["mode"]["enum"]) == MODES


def test_no_object_permits_unknown_members_or_lacks_some():
    open_ended = SCHEMA["$defs"]["problem_of_a_kind"]
    for definition in (SCHEMA, *SCHEMA["$defs"].values()):
        if definition["type"] == "object" and definition is not open_ended:
            assert definition["additionalProperties"] is False
            members = definition["properties"].items()
            assert definition["required"] == [n for n, m in members if "default" not in m]


FIRST = ("records", 0)
WRONG = [
    (("schema_version",), 2),
    (("schema_version",), "1"),
    (("notes",), ""),
    (("environments", "not an id"), {}),
    ((*FIRST, "more"), 1),
    ((*FIRST, "effort"), "heroic"),
    ((*FIRST, "objectives"), []),
    ((*FIRST, "objectives"), ["memory"]),
    ((*FIRST, "objectives"), ["time", "memory"]),
    ((*FIRST, "objectives"), ["speed", "time"]),
    ((*FIRST, "environment"), "H100"),
    ((*FIRST, "measured_at"), "yesterday"),
    ((*FIRST, "seconds"), -1),
    ((*FIRST, "floor_ns"), 0),
    ((*FIRST, "conditions", "nested"), {}),
    ((*FIRST, "winner"), ""),
    ((*FIRST, "winner"), "a\nb"),
    ((*FIRST, "winner"), "x" * 2001),
    ((*FIRST, "problem", "tokens"), 0),
    ((*FIRST, "problem", "tokens"), 2**53),
    ((*FIRST, "problem", "adapter_dtype"), ""),
    ((*FIRST, "problem", "gradients"), ["B", "A"]),
    ((*FIRST, "problem", "gradients"), ["A", "A"]),
    ((*FIRST, "candidates"), []),
    ((*FIRST, "candidates", 0, "rounds"), 0),
    ((*FIRST, "candidates", 0, "spread_ns"), None),
    ((*FIRST, "candidates", 0, "median_ns"), None),
    ((*FIRST, "candidates", 0, "peak_bytes"), -1),
    ((*FIRST, "candidates", 1, "peak_bytes"), 4096),  # which was not timed
    ((*FIRST, "candidates", 0, "verdict", "gain"), [1]),
    ((*FIRST, "candidates", 0, "verdict", "errors", "Y"), [-1, 0]),
    ((*FIRST, "candidates", 0, "verdict", "errors", "W"), [0, 0]),
    ((*FIRST, "candidates", 0, "verdict", "reason"), ""),
]


@pytest.mark.parametrize(("path", "new"), WRONG)
def test_schema_and_code_refuse_the_same(path, new):
    value = copy.deepcopy(json.loads(EXAMPLE))
    *way, last = path
    inner = value
    for step in way:
        inner = inner[step]
    inner[last] = new
    assert not VALIDATOR.is_valid(value)
    with contextlib.suppress(ValueError, NewerSchema):
        assert parse(json.dumps(value).encode()).invalid


def test_the_graphs_of_the_example_are_valid():
    for record in TimingCache.load(FOLDER / "v1.example.json").records:
        for candidate in record.candidates:
            assert find_graph(candidate.graph, record.problem) is not None


# --- every way to write --------------------------------------------------------------------------

OLD, NEW = make_record(64), make_record(64, effort="quick")


def save(path):
    return TimingCache([OLD, make_record(128, environment=OLDER)], path).save()


def publish(path):
    return TimingCache.load(path).publish(make_record(256))


def put_in_place(path):
    save(path)
    return TimingCache.load(path).replace(OLD, NEW)


def take_out(path):
    save(path)
    TimingCache.rewrite(path, lambda record: record.problem.tokens == 128)
    return path


def take_all_out(path):
    save(path)
    TimingCache.rewrite(path, lambda record: False)
    return path


def join(path):
    return joining.save(joining.join([joining.Source("it", TimingCache([OLD])._table)]), path).path


def rescue(path):
    path.mkdir()
    with pytest.raises(AutoloraError) as caught:
        TimingCache([OLD], path).save()
    return Path(re.search(r"\S+rescued\S+?\.json", str(caught.value))[0])


WAYS = (save, publish, put_in_place, take_out, take_all_out, join, rescue)


@pytest.mark.parametrize("write", WAYS)
def test_whatever_writes_a_file_writes_one_of_the_schema(path, write):
    written = write(path)
    VALIDATOR.validate(json.loads(written.read_bytes()))
    assert render(parse(written.read_bytes())) == written.read_bytes()


# --- a version 2, which nobody knows yet ---------------------------------------------------------

V2 = b"""{"schema_version": 2, "layout": "columns", "machines": [["31f8932cf000", "cpu", NaN]],
"problems": {"in_features": [768, 512], "tokens": [1024, 1]}, "environments": 7,
"records": {"winner": [0, 1], "names": ["merged", "reference"], "energy_j": [1e999, -0]}}
trailing words, and bytes that are no text: """ + bytes(range(128, 256))


def is_told(attempt):
    with pytest.raises(AutoloraError, match="newer than this autolora"):
        attempt()


@pytest.mark.parametrize("name", ["timings.v1.json", "timings.v2.json"])
def test_a_version_2_is_a_miss_and_stays_to_the_byte(tmp_path, warnings, name):
    path = tmp_path / name
    path.write_bytes(V2)
    before = path.stat()
    lookup = Lookup([path])
    assert lookup.find(make_problem(64), CPU, lambda name: True).reason == "miss"
    assert lookup.closest(make_problem(64), CPU) is None
    [warning] = warnings()
    assert str(path) in warning
    assert "newer" in warning
    cache = TimingCache.load(path)
    assert cache.records == []
    is_told(cache.save)
    is_told(lambda: TimingCache([OLD]).save(path))
    is_told(lambda: cache.publish(OLD))
    is_told(lambda: cache.replace(OLD, NEW))
    is_told(lambda: TimingCache.rewrite(path, lambda record: False))
    after = path.stat()
    assert path.read_bytes() == V2
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not [each.name for each in tmp_path.iterdir() if "corrupt" in each.name]


def test_a_version_2_whose_version_comes_last_is_not_written_either(path):
    value = {"machines": [], "records": [{"x": 1}] * 20, "environments": [], "schema_version": 2}
    path.write_text(json.dumps(value, indent=1))
    before = path.read_bytes()
    is_told(lambda: TimingCache.load(path).publish(OLD))
    assert path.read_bytes() == before


# --- the README ----------------------------------------------------------------------------------

README = (FOLDER / "README.md").read_text(encoding="utf-8")
SECTIONS = {
    "The file": SCHEMA,
    "A record": SCHEMA["$defs"]["record"],
    "A problem": SCHEMA["$defs"]["problem"],
    "An environment": SCHEMA["$defs"]["environment"],
    "A candidate": SCHEMA["$defs"]["candidate"],
    "A verdict": SCHEMA["$defs"]["verdict"],
}


@pytest.mark.parametrize(("title", "definition"), SECTIONS.items(), ids=SECTIONS.keys())
def test_the_readme_explains_every_member_and_no_other(title, definition):
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == list(definition["properties"])
    for name, unit, meaning in rows:
        stripped = name.strip(" `")
        expected = {"ns": "ns", "bytes": "bytes", "at": "UTC", "seconds": "s"}
        assert unit.strip() in ("", "ratio", expected.get(stripped.rsplit("_")[-1], ""))
        assert len(meaning.split()) > 1 or stripped == "schema_version"
        allowed = definition["properties"][stripped].get("enum", ())
        if all(isinstance(word, str) and "float" not in word for word in allowed):
            assert [word for word in allowed if f"`{word}`" not in meaning] == []


def test_the_readme_names_every_word_of_the_objectives():
    assert all(f"`{kind}`" in README for kind in KINDS)


def test_the_readme_states_the_limits():
    assert f"at most {LIMIT // 10**6} MB" in README
    assert f"at most {LONGEST:,} characters" in README
