"""What validation says of a cache file: of the schema, and whether its records can be true."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from records import CPU, H100, make_record, records

from autolora.cache.records.candidate import Candidate, Verdict
from autolora.cache.records.document import render
from autolora.cache.records.table import Table
from autolora.cache.records.validation import Graphs, validate
from autolora.environment import Environment
from autolora.graphs.kinds import find_graph, reference_graph
from autolora.problem import Problem
from autolora.timing.measurement import measure_problem

FOLDER = Path(__file__).parents[2] / "cache_schema"
SCHEMA = Draft202012Validator(
    json.loads((FOLDER / "v1.schema.json").read_text(encoding="utf-8")),
    format_checker=Draft202012Validator.FORMAT_CHECKER,
)
EXAMPLE = (FOLDER / "v1.example.json").read_bytes()

GRAPHS = Graphs(find_graph, lambda problem: reference_graph(problem).name)
NOW = datetime(2026, 6, 1, tzinfo=UTC)

PROBLEM = Problem(64, 48, 32, 4, "float32", "cpu")
FLOPS = 2 * 32 * 64 * 48 * 2 + 2 * 32 * 4 * (3 * 64 + 3 * 48)  # of the reference, X Wᵀ to dB
REFERENCE = "reference"
FAST = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"
OTHER = "base_first/h=recomputed/dX=lowrank/dA=via_z/dB=via_h"
OK = Verdict(True, {}, (1.0, 1.0))
USUAL = ((FAST, 20_000), (REFERENCE, 30_000))


def candidate(graph, median_ns, spread_ns=500, rounds=40, problem=PROBLEM, verdict=OK, **changes):
    saved = find_graph(graph, problem).saved_bytes(problem) if find_graph(graph, problem) else 0
    fields = {"saved_bytes": saved, **changes}
    return Candidate(graph, median_ns, spread_ns, rounds, verdict=verdict, **fields)


def sound(*candidates, problem=PROBLEM, **changes):
    """A record as the tuner writes it."""
    usual = (
        candidate(FAST, 20_000, problem=problem),
        candidate(REFERENCE, 30_000, problem=problem),
    )
    fields = {"environment": CPU, "winner": FAST, "floor_ns": 10_000, **changes}
    return replace(make_record(), problem=problem, candidates=candidates or usual, **fields)


def file_of(*found):
    table = Table()
    for record in found:
        table.add(record)
    return render(table)


def told(data, now=NOW):
    return [(finding.severity, finding.cause) for finding in validate(data, GRAPHS, now).findings]


# ---- what is good


def test_a_sound_record_and_the_example_have_no_findings():
    assert find_graph(REFERENCE, PROBLEM).flops(PROBLEM) == FLOPS
    for data, number in ((file_of(sound(), sound(problem=PROBLEM.at(64))), 2), (EXAMPLE, 6)):
        validation = validate(data, GRAPHS, NOW)
        assert [f for f in validation.findings if f.severity == "error"] == []
        assert validation.records == len(json.loads(data)["records"]) <= number
    assert told(file_of(sound())) == []
    assert told(file_of()) == []


@pytest.mark.parametrize(
    "problem",
    [
        Problem(48, 32, 64, 4, "float32", "cpu"),
        Problem(48, 32, 64, 4, "bfloat16", "cpu", adapter_dtype="float32", dropout=True),
    ],
    ids=str,
)
def test_what_the_tuner_writes_is_valid(problem, real_clock):
    cpu = torch.device("cpu")
    record = measure_problem(problem, cpu, Environment.of(cpu), effort="quick")
    again = measure_problem(problem, cpu, Environment.of(cpu), effort="quick", known=record)
    for each in (record, again):
        assert validate(file_of(each), GRAPHS).errors == 0


# ---- what is wrong with a record


def timed(median_ns, **changes):
    return sound(candidate(FAST, median_ns, **changes), candidate(REFERENCE, 10**6))


MOST = 1e13 * CPU.units  # FLOP/s
LEAST_NS = find_graph(FAST, PROBLEM).flops(PROBLEM) / MOST * 1e9
GPU = replace(PROBLEM, device="cuda", in_features=2**14, out_features=2**14, tokens=2**14)
ON_GPU = {"problem": GPU, "environment": H100}


def on_gpu(flops_per_second):
    times = {g: find_graph(g, GPU).flops(GPU) / flops_per_second * 1e9 for g in (FAST, REFERENCE)}
    found = [candidate(graph, round(time), 0, problem=GPU) for graph, time in times.items()]
    return sound(*found, **ON_GPU, seconds=1e9)


ERRORS = [
    (
        sound(candidate("no/such=graph", 20_000), candidate(REFERENCE, 30_000), winner=REFERENCE),
        "candidate 'no/such=graph' is no graph of this version of autolora for this problem",
    ),
    (
        sound(candidate("faster", 20_000), candidate(REFERENCE, 30_000), winner="faster"),
        "winner 'faster' is no graph",
    ),
    (
        sound(problem=replace(PROBLEM, gradients=("A", "B"))),
        f"winner '{FAST}' is no graph of this version",
    ),
    (sound(reference=FAST), f"reference must be 'reference', which PEFT runs, not '{FAST}'"),
    (timed(int(LEAST_NS)), f"median_ns {int(LEAST_NS)} of '{FAST}' would be 2."),
    (on_gpu(1.4e16), f"of '{FAST}' would be 1.4e+16 FLOP/s, and no cuda device of 132 units"),
    (timed(20_000, rounds=1), f"spread_ns of '{FAST}' must be 0 after one round"),
    (
        timed(1_000_000_000, rounds=4),
        "seconds 1.5 is less than the winner's 4 rounds took, 2 at the least",
    ),
    (sound(measured_at="2026-06-02T00:00:01Z"), "2026-06-02T00:00:01Z is in the future"),
]


@pytest.mark.parametrize(("record", "cause"), ERRORS, ids=[row[1][:40] for row in ERRORS])
def test_what_cannot_be_is_an_error(record, cause):
    validation = validate(file_of(record), GRAPHS, NOW)
    found = [f for f in validation.findings if f.severity == "error" and cause in f.cause]
    assert len(found) == 1
    assert found[0].key.problem == record.problem
    assert found[0].key.environment == record.environment.id


NEARLY = [
    timed(int(LEAST_NS) + 1),
    on_gpu(1.3e16),
    timed(20_000, rounds=1, spread_ns=0),
    timed(1_000_000_000, rounds=3),
    sound(measured_at="2026-06-02T00:00:00Z"),
]


@pytest.mark.parametrize("record", NEARLY, ids=range(len(NEARLY)))
def test_what_just_may_be_is_none(record):
    assert validate(file_of(record), GRAPHS, NOW).errors == 0


ODD = [
    (
        sound(candidate(FAST, 20_000), candidate(REFERENCE, 30_000), candidate(OTHER, 15_000)),
        f"the winner is 33 % slower than '{OTHER}', which may be used too",
    ),
    (
        sound(candidate(FAST, 20_000, verdict=None), candidate(REFERENCE, 30_000)),
        "the winner's accuracy was not measured",
    ),
    (timed(20_000, spread_ns=20_001), "the winner's spread is larger than its time, 20000 ns"),
    (sound(floor_ns=30_001), "floor_ns 30001, without an adapter, is above every candidate's time"),
    (sound(measured_at="1970-01-01T00:00:00Z"), "measured_at 1970-01-01T00:00:00Z is before"),
    (
        sound(candidate(FAST, 20_000, saved_bytes=7), candidate(REFERENCE, 30_000)),
        f"saved_bytes 7 of '{FAST}', which keeps 8704 in this version of autolora",
    ),
]


@pytest.mark.parametrize(("record", "cause"), ODD, ids=[row[1][:40] for row in ODD])
def test_what_is_odd_is_a_note(record, cause):
    ((severity, found),) = told(file_of(record))
    assert severity == "note"
    assert cause in found


def test_a_winner_within_the_noise_is_not_odd():
    near = candidate(OTHER, 19_100)
    noisy = candidate(OTHER, 15_000, spread_ns=5_000)
    refused = candidate(OTHER, 10_000, verdict=Verdict(False, {}, (1.0, 0.1), "too inaccurate"))
    for third in (near, noisy, refused):
        found = sound(candidate(FAST, 20_000), candidate(REFERENCE, 30_000), third)
        assert told(file_of(found)) == []


# ---- what is wrong with a file


def test_notes_on_the_layout():
    lines = file_of(sound(), sound(problem=PROBLEM.at(64))).decode().splitlines(keepends=True)
    start, (first, second), end = lines[:4], lines[5:7], lines[7:]
    start += lines[4:5]
    first = first.rstrip(",\n")
    second = second.rstrip("\n")

    def file(*records):
        return ("".join(start) + ",\n".join(records) + "\n" + "".join(end)).encode()

    assert told(file(first, second)) == []
    assert told(file(second, first)) == [("note", "the records are not sorted")]
    twice = ("note", "is there more than once; only the best one counts")
    assert told(file(first, first, second)) == [twice]
    pretty = json.dumps(json.loads(file(first, second)), indent=1).encode()
    assert told(pretty) == [("note", "not in the layout that autolora writes")]
    assert validate(pretty, GRAPHS, NOW).records == 2


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "it is no cache file: "),
        (b"[]", "it is no cache file: "),
        (EXAMPLE[:-3], "it is no cache file: "),
        (b"\xff\xfe", "it is no cache file: 'utf-8' codec"),
        (EXAMPLE.replace(b'"schema_version":1', b'"schema_version":2'), "its schema is newer"),
        (EXAMPLE.replace(b'"seconds"', b'"seconds":1,"seconds"'), "an object has a member twice"),
    ],
)
def test_what_is_no_cache_file_is_one_error(data, cause):
    for severity, found in told(data):
        assert severity == "error"
        assert cause in found


def test_a_broken_record_is_told_by_its_problem_and_the_others_are_checked():
    good, bad = sound(), sound(problem=PROBLEM.at(64))
    data = file_of(good, bad).replace(b'"seconds":1.5', b'"seconds":-1', 2)
    data = data.replace(b'"seconds":-1', b'"seconds":1.5', 1)
    validation = validate(data, GRAPHS, NOW)
    (finding,) = validation.findings
    assert validation.records == 1
    assert (finding.severity, finding.cause) == ("error", "seconds must not be negative")
    assert finding.key.problem == bad.problem


# ---- the schema, for other programs, and the code agree


RECORD, FIRST = ("records", 0), ("records", 0, "candidates", 0)
CHANGES = [  # where, and what is put there; the last says whether that is of the schema
    (("schema_version",), True, False),
    (("schema_version",), 1, True),
    (("records",), {}, False),
    (("environments",), [], False),
    (("more",), None, False),
    ((*RECORD, "effort"), "thorough", True),
    ((*RECORD, "effort"), "Quick", False),
    ((*RECORD, "objectives"), ["accuracy", "memory", "time"], True),
    ((*RECORD, "objectives"), ["time", "time"], False),
    ((*RECORD, "objectives"), "time", False),
    ((*RECORD, "floor_ns"), None, True),
    ((*RECORD, "floor_ns"), 1.5, False),
    ((*RECORD, "floor_ns"), True, False),
    ((*RECORD, "seconds"), 0, True),
    ((*RECORD, "seconds"), "1", False),
    ((*RECORD, "seconds"), None, False),
    ((*RECORD, "measured_at"), "2024-02-29T23:59:59Z", True),
    ((*RECORD, "measured_at"), "2026-01-01T00:00:00+00:00", False),
    ((*RECORD, "measured_at"), "2026-01-01 00:00:00Z", False),
    ((*RECORD, "conditions"), {"a": None, "b": True, "c": -1.5, "d": ""}, True),
    ((*RECORD, "conditions"), {"a": []}, False),
    ((*RECORD, "conditions"), {"": 1}, False),
    ((*RECORD, "conditions"), {str(n): n for n in range(65)}, False),
    ((*RECORD, "conditions"), None, False),
    ((*RECORD, "autolora"), "x" * 200, True),
    ((*RECORD, "autolora"), "x" * 201, False),
    ((*RECORD, "autolora"), "", False),
    ((*RECORD, "reference"), None, False),
    ((*RECORD, "candidates"), None, False),
    ((*RECORD, "candidates", 0), {}, False),
    ((*RECORD, "problem", "bias"), True, True),
    ((*RECORD, "problem", "bias"), 1, False),
    ((*RECORD, "problem", "dtype"), "float8", False),
    ((*RECORD, "problem", "rank"), 2**53 - 1, True),
    ((*RECORD, "problem", "rank"), 2**53, False),
    ((*RECORD, "problem", "rank"), 1.5, False),
    ((*RECORD, "problem", "rank"), "8", False),
    ((*RECORD, "problem", "gradients"), "XAB", False),
    ((*RECORD, "problem", "more"), 1, False),
    ((*RECORD, "problem"), None, False),
    ((*FIRST, "saved_bytes"), 0, True),
    ((*FIRST, "saved_bytes"), -1, False),
    ((*FIRST, "spread_ns"), 0, True),
    ((*FIRST, "spread_ns"), 0.5, False),
    ((*FIRST, "peak_bytes"), None, True),
    ((*FIRST, "verdict"), {"ok": True, "errors": {}, "gain": [None, -1], "reason": ""}, True),
    ((*FIRST, "verdict"), {"ok": True, "errors": {}, "gain": [1, 1], "reason": "x"}, False),
    ((*FIRST, "verdict"), {"ok": 1, "errors": {}, "gain": [1, 1], "reason": ""}, False),
    ((*FIRST, "verdict"), {"ok": True, "errors": [], "gain": [1, 1], "reason": ""}, False),
    ((*FIRST, "verdict"), {"ok": True, "errors": {"Y": [0]}, "gain": [1, 1], "reason": ""}, False),
    ((*FIRST, "verdict"), {"ok": True, "gain": [1, 1], "reason": ""}, False),
    ((*FIRST, "verdict"), [], False),
]


@pytest.mark.parametrize(
    ("way", "new", "good"), CHANGES, ids=[f"{row[0][-1]}-{n}" for n, row in enumerate(CHANGES)]
)
def test_schema_and_validation_agree(way, new, good):
    value = copy.deepcopy(json.loads(file_of(sound())))
    inner = value
    for step in way[:-1]:
        inner = inner[step]
    inner[way[-1]] = new
    assert SCHEMA.is_valid(value) == good
    found = validate(json.dumps(value).encode(), GRAPHS, NOW)
    reader_refuses = found.records == 0
    assert reader_refuses == (not good)
    if not good:
        assert found.errors


# ---- hostile files


@given(st.lists(records(), max_size=3))
def test_any_record_is_judged_without_a_crash(drawn):
    validation = validate(file_of(*drawn), GRAPHS, NOW)
    assert validation.records == len(json.loads(file_of(*drawn))["records"])


@given(st.data())
def test_any_bytes_are_judged_without_a_crash(data):
    whole = file_of(sound(), sound(problem=PROBLEM.at(64)))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 20, len(whole))))
    broken = whole[:start] + data.draw(st.binary(max_size=5)) + whole[end:]
    found = validate(broken, GRAPHS, NOW)
    assert found.records <= 2
    assert all(finding.cause for finding in found.findings)
