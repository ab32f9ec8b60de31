"""Which option an objective takes: tables, and the laws that hold for any options."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import FAST, REJECTED

from autolora import AutoloraError, objective
from autolora.cache.records.candidate import OUTPUTS, Verdict
from autolora.objective import (
    KINDS,
    Objective,
    Option,
    Pick,
    bytes_from,
    kinds_of,
    low_memory_levels,
    most_accurate,
    pick,
)


def verdict(error=1e-3, gain=(1.0, 0.5), ok=True):
    return Verdict(ok, {"Y": (error, error), "dX": (1e-3, 1e-3)}, gain, "" if ok else "why")


REFERENCE = Option("reference", 100, 60, verdict(), reference=True)
FASTEST = Option("fastest", 50, 60, verdict())
EXACT = Option("exact", 80, 60, verdict(5e-4, (1.0, 1.0)))
LEAN, LEANER, LEANEST = (Option(f"lean{n}", 110 - n, n, verdict()) for n in (40, 20, 10))
EQUAL = Option("equal", 105, 10, verdict())
WRONG = Option("wrong", 1, 1, verdict(ok=False))
UNKNOWN = Option("unknown", 55, 60)
ALL = [REFERENCE, FASTEST, EXACT, LEAN, LEANER, LEANEST, EQUAL, WRONG, UNKNOWN]


@pytest.mark.parametrize(
    ("kind", "limit", "name", "detail"),
    [
        ("time", None, "fastest", ""),
        ("time", 60, "fastest", ""),
        ("time", 59, "lean40", ""),
        ("time", 39, "lean20", ""),
        ("time", 10, "lean10", ""),
        ("time", 9, "lean10", "none keeps at most 9 bytes; the leanest keeps 10"),
        ("memory", None, "lean10", ""),
        ("memory", 30, "lean10", ""),
        ("memory", 9, "lean10", "none keeps at most 9 bytes; the leanest keeps 10"),
        ("accuracy", None, "exact", ""),
        ("accuracy", 59, "lean40", ""),
        ("accuracy", 9, "lean10", "none keeps at most 9 bytes; the leanest keeps 10"),
    ],
)
def test_each_objective_takes_its_own(kind, limit, name, detail):
    assert pick(ALL, Objective(kind, limit)) == Pick(name, detail)


def test_nobody_may_be_there():
    assert pick([], Objective()) is None
    assert pick([WRONG], Objective()) is None
    rejected = Option("reference", 3, 3, REJECTED, reference=True)
    assert pick([WRONG, rejected], Objective("memory")) == Pick("reference")


def test_what_led_the_race_is_the_fastest_of_those_that_are_left():
    assert pick(ALL, Objective(), "lean40").name == "lean40"
    assert pick(ALL, Objective("time", 50), "fastest").name == "lean40"
    assert pick(ALL, Objective("memory"), "equal").name == "equal"
    assert pick(ALL, Objective("memory"), "fastest").name == "lean10"


def test_who_dropped_out_of_the_race_for_an_objective_has_lost_it():
    lucky = Option("lucky", 40, 10, verdict(), rounds=1)
    steady = Option("steady", 60, 10, verdict(), rounds=8)
    assert pick([lucky, steady], Objective("memory")).name == "steady"
    assert pick([lucky, steady], Objective()).name == "lucky"  # the leader is named by the record


@pytest.mark.parametrize(
    ("figures", "accurate"),
    [
        ({"a": 1e-3, "b": 1e-3, "reference": 1e-3}, {"a", "b", "reference"}),
        ({"a": 9.1e-4, "b": 1e-3, "reference": 1e-3}, {"a", "b", "reference"}),
        ({"a": 1e-4, "b": 1e-3, "reference": 1e-3}, {"a"}),
        ({"a": 0.0, "b": 1e-16, "reference": 0.0}, {"a", "b", "reference"}),
        ({"a": None, "b": 1e-3, "reference": 1e-3}, {"b", "reference"}),
        ({"a": 1e-3, "b": None, "reference": None}, {"a"}),
        ({"a": None, "reference": None}, {"a", "reference"}),
    ],
)
def test_the_most_accurate_are_within_a_tenth_of_the_least(figures, accurate):
    verdicts = {name: Verdict(True, {"Y": (e, e)}, (1.0, 1.0)) for name, e in figures.items()}
    assert most_accurate(verdicts, verdicts["reference"]) == accurate


def test_the_gain_counts_as_an_output():
    reference = verdict(gain=(0.999, 0.5))
    verdicts = {"reference": reference, "whole": verdict(gain=(1.0, 1.0))}
    assert most_accurate(verdicts, reference) == {"whole"}
    near = {"reference": verdict(gain=(1.0, 0.9999)), "whole": verdict(gain=(1.0, 1.0))}
    assert most_accurate(near, near["reference"]) == {"reference", "whole"}  # both below the floor


def test_without_figures_all_are_equally_accurate():
    assert most_accurate({"a": None, "b": FAST}, FAST) == {"a", "b"}
    assert most_accurate({"a": verdict(1e-9), "b": verdict()}, None) == {"a", "b"}
    assert most_accurate({}, None) == frozenset()


@pytest.mark.parametrize(
    ("levels", "below", "limit", "found"),
    [
        ([5, 1, 3, 3, 9], 9, None, [1, 3, 5]),
        ([1, 2, 3, 4, 5, 6], 6, None, [1, 2, 3]),
        ([1, 2, 3, 4, 5, 6], 6, 5, [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5, 6], 6, 100, [1, 2, 3, 4, 5]),
        ([4, 5], 4, None, []),
        ([1, 2, 3, 4], 9, 0, [1, 2, 3]),
    ],
)
def test_lean_levels(levels, below, limit, found):
    assert low_memory_levels(levels, below, limit) == found


@pytest.mark.parametrize(
    ("objectives", "known", "kinds"),
    [
        ([], (), ("time",)),
        ([Objective()], (), ("time",)),
        ([Objective("memory")], (), ("memory", "time")),
        ([Objective("time", 5)], (), ("memory", "time")),
        ([Objective("accuracy"), Objective()], ("memory",), ("accuracy", "memory", "time")),
    ],
)
def test_kinds(objectives, known, kinds):
    assert kinds_of(objectives, known) == kinds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speed",), "objective must be one of time, memory, accuracy, not 'speed'"),
        ((None,), "objective must be one of"),
        (("time", 0), "max_saved_bytes must be a whole number of at least 1, or None, not 0"),
        (("time", True), "not True"),
        (("time", 1.5), "not 1.5"),
        (("memory", "20M"), "not '20M'"),
    ],
)
def test_other_values_are_refused(arguments, message):
    with pytest.raises(AutoloraError, match=message):
        Objective(*arguments)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("1500", 1500), ("512K", 524288), (" 20m ", 20 * 2**20), ("1G", 2**30)],
)
def test_bytes_as_people_write_them(text, number):
    assert bytes_from(text) == number


@pytest.mark.parametrize("text", ["", "0", "0K", "-1", "1.5M", "M", "1T", "1MB", "١", "9" * 5000])
def test_other_texts_are_no_bytes(text):
    with pytest.raises(AutoloraError, match="must be a whole number of bytes such as"):
        bytes_from(text)


def test_examples_in_the_code():
    assert doctest.testmod(objective).failed == 0


# --- laws --------------------------------------------------------------------------------------

FIGURES = st.none() | st.floats(0, 1e300)
VERDICTS = st.builds(
    Verdict,
    st.just(True),
    st.dictionaries(st.sampled_from(OUTPUTS), st.tuples(FIGURES, FIGURES)),
    st.tuples(FIGURES, st.floats()),
)


@st.composite
def options(draw):
    names = draw(st.sets(st.sampled_from("abcdefgh"), min_size=1))
    judged = st.none() | VERDICTS | st.just(REJECTED)
    return [
        Option(name, draw(st.floats(1, 9)), draw(st.integers(0, 9)), draw(judged), name == "a")
        for name in names
    ]


OBJECTIVES = st.builds(Objective, st.sampled_from(KINDS), st.none() | st.integers(1, 9))


@given(options(), OBJECTIVES, st.randoms())
def test_a_pick_does_not_depend_on_the_order_and_is_never_rejected(drawn, objective, random):
    picked = pick(drawn, objective)
    shuffled = list(drawn)
    random.shuffle(shuffled)
    assert pick(shuffled, objective) == picked
    allowed = [o for o in drawn if o.verdict is not REJECTED or o.reference]
    assert (picked is None) == (not allowed)
    if picked is not None:
        (best,) = (option for option in drawn if option.name == picked.name)
        assert best in allowed
        least = min(option.saved_bytes for option in allowed)
        assert objective.admits(best.saved_bytes) or best.saved_bytes == least
        assert bool(picked.detail) == (not objective.admits(least))
        if objective.kind == "memory":
            assert best.saved_bytes == least
        if objective == Objective():
            assert best.time == min(option.time for option in allowed)


@given(options(), OBJECTIVES)
def test_what_was_taken_is_taken_again_when_another_goes(drawn, objective):
    picked = pick(drawn, objective)
    for gone in drawn:
        if (
            objective.kind != "accuracy"  # the least inaccuracy may be that of the one that goes
            and picked is not None
            and gone.name != picked.name
        ):
            rest = [option for option in drawn if option is not gone]
            assert pick(rest, objective).name == picked.name


@given(st.dictionaries(st.sampled_from("abcd"), st.none() | VERDICTS), st.none() | VERDICTS)
def test_somebody_is_the_most_accurate(verdicts, reference):
    found = most_accurate(verdicts, reference)
    assert found <= verdicts.keys()
    assert bool(found) == bool(verdicts)


def test_infinities_are_no_numbers_that_hurt():
    huge = Verdict(True, {"Y": (1e300, math.inf)}, (math.inf, 1e300))
    assert most_accurate({"a": huge, "b": verdict()}, verdict()) == {"b"}
