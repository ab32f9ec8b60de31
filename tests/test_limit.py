"""The physical limit of a layer: its arithmetic, and the steps that it is compared with."""

import importlib
from math import inf
from pathlib import Path

import pytest
import torch

from autolora.graphs.graph import moved_bytes
from autolora.graphs.space import find_graph, reference_graph
from autolora.graphs.unmeasured import flops_graph, untransposed_costs
from autolora.problem import Problem
from autolora.timing.data import Data

LAYER = Problem(24, 40, 16, 4, "float32", "cpu")
MIXED = Problem(24, 40, 16, 4, "bfloat16", "cpu", adapter_dtype="float32")


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")


def speeds(flops, moved):
    both = {"float32": flops, "bfloat16": flops}
    return importlib.import_module("common.limit").Speeds(both, moved)


def least(problem, flops, moved):
    return importlib.import_module("common.limit").least_ns(problem, speeds(flops, moved))


def test_a_step_needs_the_longer_of_its_flops_and_its_bytes():
    machine = speeds(4.0, 2.0)
    assert machine.limit_ns(100, 10, "float32") == 25
    assert machine.limit_ns(100, 90, "float32") == 45
    assert machine.limit_ns(0, 90, "float32") == 45


def test_where_bytes_are_free_the_limit_is_that_of_the_fewest_flops():
    assert least(LAYER, 4.0, inf) == pytest.approx(flops_graph(LAYER).flops(LAYER) / 4.0)


def test_where_flops_are_free_the_limit_is_that_of_the_fewest_bytes():
    fewest = min(cost.bytes for cost in untransposed_costs(LAYER))
    assert least(LAYER, inf, 2.0) == pytest.approx(fewest / 2.0)


def test_both_together_need_no_less_than_either_and_no_more_than_any_graph():
    found = least(LAYER, 4.0, 2.0)
    assert found >= max(least(LAYER, 4.0, inf), least(LAYER, inf, 2.0))
    graph = flops_graph(LAYER)
    sizes = {"m": 16, "i": 24, "o": 40, "r": 4, "k": 28, "n": 44}
    steps = graph.steps(LAYER)
    each = (max(step.flops(sizes) / 4.0, moved_bytes(step, LAYER) / 2.0) for step in steps)
    assert found <= sum(each)


@pytest.mark.parametrize("problem", [LAYER, MIXED])
def test_the_steps_of_a_graph_are_all_timed_and_have_its_flops(problem):
    graph = find_graph(flops_graph(problem).name, problem)
    data = Data.random(problem, torch.device("cpu"))

    def measure(run):
        run()
        return 3e6

    timed_steps = importlib.import_module("common.limit").timed_steps
    found = timed_steps(graph, data, speeds(4.0, 2.0), rounds=2, measure=measure)
    assert sum(row["flops"] for row in found) == graph.flops(problem)
    assert {row["ms"] for row in found} == {3.0}
    named = [row["step"] for row in found if row["flops"]]
    assert named == [
        step.formula for step in graph.steps(problem) if step.flops(dict.fromkeys("miorkn", 1))
    ]
    if problem is LAYER:
        moved = sum(moved_bytes(step, problem) for step in graph.steps(problem))
        assert sum(row["bytes"] for row in found) == moved
    assert timed_steps(reference_graph(problem), data, speeds(4.0, 2.0)) == []
