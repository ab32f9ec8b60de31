"""Graphs of sibling layers: composed of those of each, exact, and found again by their names."""

from dataclasses import replace

import pytest
import torch
from cases import flop_counter

from autolora.graphs import space, unmeasured
from autolora.graphs.function import run
from autolora.graphs.siblings.function import run_siblings
from autolora.graphs.siblings.graph import sizes_of
from autolora.graphs.siblings.source import sibling_executable
from autolora.graphs.siblings.space import (
    apart,
    compositions,
    find_graph,
    flops_graph,
    is_valid,
    reference_graph,
    unmeasured_graph,
)
from autolora.graphs.source import executable
from autolora.objective import TIME
from autolora.problem import Problem, Siblings
from autolora.timing.siblings import Data, verdict

CPU = torch.device("cpu")
DTYPES = [  # dtype, adapter_dtype, compute_dtype
    ("float64", "float64", "float64"),
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    ("bfloat16", "float32", "bfloat16"),
    ("float32", "float32", "bfloat16"),
]


def posed(dtypes=DTYPES[0], gradients=("X", "A", "B"), **changes):
    """Three layers of different sizes and ranks, of which one has a bias."""
    dtype, adapter, compute = dtypes
    fields = {"adapter_dtype": adapter, "compute_dtype": compute, "gradients": gradients, **changes}
    layers = [
        Problem(12, o, 10, r, dtype, "cpu", bias=o == 9, **fields)
        for o, r in ((9, 2), (6, 3), (4, 4))
    ]
    return Siblings.of(layers)


def graphs_of(problem):
    return compositions(problem, [unmeasured.analytic_graph(part) for part in problem.parts])


@pytest.mark.parametrize("layout", ["linear", "conv1d"])
@pytest.mark.parametrize("gradients", [("X", "A", "B"), ("A", "B")], ids="".join)
@pytest.mark.parametrize("dtypes", DTYPES, ids="/".join)
def test_every_composition_is_as_accurate_as_the_reference(dtypes, gradients, layout):
    problem = posed(dtypes, gradients, layout=layout)
    graphs = graphs_of(problem)
    assert len(graphs) > 5
    for graph in graphs:
        found = verdict(graph, problem, CPU)
        assert found.ok, (graph.name, found.reason)
        if dtypes[0] == "float64":
            assert max(max(pair) for pair in found.errors.values()) < 1e-13


@pytest.mark.parametrize("layout", ["nf4", "int8"])
def test_quantised_layers(layout):
    pytest.importorskip("bitsandbytes")
    layers = [Problem(64, o, 8, 4, "float32", "cpu", layout=layout) for o in (64, 128)]
    problem = Siblings.of(layers)
    for graph in graphs_of(problem):
        assert verdict(graph, problem, CPU).ok


@pytest.mark.parametrize("merged", [(0,), (1, 2), (0, 1, 2)])
def test_some_layers_can_be_merged_while_others_are_not(merged):
    problem = posed()
    own = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"
    other = "merged/dX=merged/dA=via_p/dB=via_p"
    names = [other if n in merged else own for n in range(3)]
    layers = [space.find_graph(*each) for each in zip(names, problem.parts, strict=True)]
    name = f"together=none/{'+'.join(names if len(merged) < 3 else names[:1])}"
    graph = find_graph(name, problem)
    assert graph.layers == tuple(layers)
    assert verdict(graph, problem, CPU).ok
    assert find_graph(name.replace("none", "dA"), problem) is None


@pytest.mark.parametrize("dtypes", DTYPES[:5], ids="/".join)
def test_names_return_their_graphs(dtypes):
    problem = posed(dtypes)
    plain = [unmeasured.analytic_graph(part) for part in problem.parts]
    for graph in (*graphs_of(problem), apart(plain), reference_graph(problem)):
        assert find_graph(graph.name, problem) == graph
        assert graph.is_apart == (not graph.is_joint)
    assert apart(plain).is_apart
    assert reference_graph(problem).is_reference


@pytest.mark.parametrize(
    "name",
    [
        "",
        "together=h",
        "together=h/",
        "together=h/nonsense",
        "together=Y/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h",
        "together=dA,h/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h",
        "together=h/merged/dX=merged/dA=via_p/dB=via_p",
        "together=dX/base_first/h=saved/dX=merged/dA=via_z/dB=via_h",
        "together=h/reference",
        "apart,h/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h",
        "together=h/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h+"
        "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/t=h",
    ],
)
def test_other_names_are_no_graphs(name):
    assert find_graph(name, posed()) is None


def test_products_that_are_joined_must_be_alike():
    problem = posed()
    graph = next(g for g in graphs_of(problem) if g.together == {"h", "dA", "dX"})
    first, *others = graph.layers
    turned = replace(first, transposed=first.transposed ^ {"h"})
    assert is_valid(graph, problem)
    assert not is_valid(replace(graph, layers=(turned, *others)), problem)
    assert is_valid(replace(graph, layers=(turned, *others), together=frozenset({"dA"})), problem)


@pytest.mark.parametrize("gradients", [("X", "A", "B"), ("A", "B")], ids="".join)
def test_flops_are_those_that_torch_counts(gradients):
    problem = posed(gradients=gradients)
    given = Data.random(problem, CPU)
    for graph in graphs_of(problem):
        with flop_counter() as counter:
            given.clear()
            given.step(graph)()
        assert graph.flops(problem) == counter.get_total_flops()


@pytest.mark.parametrize("gradients", [("X", "A", "B"), ("A", "B")], ids="".join)
@pytest.mark.parametrize("dtypes", DTYPES, ids="/".join)
def test_no_more_is_saved_than_by_the_reference_and_as_many_bytes_as_derived(dtypes, gradients):
    problem = posed(dtypes, gradients)
    given = Data.random(problem, CPU)
    parameters = {
        tensor.untyped_storage().data_ptr()
        for layer in given.layers
        for tensor in (layer.W, layer.A, layer.B)
    }
    for graph in graphs_of(problem):
        kept = {}

        def pack(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            given.forward(graph)()
        assert sum(kept.values()) == graph.saved_bytes(problem)
        assert graph.saved_bytes(problem) <= reference_graph(problem).saved_bytes(problem)
        assert graph.saved_input_bytes(problem) <= graph.saved_bytes(problem)


def test_one_by_one_is_what_the_layers_do():
    problem = posed()
    given = Data.random(problem, CPU)
    graphs = [unmeasured.flops_graph(part) for part in problem.parts]
    alone = [
        run(executable(graph, part), given.X, layer.tensors, 2.0)
        for graph, part, layer in zip(graphs, problem.parts, given.layers, strict=True)
    ]
    for mine, theirs in zip(given.forward(flops_graph(problem))(), alone, strict=True):
        assert torch.equal(mine, theirs)
    assert flops_graph(problem) == apart(graphs)
    assert flops_graph(problem).flops(problem) == sum(
        graph.flops(part) for graph, part in zip(graphs, problem.parts, strict=True)
    )
    assert unmeasured_graph(problem, TIME)[0].is_apart


def test_inputs_of_any_shape():
    problem = posed(DTYPES[1])
    graph = next(g for g in graphs_of(problem) if g.together == {"h", "dA", "dX"})
    made = sibling_executable(graph, problem)
    tensors = [layer.tensors for layer in Data.random(problem, CPU).layers]
    x = torch.randn(2, 3, 5, 12).transpose(0, 1).requires_grad_()
    outputs = run_siblings(made, x, tensors, [0.5, 1.0, 2.0])
    for Y, (W, b, A, B, *_), s in zip(outputs, tensors, (0.5, 1.0, 2.0), strict=True):
        expected = torch.nn.functional.linear(x, W, b) + s * (x @ A.t() @ B.t())
        torch.testing.assert_close(Y, expected, rtol=1e-5, atol=1e-5)
    sum(Y.sum() for Y in outputs).backward()
    assert x.grad.shape == x.shape


def test_the_axes_of_several_layers():
    assert sizes_of(posed()) == {
        "m": 10, "i": 12, "r": 9,
        "o1": 9, "r1": 2, "k1": 14, "n1": 11,
        "o2": 6, "r2": 3, "k2": 15, "n2": 9,
        "o3": 4, "r3": 4, "k3": 16, "n3": 8,
    }  # fmt: skip
