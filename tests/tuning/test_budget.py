"""Sharing the seconds of a run, on a clock that is made up."""

import pytest
from made_up_clock import Clock

from autolora.timing.effort import EFFORTS
from autolora.tuning.budget import Budget

STEP = 5e6  # nanoseconds


def run(seconds, gains, *, step=STEP, slower=1.0, wanted="thorough"):
    """The effort of each problem, the largest gain first, and what all took."""
    clock = Clock()
    budget = Budget(seconds, clock)
    efforts = []
    for number in range(len(gains)):
        granted = budget.next(gains[number] / sum(gains[number:]), step, wanted)
        effort = granted[0] if granted else None
        efforts.append(effort)
        if granted is not None:
            effort, given = granted
            spent = slower * EFFORTS[effort].expected(step)
            clock.now += spent
            budget.learn(effort, step, spent, given)
    return efforts, clock.now - 100


def test_time_enough_is_the_effort_that_is_wanted():
    efforts, spent = run(1000, [5, 3, 1])
    assert efforts == ["thorough"] * 3
    assert spent < 1000
    assert run(1000, [5, 3, 1], wanted="quick")[0] == ["quick"] * 3


def test_more_for_what_more_hangs_on():
    efforts, spent = run(16, [100, 10, 1, 1])
    assert efforts[0] == "thorough"
    assert set(efforts[1:]) <= {"quick", "normal"}
    assert spent <= 16


def test_too_little_for_all_measures_those_that_matter_most():
    quick = EFFORTS["quick"].expected(STEP)
    efforts, spent = run(3.5 * quick, [9, 8, 7, 6, 5, 4])
    assert efforts == ["quick"] * 3 + [None] * 3
    assert spent <= 3.5 * quick


def test_a_problem_may_use_its_share():
    budget = Budget(300, Clock())
    assert budget.next(0.5, STEP, "normal") == ("normal", 150)
    normal = EFFORTS["normal"].expected(STEP)
    budget.learn("normal", STEP, 100.0, 150.0)  # its race was undecided for long
    assert budget.next(normal / 299, STEP, "normal")[0] == "normal"


def test_what_problems_really_take_is_learnt():
    quick = EFFORTS["quick"].expected(STEP)
    efforts, spent = run(9 * quick, [1] * 9, slower=2)
    assert efforts.count("quick") < 9
    assert None in efforts
    assert spent <= 11 * quick


@pytest.mark.parametrize("effort", EFFORTS)
def test_large_steps_are_expected_to_take_longer(effort):
    expected = [EFFORTS[effort].expected(step) for step in (1e5, 1e7, 1e9, 1e10)]
    assert expected == sorted(expected)
    assert expected[0] < 20 < expected[-1]


def test_fewer_graphs_race_where_each_takes_long():
    normal = EFFORTS["normal"]
    assert normal.affords(1e6) == normal.most
    assert normal.affords(1e11) == 4
