"""Sums of records."""

import pytest
from records import CPU, REFERENCE, SAVED, XEON, make_problem, make_record

from autolora.problem import Siblings
from autolora.report.summary import machines, side_by_side, sums

BOTH = Siblings(512, (768, 768), 64, (8, 8), "float32", "cpu")


def test_each_problem_counts_once_and_siblings_by_their_layers():
    records = [make_record(64), make_record(128), make_record(problem=BOTH)]
    (found,) = sums(records)
    assert (found.number, found.left_out) == (2, 0)
    assert (found.floor_ns, found.reference_ns, found.median_ns) == (1000, 4000, 2000)
    assert (found.speedup, found.overhead_removed) == (2.0, pytest.approx(2 / 3))
    assert found.payback.cost_s == 3.0
    assert found.payback.saved_s == pytest.approx(2000e-9)
    (alone,) = sums(records[2:])
    assert alone.reference_ns == 2000


def test_a_model_counts_its_layers():
    records = [make_record(64), make_record(128), make_record(problem=BOTH)]
    (found,) = sums(records, {make_problem(64): 3, BOTH: 2, make_problem(256): 5})
    assert (found.number, found.reference_ns) == (5, 10_000)
    assert sums(records, {make_problem(256): 5}) == []


def test_one_sum_for_each_machine_and_mode():
    compiled = make_record(problem=make_problem(64, mode="compiled"))
    found = sums([make_record(64), compiled, make_record(64, environment=XEON)])
    assert sorted((each.environment.device_name, each.mode) for each in found) == [
        (CPU.device_name, "compiled"), (CPU.device_name, "eager"), (XEON.device_name, "eager"),
    ]  # fmt: skip


def test_what_has_no_floor_is_left_out():
    (found,) = sums([make_record(64), make_record(128, floor_ns=None)])
    assert (found.number, found.left_out, found.reference_ns) == (1, 1, 2000)
    assert sums([make_record(64, floor_ns=None)]) == []


def test_no_overhead_removed_where_the_floor_is_not_below_the_reference():
    (found,) = sums([make_record(64, floor_ns=2000)])
    assert found.overhead_removed is None
    (slower,) = sums([make_record(64, {REFERENCE: 1000, SAVED: 1000})])
    assert slower.payback.steps is None


def test_machines_have_geometric_means():
    slow = make_record(128, {REFERENCE: 1000, SAVED: 2000})
    found = machines([make_record(64), slow, make_record(64, environment=XEON)])
    first = next(each for each in found if each.environment == CPU)
    assert (first.number, first.kept, first.least, first.largest) == (2, 1, 1.0, 2.0)
    assert first.speedup == pytest.approx(2**0.5)


def test_problems_side_by_side():
    elsewhere = make_record(64, environment=XEON)
    assert side_by_side([make_record(64), elsewhere, make_record(128)]) == [
        [make_record(64), elsewhere]
    ]
