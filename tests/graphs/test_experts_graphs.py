"""Graphs of a mixture's experts: composed, exact with every executor, and found by their names."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import flop_counter
from torch.autograd.graph import saved_tensors_hooks

from autolora.graphs.experts.graph import (
    BMM,
    EXECUTORS,
    GROUPED,
    LOOP,
    ONEDNN,
    TURNED,
    ExpertsGraph,
)
from autolora.graphs.experts.reference import reference
from autolora.graphs.experts.routing import Routing, drawn_routing, skewed_shares
from autolora.graphs.experts.space import (
    advice,
    find_graph,
    flops_graph,
    reference_graph,
    structures,
    uniform,
    unmeasured_graph,
)
from autolora.objective import TIME, Objective
from autolora.problem import IMPLEMENTATIONS, Experts
from autolora.timing.experts.accuracy import verdict
from autolora.timing.experts.data import Data

CPU = torch.device("cpu")
GRADIENTS = [("X", "A", "B"), ("A", "B"), ("X", "B"), ("X",), ()]
DTYPES = [("float64", ""), ("float32", ""), ("bfloat16", ""), ("bfloat16", "float32")]
LOWRANK = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"


def posed(dtype="float64", adapter_dtype="", **changes):
    """Six experts of odd sizes, of which a token has two."""
    implementation = changes.pop("implementation", "eager")
    return Experts(
        9, 12, 10, 6, 2, 3, dtype, "cpu", adapter_dtype=adapter_dtype,
        implementation=implementation, **changes,
    )  # fmt: skip


def graphs_of(problem):
    """Every graph, with every pair of executors."""
    return [
        uniform(graph, problem, *pair)
        for graph in structures(problem)
        for pair in product(EXECUTORS, EXECUTORS)
    ]


def results(data, graph):
    """Y and the gradients along a graph."""
    data.clear()
    Y = data.forward(graph)()
    if Y.requires_grad:
        Y.backward(data.G)
    return [Y.detach(), *(leaf.grad for leaf in data.leaves.values())]


def assert_alike(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gradients", GRADIENTS, ids=lambda names: "".join(names) or "none")
@pytest.mark.parametrize("layout", ["linear", "conv1d"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_every_graph_with_every_executor_equals_pefts_path(layout, bias, gradients):
    problem = posed(layout=layout, bias=bias, gradients=gradients, load="skewed")
    data = Data.random(problem, CPU)
    expected = results(data, reference_graph(problem))
    graphs = graphs_of(problem)
    assert len(graphs) >= 25
    for graph in graphs:
        assert_alike(results(data, graph), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["linear", "conv1d"])
def test_every_implementation_of_pefts_path_gives_the_same(layout, implementation):
    data = Data.random(posed(layout=layout, bias=True), CPU)
    tensors = (data.X, data.W, data.b, data.A, data.B, 2.0, data.routing)
    Y = reference(*tensors, implementation, conv1d=layout == "conv1d")
    V = data.W + 2.0 * torch.einsum(
        "ore,eri->eio" if layout == "conv1d" else "ore,eri->eoi",
        data.B.reshape(12, 3, 6),
        data.A.reshape(6, 3, 9),
    )
    right = V if layout == "conv1d" else V.transpose(1, 2)
    for row, expert in enumerate(data.routing.ids.tolist()):
        torch.testing.assert_close(Y[row], data.X[row] @ right[expert] + data.b[expert])


@pytest.mark.parametrize("dtypes", DTYPES, ids="/".join)
def test_graphs_are_judged_as_accurate_as_pefts_path(dtypes):
    problem = posed(*dtypes, layout="conv1d", bias=True)
    for graph in structures(problem)[::3]:
        judged = verdict(uniform(graph, problem, BMM, TURNED), problem, CPU)
        assert judged.ok, (graph.name, judged.reason)


@pytest.mark.parametrize(
    "ids", [[], [3] * 8, [0, 5, 5, 0], [6, 2, 6, 2]], ids=["none", "one", "two", "outside"]
)
def test_experts_without_rows_and_rows_without_experts(ids):
    routing, order = Routing.sorted_by(torch.tensor(ids, dtype=torch.long), 6)
    assert order.tolist() == [
        row for row, _ in sorted(enumerate(ids), key=lambda each: each[1]) if ids[row] < 6
    ]
    problem = posed()
    data = Data.random(problem, CPU)
    rows = len(order)
    data = replace(
        data,
        X=data.X.detach()[:rows].clone().requires_grad_(),
        G=data.G[:rows],
        routing=routing,
    )
    expected = results(data, reference_graph(problem))
    for executor in (LOOP, GROUPED, BMM):
        for graph in structures(problem)[::4]:
            assert_alike(results(data, uniform(graph, problem, executor, executor)), expected)


def slow_in(dtypes, monkeypatch):
    """Makes this processor one without instructions for some dtypes."""
    for room in ("graph", "space"):
        monkeypatch.setattr(
            f"autolora.graphs.experts.{room}.slow_dtypes", lambda: frozenset(dtypes)
        )


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("layout", ["linear", "conv1d"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_onednn_equals_pefts_path(dtype, tolerance, layout, bias, monkeypatch):
    slow_in(["bfloat16"], monkeypatch)
    problem = posed(dtype, layout=layout, bias=bias)
    data = Data.random(problem, CPU)
    expected = results(data, reference_graph(problem))
    for structure in structures(problem):
        found = uniform(structure, problem, ONEDNN, ONEDNN)
        executors = dict(found.executors)
        assert {executors["Y"], executors["dX"]} <= {ONEDNN, LOOP}
        assert ONEDNN in executors.values()
        if dtype == "bfloat16":
            assert set(executors.values()) == {ONEDNN}
        for mine, exact in zip(results(data, found), expected, strict=True):
            torch.testing.assert_close(mine, exact, rtol=tolerance, atol=tolerance)


def test_16_bit_products_run_in_float32_where_the_processor_is_slow_in_them(monkeypatch):
    problem = posed("bfloat16")
    for dtypes, executor in ((["bfloat16"], ONEDNN), (["float16"], LOOP)):
        slow_in(dtypes, monkeypatch)
        chosen = unmeasured_graph(problem, TIME)[0]
        offered = uniform(chosen.graph, problem, ONEDNN, ONEDNN)
        assert {each for _, each in chosen.executors} == {executor}
        assert {each for _, each in offered.executors} == {executor}


def test_a_name_finds_its_graph():
    problem = posed("float32")
    for graph in [*graphs_of(problem), reference_graph(problem)]:
        assert find_graph(graph.name, problem) == graph
    mixed = f"{LOWRANK}/x=loop:Y,dX;turned:dA;grouped:h,Z;bmm:Y+,dX+,dB"
    assert find_graph(mixed, problem).name == mixed


@pytest.mark.parametrize(
    "name",
    [
        LOWRANK,
        f"{LOWRANK}/x=",
        f"{LOWRANK}/x=magic",
        f"{LOWRANK}/x=loop:Y",
        f"{LOWRANK}/x=grouped:dX,Y,h,Z,dA,dB,Y+,dX+",  # not in its order
        f"{LOWRANK}/x=turned",  # not for base products
        "one_product/h=saved/dX=lowrank/dA=via_z/dB=via_h/x=loop",
        "",
    ],
)
def test_an_unknown_name_finds_nothing(name):
    assert find_graph(name, posed()) is None


def test_nothing_keeps_more_than_pefts_path():
    problem = posed(gradients=("A", "B"))
    limit = reference_graph(problem).saved_bytes(problem)
    assert all(g.saved_bytes(problem) <= limit for g in graphs_of(problem))
    assert find_graph(f"{LOWRANK.replace('/dX=lowrank', '')}/x=loop", problem) is None


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_saved_bytes_are_what_autograd_keeps(implementation):
    problem = posed(implementation=implementation)
    data = Data.random(problem, CPU)
    given = {t.untyped_storage().data_ptr() for t in (data.W, data.A, data.B)}

    def kept(graph):
        found = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage.data_ptr() not in given:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            Y = data.forward(graph)()
        return sum(found.values()), Y

    for graph in [uniform(each, problem, LOOP, LOOP) for each in structures(problem)]:
        assert kept(graph)[0] == graph.saved_bytes(problem), graph.name
    assert kept(reference_graph(problem))[0] == reference_graph(problem).saved_bytes(problem)


@pytest.mark.parametrize("gradients", GRADIENTS[:3], ids="".join)
def test_flops_are_those_of_the_products(gradients):
    problem = posed(gradients=gradients)
    data = Data.random(problem, CPU)
    every = replace(data, routing=Routing.sorted_by(data.routing.ids, 6)[0])
    assert len(every.routing.spans) == 6  # else a loop leaves products out
    for graph in [uniform(each, problem, LOOP, LOOP) for each in structures(problem)]:
        with flop_counter() as counter:
            every.step(graph)()
        assert counter.get_total_flops() == graph.flops(problem), graph.name


def test_the_choice_by_flops_depends_on_the_rows_of_an_expert():
    many = Experts(64, 64, 5000, 4, 2, 4, "float32", "cpu")
    few = many.at(8)
    assert flops_graph(many).graph.dx == "merged"  # merging does not depend on the rows
    assert flops_graph(few).graph.dx == "lowrank"
    for problem in (few, many):
        assert flops_graph(problem).flops(problem) < reference_graph(problem).flops(problem)


def test_unmeasured_experts_stay_on_pefts_path_where_that_is_grouped():
    assert unmeasured_graph(posed(implementation="grouped_mm"), TIME)[0].is_reference
    graph, how = unmeasured_graph(posed(), TIME)
    assert not graph.is_reference
    assert how == "chosen by FLOPs and bytes"
    for implementation in IMPLEMENTATIONS:
        problem = posed(implementation=implementation)
        lean, _ = unmeasured_graph(problem, Objective("memory"))
        assert lean.saved_bytes(problem) == min(
            ExpertsGraph(each).saved_bytes(problem) for each in structures(problem)
        )


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (16, 4), (64, 8), (128, 8)])
@pytest.mark.parametrize("load", ["uniform", "skewed"])
def test_a_drawn_load_is_recognised(experts, top_k, load):
    for seed in range(5):
        routing = drawn_routing(512, experts, top_k, load, CPU, seed)
        assert len(routing.ids) == 512 * top_k
        assert routing.load(top_k) == load


def test_shares_of_a_skewed_load_are_those_drawn():
    shares = sorted(skewed_shares(16, 4), reverse=True)
    routing = drawn_routing(20000, 16, 4, "skewed", CPU)
    drawn = sorted((routing.ids.bincount(minlength=16) / 80000).tolist(), reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert drawn == pytest.approx(shares, rel=0.15)


def test_advice_names_the_faster_implementation():
    eager = Experts(512, 512, 512, 64, 8, 8, "float32", "cpu", implementation="eager")
    assert "set_experts_implementation('grouped_mm')" in advice(eager)
    assert advice(replace(eager, implementation="grouped_mm")) == ""
    assert advice(replace(eager, experts=2, top_k=1)) == ""
