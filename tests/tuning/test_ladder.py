"""Ladders of token counts: which counts are added, and where none is worth it."""

import doctest
from itertools import pairwise

import pytest
from records import MERGED, REFERENCE, REJECTED, SAVED, make_record

from autolora.tuning import ladder as module
from autolora.tuning.ladder import Ladder, risk

THIRD = "one_product/dX=lowrank"


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(module).failed == 0


def record(tokens, **times):
    names = {"reference": REFERENCE, "saved": SAVED, "merged": MERGED, "third": THIRD}
    return make_record(tokens, {names[name]: time for name, time in times.items()})


def test_the_risk_between_two_counts_is_what_the_best_compromise_loses():
    low = record(100, reference=2000, saved=1000, merged=1500)
    assert risk(low, record(200, reference=4000, saved=2000, merged=2900)) == 0
    high = record(200, reference=4000, saved=2500, merged=2000)
    assert risk(low, high) == pytest.approx(0.25)  # along `saved`, at the upper end
    between = {"third": 1100}, {"third": 2200}
    low = record(100, reference=2000, saved=1000, merged=1500, **between[0])
    high = record(200, reference=4000, saved=2500, merged=2000, **between[1])
    assert risk(low, high) == pytest.approx(0.1)
    rejected = {"verdicts": {THIRD: REJECTED}}
    times = {REFERENCE: 2000, SAVED: 1000, MERGED: 1500, THIRD: 1100}
    assert risk(make_record(100, times, **rejected), high) == pytest.approx(0.25)
    nothing_shared = make_record(200, {REFERENCE: 4000, THIRD: 2000})
    assert risk(record(100, reference=2000, saved=1000), nothing_shared) == pytest.approx(1)


class Machine:
    """Times of two graphs that cross: one grows as tokens, the other as a power of them.

    Args:
        power: 1 is never another winner; the farther from it, the sharper the crossing.
        bump: of the second graph's times, between the ends, which interpolation cannot foresee.
    """

    def __init__(self, power, crossing=1000, bump=1.0):
        self.power, self.crossing, self.bump = power, crossing, bump
        self.measured = []

    def measure(self, tokens):
        self.measured.append(tokens)
        first = 1e6 * tokens / self.crossing
        second = 1e6 * (tokens / self.crossing) ** self.power
        second *= self.bump if 200 < tokens < 6000 else 1
        times = {"reference": round(3 * first), "saved": round(first), "merged": round(second)}
        return record(tokens, **times)

    def climb(self, low=100, high=10000):
        ladder = Ladder(lambda name, problem: True)
        records = {count: self.measure(count) for count in (low, high)}
        while counts := ladder.more(records):
            for count in counts:
                assert {SAVED, MERGED} <= ladder.expected(count, records) | {REFERENCE}
                records[count] = self.measure(count)
        return records


def test_a_crossing_that_interpolation_foresees_costs_one_count():
    machine = Machine(power=0.8)
    machine.climb()
    assert machine.measured == [100, 10000, 1000]


def test_no_count_is_added_where_the_winner_is_the_same_or_little_is_lost():
    for machine in (Machine(power=0.8, crossing=10**6), Machine(power=1.001)):
        machine.climb()
        assert machine.measured == [100, 10000]


def test_counts_are_added_where_interpolation_did_not_foresee_the_winner():
    machine = Machine(power=0.9, bump=0.7)
    records = machine.climb()
    assert 4 <= len(records) <= 16
    counts = sorted(records)
    assert min(b / a for a, b in pairwise(counts)) > 1.04


def test_a_count_that_could_not_be_measured_is_asked_for_again_only_by_who_runs():
    ladder = Ladder(lambda name, problem: True)
    machine = Machine(power=0.8)
    records = {count: machine.measure(count) for count in (100, 10000)}
    assert ladder.more(records) == [1000]
    assert ladder.more(records) == [1000]
