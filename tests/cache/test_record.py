import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import (
    CPU,
    FAST,
    H100,
    MERGED,
    REFERENCE,
    REJECTED,
    SAVED,
    TOO_LARGE,
    make_candidate,
    make_problem,
    make_record,
    records,
)

from autolora.cache.lookup.choice import choose
from autolora.cache.records.candidate import Candidate, Verdict
from autolora.cache.records.checks import LARGEST, dumps, loads
from autolora.cache.records.precedence import EFFORTS
from autolora.cache.records.record import Record, better
from autolora.objective import KINDS, Objective

ENVIRONMENTS = {environment.id: environment for environment in (CPU, H100)}
RECORD = make_record()


def changed(value, path, new):
    """A deep copy of a JSON value in which the member at ``path`` is ``new``."""
    copy = json.loads(json.dumps(value))
    *way, last = path
    inner = copy
    for step in way:
        inner = inner[step]
    if new is ...:
        del inner[last]
    else:
        inner[last] = new
    return copy


# --- figures -----------------------------------------------------------------------------------


def test_figures_are_of_the_winner():
    record = make_record(times={REFERENCE: 2000, SAVED: 1000, MERGED: 1500}, flops_choice=MERGED)
    assert record.winner == SAVED
    assert (record.median_ns, record.rounds) == (1000, 5)
    assert record.speedup == 2.0
    assert record.flops_speedup == 1.5


@pytest.mark.parametrize(
    ("floor_ns", "removed"),
    [(500, 1000 / 1500), (1000, 1.0), (0 + 1500, 2.0), (2000, None), (2500, None), (None, None)],
)
def test_overhead_removed_is_a_share_of_what_the_floor_leaves(floor_ns, removed):
    assert make_record(floor_ns=floor_ns).overhead_removed == removed


def test_candidates_are_sorted_and_found_by_name():
    assert [c.graph for c in RECORD.candidates] == sorted((REFERENCE, SAVED, MERGED))
    assert RECORD.candidate(SAVED).median_ns == 1000
    assert RECORD.candidate("none such") is None


# --- JSON --------------------------------------------------------------------------------------


@given(records())
def test_json_gives_the_record_back(record):
    copy = Record.from_json(loads(record.line), {record.environment.id: record.environment})
    assert copy == record
    assert copy.line == record.line
    assert record.line.isascii()
    assert "\n" not in record.line


def test_a_record_begins_with_its_problem_and_ends_with_the_evidence():
    members = list(RECORD.to_json())
    assert members[0] == "problem"
    assert members[-1] == "candidates"
    assert RECORD.to_json()["environment"] == CPU.id


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, None])
def test_a_figure_that_is_not_finite_is_kept_as_none(figure):
    verdict = Verdict(False, {"dX": (figure, 1e-3)}, (figure, 1.0), "overflow")
    assert verdict.errors == {"dX": (None, 1e-3)}
    assert verdict.gain == (None, 1.0)
    assert Verdict.from_json(loads(dumps(verdict.to_json()))) == verdict


WRONG = [None, True, "x", 1.5, [], {}, -1, 2**53, 10**400]
BAD = [
    (("problem",), None, "problem"),
    (("problem", "tokens"), 2**53, "problem.tokens"),
    (("problem", "tokens"), -1, "tokens"),
    (("problem", "gradients"), ["B", "A", "X"], "in order"),
    (("problem", "adapter_dtype"), "", "in full"),
    (("problem", "device"), "cuda", "same"),
    (("problem", "extra"), 1, "extra"),
    (("problem", "rank"), ..., "rank"),
    (("environment",), H100.id, "same"),
    (("environment",), "0" * 12, "environment"),
    (("environment",), [], "environment"),
    (("effort",), "heroic", "effort"),
    (("effort",), ["normal"], "effort"),
    (("objectives",), [], "objectives"),
    (("objectives",), ["memory"], "objectives"),
    (("objectives",), ["time", "memory"], "objectives"),
    (("objectives",), ["time", "time"], "objectives"),
    (("objectives",), ["speed", "time"], "objectives"),
    (("objectives",), [["time"]], "objectives"),
    (("objectives",), "time", "objectives"),
    (("winner",), "none such", "winner"),
    (("winner",), [], "winner"),
    (("reference",), None, "reference"),
    (("flops_choice",), "", "flops_choice"),
    (("floor_ns",), 0, "floor_ns"),
    (("floor_ns",), 1.5, "floor_ns"),
    (("measured_at",), "yesterday", "measured_at"),
    (("measured_at",), "2026-02-30T00:00:00Z", "measured_at"),
    (("measured_at",), "2026-01-01T00:00:00+01:00", "measured_at"),
    (("measured_at",), 0, "measured_at"),
    (("seconds",), -0.1, "seconds"),
    (("seconds",), "1", "seconds"),
    (("seconds",), 10**400, "seconds"),
    (("seconds",), True, "seconds"),
    (("conditions",), [], "conditions"),
    (("conditions", "nested"), {}, "conditions"),
    (("conditions", "escape"), "\x1b[2J", "conditions"),
    (("conditions", ""), 1, "conditions"),
    (("conditions", "huge"), 10**400, "conditions"),
    (("conditions",), {str(n): n for n in range(65)}, "conditions"),
    (("autolora",), 1, "autolora"),
    (("autolora",), "", "autolora"),
    (("candidates",), {}, "candidates"),
    (("candidates",), [], "winner"),
    (("candidates", 0), None, "candidate"),
    (("candidates", 1), RECORD.to_json()["candidates"][0], "twice"),
    (("candidates", 0, "graph"), "", "graph"),
    (("candidates", 0, "graph"), "x" * 2001, "graph"),
    (("candidates", 0, "graph"), "a\nb", "graph"),
    (("candidates", 0, "graph"), 7, "graph"),
    (("candidates", 0, "median_ns"), None, "median_ns"),
    (("candidates", 0, "median_ns"), 0, "median_ns"),
    (("candidates", 0, "median_ns"), 1e3, "median_ns"),
    (("candidates", 0, "spread_ns"), None, "spread_ns"),
    (("candidates", 0, "spread_ns"), -1, "spread_ns"),
    (("candidates", 0, "rounds"), 0, "rounds"),
    (("candidates", 0, "rounds"), True, "rounds"),
    (("candidates", 0, "saved_bytes"), -1, "saved_bytes"),
    (("candidates", 0, "peak_bytes"), -1, "peak_bytes"),
    (("candidates", 0, "peak_bytes"), 1.5, "peak_bytes"),
    (("candidates", 0, "peak_bytes"), True, "peak_bytes"),
    (("candidates", 0, "peak_bytes"), ..., "peak_bytes"),
    (("candidates", 0, "verdict"), 0, "verdict"),
    (("candidates", 0, "verdict"), False, "verdict"),
    (("candidates", 0, "verdict"), [], "verdict"),
    (("candidates", 0, "verdict", "ok"), 1, "ok"),
    (("candidates", 0, "verdict", "reason"), "but", "reason"),
    (("candidates", 0, "verdict", "reason"), None, "reason"),
    (("candidates", 0, "verdict", "errors"), [], "errors"),
    (("candidates", 0, "verdict", "errors"), {"W": [0, 0]}, "errors"),
    (("candidates", 0, "verdict", "errors"), {"Y": [0]}, "errors"),
    (("candidates", 0, "verdict", "errors"), {"Y": [-1, 0]}, "errors"),
    (("candidates", 0, "verdict", "errors"), {"Y": "01"}, "errors"),
    (("candidates", 0, "verdict", "gain"), [1], "gain"),
    (("candidates", 0, "verdict", "gain"), ["1", 1], "gain"),
    (("candidates", 0, "verdict", "gain"), ..., "gain"),
    (("candidates", 0, "more"), 1, "only"),
    (("more",), 1, "only"),
]


@pytest.mark.parametrize(("path", "new", "word"), BAD)
def test_json_that_is_no_record_is_refused_by_field(path, new, word):
    with pytest.raises(ValueError, match=word):
        Record.from_json(changed(RECORD.to_json(), path, new), ENVIRONMENTS)


@pytest.mark.parametrize("member", list(RECORD.to_json()))
@pytest.mark.parametrize("wrong", [..., *WRONG], ids=repr)
def test_a_member_of_any_type_raises_value_error_or_nothing(member, wrong):
    with contextlib.suppress(ValueError):
        assert Record.from_json(changed(RECORD.to_json(), (member,), wrong), ENVIRONMENTS).line


@pytest.mark.parametrize("value", [None, 1, "record", [], {}])
def test_other_json_is_refused(value):
    with pytest.raises(ValueError, match="record"):
        Record.from_json(value, ENVIRONMENTS)


def test_the_winner_must_have_been_accepted_unless_it_is_the_reference():
    with pytest.raises(ValueError, match="rejected"):
        make_record(verdicts={SAVED: REJECTED}, winner=SAVED)
    alone = make_record(times={REFERENCE: 5}, winner=REFERENCE)
    rejected = replace(alone, candidates=(make_candidate(REFERENCE, 5, verdict=REJECTED),))
    assert rejected.winner == REFERENCE


@pytest.mark.parametrize("figure", [{"spread_ns": 1}, {"rounds": 1}, {"peak_bytes": 1}])
def test_a_candidate_that_was_not_timed_has_no_figures(figure):
    with pytest.raises(
        ValueError, match="without median_ns has no spread_ns, rounds or peak_bytes"
    ):
        replace(make_candidate(SAVED, None), **figure)


def test_a_graph_that_ran_out_of_memory_is_evidence_and_no_more():
    record = make_record(times={REFERENCE: 2000, SAVED: None}, verdicts={SAVED: TOO_LARGE})
    copy = Record.from_json(loads(record.line), ENVIRONMENTS)
    judged = copy.candidate(SAVED).verdict
    assert (judged.ok, judged.errors, judged.gain) == (False, {}, (None, None))
    assert (copy.winner, judged.reason) == (REFERENCE, "out of memory")
    for kind in KINDS:
        assert choose(copy, Objective(kind)).name == REFERENCE


def test_numbers_may_be_as_large_as_json_readers_hold():
    assert make_record(problem=make_problem(LARGEST)).problem.tokens == LARGEST


@pytest.mark.parametrize(
    "text", ["[NaN]", "[-Infinity]", '{"a":1,"a":1}', "[" * 10**5, "9" * 10**4, "", "{", "[1,]"]
)
def test_what_is_not_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        loads(text)


# --- the order ---------------------------------------------------------------------------------


def with_winner(objectives=("time",), **changes):
    winner = {"graph": SAVED, "median_ns": 1000, "spread_ns": 100, "rounds": 5, "saved_bytes": 0}
    candidates = (make_candidate(REFERENCE, 2000), Candidate(**{**winner, **changes}, verdict=FAST))
    return make_record(candidates=candidates, objectives=objectives)


@pytest.mark.parametrize(
    ("worse", "best"),
    [
        (make_record(effort="quick", measured_at="2027-01-01T00:00:00Z"), make_record()),
        (make_record(effort="normal"), make_record(effort="thorough")),
        (make_record(objectives=("memory", "time")), make_record(effort="thorough")),
        (with_winner(rounds=6), with_winner(objectives=("memory", "time"))),
        (
            make_record(objectives=("memory", "time"), measured_at="2027-01-01T00:00:00Z"),
            make_record(objectives=("accuracy", "memory", "time")),
        ),
        (with_winner(rounds=5, spread_ns=0), with_winner(rounds=6)),
        (with_winner(spread_ns=101), with_winner(spread_ns=100)),
        (with_winner(spread_ns=100), with_winner(spread_ns=150, median_ns=1999)),
        (make_record(), make_record(measured_at="2026-01-01T00:00:01Z")),
        (make_record(seconds=1.5), make_record(seconds=2.5)),
    ],
    ids=[
        "effort",
        "highest effort",
        "effort before objectives",
        "objectives before rounds",
        "objectives",
        "rounds",
        "spread",
        "relative spread",
        "newer",
        "text",
    ],
)
def test_the_better_record_is_the_same_from_both_sides(worse, best):
    assert better(worse, best) == best
    assert better(best, worse) == best


def test_efforts_are_in_their_order():
    assert EFFORTS == ("estimate", "quick", "normal", "thorough")


@given(st.lists(records(few_keys=True), min_size=3, max_size=3))
def test_better_is_a_total_order(drawn):
    a, b, c = drawn
    assert better(a, a).line == a.line
    assert better(a, b).line == better(b, a).line
    assert better(better(a, b), c).line == better(a, better(b, c)).line
