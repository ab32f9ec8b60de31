"""Training on sequences of endless lengths: no miss in the tuned range, no growth, little to do."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import CPU, REFERENCE, make_problem, make_record
from torch import nn

import autolora
from autolora import Problem
from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.graphs import space, unmeasured
from autolora.graphs.space import valid_graphs
from autolora.graphs.unmeasured import untransposed_costs
from autolora.nn import choosing, dispatch, layer_state
from autolora.nn.choosing import ask
from autolora.nn.dispatch import run_layer
from autolora.objective import KINDS, Objective

SAVED = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/t=h,Z/onednn=Y,dX"
MERGED = "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h/t=dB"
KEPT = "merged/h=saved/dX=merged/dA=via_z/dB=via_h"
LADDER = (16, 512, 700, 8192)
TIMES = ({REFERENCE: 9, SAVED: 5}, {REFERENCE: 9, KEPT: 6, SAVED: 7}, {REFERENCE: 9, MERGED: 4})


def record_at(tokens):
    """A record whose winner is not among the candidates of the ones beside it."""
    times = TIMES[LADDER.index(tokens) % 3]
    return make_record(tokens, {name: time * 1000 * tokens for name, time in times.items()})


# ---- no miss in the tuned range


@pytest.fixture(scope="module", params=["one file", "a file per count"])
def tuned(request, tmp_path_factory):
    """A search path on which the counts of the ladder were measured, read from its files."""
    folder = tmp_path_factory.mktemp("tuned")
    records = [record_at(tokens) for tokens in LADDER]
    tensors = [records] if request.param == "one file" else [[record] for record in records]
    paths = [folder / f"{number}.json" for number in range(len(tensors))]
    for path, held in zip(paths, tensors, strict=True):
        TimingCache(held, path).save()
    return Lookup(paths)


OBJECTIVES = st.builds(Objective, st.sampled_from(KINDS), st.none() | st.integers(1, 2**30))


@given(st.integers(LADDER[0], LADDER[-1]), OBJECTIVES)
def test_no_count_in_the_tuned_range_is_a_miss(tuned, tokens, objective):
    graph, answer = ask(tuned, make_problem(tokens), CPU, objective)
    assert graph is not None
    assert answer.reason == ("exact" if tokens in LADDER else "interpolated")
    assert space.find_graph(graph.name, make_problem(tokens)) == graph


@given(st.integers(1, 10**6))
def test_beyond_the_range_the_ends_answer_within_twice(tuned, tokens):
    graph, answer = ask(tuned, make_problem(tokens), CPU, Objective())
    near = LADDER[0] / 2 <= tokens <= LADDER[-1] * 2
    assert (graph is not None) == near == (answer.reason != "miss")


# ---- one look-up on a repeated count


class Counted(dict):
    """A dictionary that notes how it is used."""

    def __init__(self):
        self.used = []

    def get(self, key, default=None):
        self.used.append("get")
        return super().get(key, default)

    def __getitem__(self, key):
        self.used.append("[]")
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        self.used.append("[]=")
        super().__setitem__(key, value)

    def __contains__(self, key):
        self.used.append("in")
        return super().__contains__(key)


def refuse(*_, **__):
    raise AssertionError("asked again")


@pytest.mark.parametrize("autocast", [False, True])
def test_a_repeated_count_is_one_look_up(monkeypatch, autocast):
    net = autolora.add_lora(nn.Sequential(nn.Linear(24, 16)), rank=4)
    memory = net[0]._autolora.choices = Counted()
    inputs = [torch.randn(tokens, 24) for tokens in (8, 9, 8, 9, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for x in inputs[:2]:
            net(x).sum().backward()
        memory.used.clear()
        with monkeypatch.context() as patched:
            for name in ("_choose", "decide_and_report", "problem_of_call"):
                patched.setattr(dispatch, name, refuse)
            for x in inputs[2:]:
                net(x).sum().backward()
    assert memory.used == ["get"] * 3
    assert [choice.calls for choice in memory.values()] == [3, 2]


# ---- bounded memory

LAYER = Problem(24, 16, 1, 4, "float32", "cpu", bias=True, gradients=("A", "B"))
TALL = "base_first/h=saved/dA=via_z/dB=via_h/t=h"


@pytest.fixture
def layers(monkeypatch, path):
    """Two layers alike, tuned from 16 to 2^18 tokens, that choose and count but do not compute."""
    here = Environment.of("cpu")
    times = {REFERENCE: 3000, TALL: 2000}
    TimingCache(
        [make_record(times=times, problem=LAYER.at(n), environment=here) for n in (16, 2**18)], path
    ).save()
    choosing.refresh()
    monkeypatch.setattr(dispatch, "run", lambda executable, x, tensors, s, p: x)
    net = autolora.add_lora(nn.Sequential(nn.Linear(24, 16), nn.Linear(24, 16)), rank=4)
    row = torch.randn(1, 24)

    def call(layer, tokens):
        base, A, B = layer.base_layer, layer.lora_A.weight, layer.lora_B.weight
        tensors = (base.weight, base.bias, A, B, None, None)
        run_layer(layer._autolora, row.expand(tokens, 24), tensors, 1.0)

    return net, call


def test_memory_stays_bounded_however_many_counts(layers):
    """Once the largest of the caches is full, further counts add nothing."""
    net, call = layers
    full, more = layer_state.MOST_SHARED + 1000, 12_000
    blocks = {}
    for number in range(full + more):
        call(net[0], 16 + number)
        if number + 1 in (full, full + more):
            blocks[number + 1] = sys.getallocatedblocks()
    # one object more for each count would be 12,000
    assert blocks[full + more] - blocks[full] < 2000
    assert len(net[0]._autolora.choices) <= layer_state.MOST_CHOICES
    assert {choice.reason for choice in net[0]._autolora.choices.values()} == {"interpolated"}


def test_layers_that_are_called_alike_share_what_is_equal(layers):
    net, call = layers
    for tokens in (100, 200):
        for layer in net:
            call(layer, tokens)
    call(net[1], 200)
    (first, second) = (layer._autolora.choices for layer in net)
    for (one, mine), (other, theirs) in zip(first.items(), second.items(), strict=True):
        assert one is other
        assert mine is not theirs
        assert mine.problem is theirs.problem
        assert mine.executable is theirs.executable
    assert [choice.calls for choice in first.values()] == [1, 1]
    assert [choice.calls for choice in second.values()] == [1, 2]


def test_of_too_many_counts_the_older_half_is_forgotten(layers, monkeypatch):
    monkeypatch.setattr(layer_state, "MOST_CHOICES", 10)
    net, call = layers
    for tokens in (*range(100, 110), 109, 110):
        call(net[0], tokens)
    found = {c.problem.tokens: c.calls for c in net[0]._autolora.choices.values()}
    assert found == {105: 1, 106: 1, 107: 1, 108: 1, 109: 2, 110: 1}


# ---- the first look at a count


KINDS_OF_PROBLEM = [
    {},
    {"dropout": True, "dtype": "bfloat16", "adapter_dtype": "float32"},
    {"dtype": "float32", "adapter_dtype": "bfloat16", "gradients": ("A",)},
    {"variant": "dora", "gradients": ("X", "A", "B", "M")},
    {"bias": True, "adapter_bias": True, "gradients": ("A", "B", "c"), "device": "cuda"},
]
SIZES = st.integers(1, 3000)


@pytest.mark.parametrize("changes", KINDS_OF_PROBLEM, ids=str)
@given(st.tuples(SIZES, SIZES, st.integers(1, 10**6), SIZES))
def test_costs_at_any_count_are_those_that_the_graph_counts(changes, sizes):
    problem = replace(make_problem(**changes), tokens=sizes[2], rank=sizes[3])
    problem = replace(problem, in_features=sizes[0], out_features=sizes[1])
    costs = untransposed_costs(problem)
    assert [cost.graph for cost in costs] == [
        graph
        for graph in valid_graphs(problem).values()
        if not graph.transposed and graph.name != REFERENCE
    ]
    for cost in costs[:: max(1, len(costs) // 5)]:
        graph = cost.graph
        assert (cost.flops, cost.bytes, cost.saved_bytes) == (
            graph.flops(problem),
            graph.bytes(problem),
            graph.saved_bytes(problem),
        )


@pytest.mark.parametrize("changes", KINDS_OF_PROBLEM, ids=str)
def test_counts_share_one_mapping_of_graphs_however_many_they_are(changes):
    problem = make_problem(**changes)
    found = [valid_graphs(problem.at(tokens)) for tokens in range(1, 20_000, 37)]
    shared = {id(graphs) for graphs in found}
    assert len(shared) < 6  # one for each set of tensors that are too large to be kept
    for tokens in (1, 19_981):
        there = problem.at(tokens)
        most = space.reference_graph(there).saved_bytes(there)
        for graph in list(valid_graphs(there).values())[::50]:
            assert graph.saved_bytes(there) <= most


def test_a_new_count_generates_no_graphs(monkeypatch):
    problem = make_problem()
    for tokens in (16, 8192):  # where KEPT is valid, and where it is not
        valid_graphs(problem.at(tokens))
        unmeasured.analytic_graph(problem.at(tokens))
    monkeypatch.setattr(space, "_structures", refuse)
    lookup = Lookup.of(TimingCache(map(record_at, LADDER)))
    for tokens in (17, 600, 5000):
        assert ask(lookup, problem.at(tokens), CPU, Objective())[0] is not None
        assert unmeasured.analytic_graph(problem.at(tokens)).forward in ("base_first", "merged")
