import contextlib
import copy
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from records import records

from autolora.cache.candidate import OUTPUTS
from autolora.cache.document import SCHEMA_VERSION, NewerSchema, parse, render
from autolora.cache.record import EFFORTS
from autolora.cache.store import TimingCache
from autolora.graphs.space import find_graph
from autolora.objective import KINDS
from autolora.problem import DEVICES, DTYPES, LAYOUTS, VARIANTS

FOLDER = Path(__file__).parents[1] / "cache_schema"
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


def test_no_object_permits_unknown_members_or_lacks_some():
    for definition in (SCHEMA, *SCHEMA["$defs"].values()):
        if definition["type"] == "object":
            assert definition["additionalProperties"] is False
            assert definition["required"] == list(definition["properties"])


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
    ((*FIRST, "winner"), "x" * 201),
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
    ((*FIRST, "candidates", 0, "verdict", "errors", "dW"), [0, 0]),
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
        assert parse(json.dumps(value).encode()).spoilt


def test_the_graphs_of_the_example_are_valid():
    for record in TimingCache.load(FOLDER / "v1.example.json").records:
        for candidate in record.candidates:
            assert find_graph(candidate.graph, record.problem) is not None
