"""Which graphs race, on predictions and verdicts that are made up."""

from dataclasses import replace

import pytest

from autolora import Problem
from autolora.cache.records.candidate import Verdict
from autolora.graphs.base import REFERENCE
from autolora.graphs.space import reference_graph
from autolora.graphs.unmeasured import flops_graph
from autolora.objective import Objective
from autolora.timing.screen import Prediction, promising
from autolora.timing.selection import select_candidates

PLAIN = Problem(256, 256, 512, 8, "bfloat16", "cpu")
DROPOUT = replace(PLAIN, adapter_dtype="float32", compute_dtype="float32", dropout=True)
DORA = replace(PLAIN, variant="dora", gradients=("X", "A", "B", "M"))
TIME, MEMORY, ACCURACY = Objective(), Objective("memory"), Objective("accuracy")


def predicted(problem, objectives, slow=lambda graph: 1.0):
    """Every promising graph, predicted by its FLOPs."""
    found = [
        Prediction(graph, graph.flops(problem) * slow(graph))
        for graph in promising(problem, objectives)
    ]
    return sorted(found, key=lambda prediction: (prediction.nanoseconds, prediction.graph.name))


def judge(graph):
    """One product is half as far off, as in bfloat16."""
    y, dx = (5e-4 if route == "one_product" else 1e-3 for route in (graph.forward, graph.dx))
    return Verdict(True, {"Y": (y, y), "dX": (dx, dx)}, (1.0, 1.0))


def entered(problem, *objectives, judge=judge, slow=lambda graph: 1.0, most=4):
    predictions = predicted(problem, objectives, slow)
    return select_candidates(problem, predictions, judge, objectives, most=most, within=1.1)


@pytest.mark.parametrize("problem", [PLAIN, DROPOUT, DORA], ids=["plain", "dropout", "dora"])
def test_for_memory_the_leanest_graphs_are_screened_whatever_their_flops(problem):
    usual, lean = promising(problem, [TIME]), promising(problem, [MEMORY])
    assert set(usual) <= set(lean)
    assert promising(problem, [Objective("time", 10)]) == lean
    assert promising(problem, [ACCURACY]) == usual
    every = [g.saved_bytes(problem) for g in promising(problem, [MEMORY])]
    assert min(every) <= min(g.saved_bytes(problem) for g in usual)
    if problem is DORA:
        assert min(every) < min(g.saved_bytes(problem) for g in usual)


@pytest.mark.parametrize("problem", [PLAIN, DROPOUT, DORA], ids=["plain", "dropout", "dora"])
def test_for_memory_the_lean_levels_race_as_pools(problem):
    def keeps_much(graph):  # what keeps much is fast
        return 1 - 0.2 * graph.saved_bytes(problem) / reference_graph(problem).saved_bytes(problem)

    usual = entered(problem, TIME, slow=keeps_much)
    found = entered(problem, MEMORY, slow=keeps_much)
    assert usual.pools == []
    assert set(usual.racing) <= set(found.racing)
    kept = {graph.name: graph.saved_bytes(problem) for graph in found.racing}
    levels = [{kept[name] for name in pool} for pool in found.pools]
    assert all(len(level) == 1 for level in levels)
    leanest = min(g.saved_bytes(problem) for g in promising(problem, [MEMORY]))
    assert levels[0] == {leanest} == {min(kept.values())}
    assert len(levels) <= 4
    assert len(found.racing) == len(set(found.racing))


def test_a_limit_brings_the_levels_within_it():
    levels = sorted({g.saved_bytes(DORA) for g in promising(DORA, [MEMORY])})
    found = entered(DORA, Objective("time", levels[-1] - 1))
    assert {levels[0], levels[-2]} <= {g.saved_bytes(DORA) for g in found.racing}


def test_for_accuracy_the_most_accurate_routes_race():
    def one_product_is_slow(graph):
        return 1 + 0.1 * [graph.forward, graph.dx].count("one_product")

    usual = entered(PLAIN, TIME, slow=one_product_is_slow)
    found = entered(PLAIN, ACCURACY, slow=one_product_is_slow)
    assert not any(graph.dx == graph.forward == "one_product" for graph in usual.racing)
    (pool,) = found.pools
    assert pool
    assert all("one_product/" in name and "dX=one_product" in name for name in pool)
    assert pool <= {graph.name for graph in found.racing}
    assert set(usual.racing) <= set(found.racing)
    assert len(found.racing) < len(found.verdicts)  # the others were judged only


def test_no_route_is_tried_for_accuracy_that_is_far_slower():
    found = entered(PLAIN, ACCURACY, slow=lambda graph: 1 + ("one_product" in graph.name))
    assert not any("one_product" in graph.name for graph in found.verdicts)


def test_rejected_graphs_do_not_race():
    def strict(graph):
        ok = graph.forward in (REFERENCE, "adapter_first")
        return replace(judge(graph), ok=ok, reason="" if ok else "no")

    found = entered(PLAIN, TIME, MEMORY, ACCURACY, judge=strict)
    racing = {g for g in found.racing if not found.verdicts[g].ok}
    assert racing <= {flops_graph(PLAIN)}
    assert not any(graph.name in pool for graph in racing for pool in found.pools)
    everything = entered(PLAIN, MEMORY, judge=lambda g: replace(judge(g), ok=False, reason="no"))
    assert set(everything.racing) == {flops_graph(PLAIN), reference_graph(PLAIN)}
    assert everything.pools == [frozenset({REFERENCE})]


def test_refused_routes_do_not_keep_the_accurate_ones_out():
    """However many of the best predicted are refused, and however much faster they would be."""
    asked = []

    def strict(graph):
        asked.append(graph)
        ok = graph.forward in (REFERENCE, "one_product")
        return replace(judge(graph), ok=ok, reason="" if ok else "no")

    def others_first(graph):
        return 1.0 if graph.forward == "one_product" else 0.5

    found = entered(DORA, TIME, judge=strict, slow=others_first)
    fast = [graph for graph in found.racing if found.verdicts[graph].ok]
    assert len([graph for graph in fast if graph.forward == "one_product"]) == 4
    assert len(asked) < 60
