"""Siblings and what else chooses for layers: freezing, strict mode, plans, new timings."""

import pytest
import torch
from test_siblings import adapted, assert_same, calls, one_step, pair, tune_together

import autolora
from autolora.cache.files.paths import search_path
from autolora.graphs.unmeasured import analytic_graph
from autolora.nn.choosing import pin, refresh
from autolora.nn.freezing.snapshot import read_snapshot
from autolora.objective import TIME
from autolora.problem import Siblings


def test_a_frozen_model_runs_together_by_its_plan():
    plain, fast = pair()
    autolora.freeze(fast)
    search_path()[0].unlink()
    refresh()
    assert_same(plain, fast)
    assert calls(fast) == (9, 0)
    assert "frozen" in str(autolora.explain(fast))
    autolora.unfreeze(fast)
    assert_same(plain, fast)
    assert calls(fast)[0] == 0


def test_the_plan_of_a_model_holds_the_records_of_its_siblings():
    _, _ = pair()
    sizes = frozenset({(24, 16), (24, 8)})
    plan = read_snapshot(sizes, TIME, search_path())
    assert any(isinstance(record.problem, Siblings) for record in plan.records)
    fewer = read_snapshot(frozenset({(24, 16)}), TIME, search_path())
    assert not any(isinstance(record.problem, Siblings) for record in fewer.records)


def test_strict_mode_asks_for_records_of_the_single_layers():
    _, fast = pair()
    words = r"no timings for 24→16 .* the closest record, .* differs in"
    with autolora.strict(), pytest.raises(autolora.MissError, match=words):
        one_step(fast)  # each layer must be able to run by itself
    one_step(fast)
    assert calls(fast)[0] == 3


def test_pinned_layers_run_one_by_one():
    plain, fast = pair()
    pin(fast, analytic_graph)
    assert_same(plain, fast)
    assert calls(fast) == (0, 9)
    pin(fast, None)
    assert_same(plain, fast)
    assert calls(fast) == (9, 0)


def test_new_timings_are_used_from_the_next_call():
    plain = adapted()
    fast = adapted()
    autolora.accelerate(fast)
    assert_same(plain, fast)
    assert calls(fast) == (0, 9)
    tune_together(fast, one_step)
    assert_same(plain, fast)
    assert calls(fast) == (9, 0)


def test_a_compute_dtype_of_its_own():
    plain = adapted(torch.bfloat16)
    fast = adapted(torch.bfloat16)
    autolora.accelerate(fast, compute_dtype=torch.bfloat16)
    one_step(fast)
    tune_together(fast, one_step)
    assert_same(plain, fast, tolerance=3e-2)
    assert calls(fast) == (9, 0)
