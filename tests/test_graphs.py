import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from autolora.graphs.contraction import AXES, Contraction
from autolora.graphs.function import reference, run
from autolora.graphs.graph import REFERENCE, sizes_of
from autolora.graphs.source import executable
from autolora.graphs.space import (
    analytic_graph,
    find_graph,
    flops_graph,
    onednn_products,
    reference_graph,
    valid_graphs,
)
from autolora.problem import GRADIENTS, Problem

S = 0.7
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
NEEDS = [tuple(needs) for size in range(4) for needs in itertools.combinations(GRADIENTS, size)]


def small(**changes):
    fields = {"in_features": 6, "out_features": 5, "tokens": 8, "rank": 3}
    return Problem(**{**fields, "dtype": "float64", "device": "cpu", **changes})


def tensors(problem, *, seed=0, leading=None):
    """X, W, b, A, B, G with gradients asked for as the problem says."""
    generator = torch.Generator().manual_seed(seed)
    m, i, o, r = problem.tokens, problem.in_features, problem.out_features, problem.rank

    def draw(*shape, dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[dtype])

    X = draw(*(leading or (m,)), i, dtype=problem.dtype).requires_grad_("X" in problem.gradients)
    W = draw(o, i, dtype=problem.dtype)
    b = draw(o, dtype=problem.dtype) if problem.bias else None
    A = draw(r, i, dtype=problem.adapter_dtype).requires_grad_("A" in problem.gradients)
    B = draw(o, r, dtype=problem.adapter_dtype).requires_grad_("B" in problem.gradients)
    return X, W, b, A, B, draw(*(leading or (m,)), o, dtype=problem.dtype)


def exact(problem, X, W, b, A, B, G):
    """Y and the needed gradients by plain autograd on the defining equation, in float64."""
    leaves = [t.detach().double().requires_grad_(t.requires_grad) for t in (X, A, B)]
    x, a, bb = leaves
    Y = x @ W.double().T + S * (x @ a.T) @ bb.T
    if b is not None:
        Y = Y + b.double()
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    return Y.detach(), torch.autograd.grad(Y, needed, G.double()) if needed else ()


def check(problem, graph, tolerance, **shape):
    X, W, b, A, B, G = tensors(problem, **shape)
    expected, gradients = exact(problem, X, W, b, A, B, G)
    Y = run(executable(graph, problem), X, W, b, A, B, S)
    assert Y.shape == expected.shape
    assert Y.dtype == X.dtype
    torch.testing.assert_close(Y.detach().double(), expected, **tolerance)
    needed = [leaf for leaf in (X, A, B) if leaf.requires_grad]
    assert Y.requires_grad == bool(needed)
    for leaf, mine, theirs in zip(
        needed, torch.autograd.grad(Y, needed, G) if needed else (), gradients, strict=True
    ):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine.double(), theirs, **tolerance, msg=graph.name)


def composed(problem):
    return [graph for name, graph in valid_graphs(problem).items() if name != REFERENCE]


def flop_counter():
    """torch's own counter, told of the product in place, which it does not know."""

    def addmm_in_place(onto, left, right, **_):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place})


EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gradients", NEEDS, ids=lambda needs: "".join(needs) or "forward")
def test_every_graph_equals_autograd_in_float64(gradients, bias):
    problem = small(gradients=gradients, bias=bias)
    for graph in composed(problem):
        check(problem, graph, EXACT)


@pytest.mark.parametrize(
    ("dtype", "adapter", "compute", "tolerance"),
    [
        ("float32", "float32", "float32", 1e-4),
        ("bfloat16", "bfloat16", "bfloat16", 0.5),
        ("bfloat16", "float32", "float32", 0.5),
        ("bfloat16", "float32", "bfloat16", 0.5),
        ("float32", "float32", "bfloat16", 0.5),
        ("float32", "bfloat16", "bfloat16", 0.5),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_every_graph_equals_autograd_in_mixed_dtypes(dtype, adapter, compute, tolerance, bias):
    problem = small(dtype=dtype, adapter_dtype=adapter, compute_dtype=compute, bias=bias)
    for graph in composed(problem):
        check(problem, graph, {"rtol": 0.05, "atol": tolerance})


@pytest.mark.parametrize("bias", [False, True])
def test_every_graph_equals_autograd_with_the_other_library(bias):
    problem = small(dtype="float32", bias=bias)
    for graph in composed(problem):
        products = onednn_products(graph, problem)
        assert {"dA", "dB"} <= products
        check(problem, replace(graph, onednn=products), {"rtol": 1e-4, "atol": 1e-4})


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_graph_equals_autograd_at_any_size(data):
    size = st.integers(1, 33)
    problem = Problem(
        in_features=data.draw(size),
        out_features=data.draw(size),
        tokens=data.draw(size),
        rank=data.draw(st.integers(1, 9)),
        dtype="float64",
        device="cpu",
        bias=data.draw(st.booleans()),
        gradients=data.draw(st.sampled_from(NEEDS)),
    )
    check(problem, data.draw(st.sampled_from(composed(problem))), EXACT, seed=problem.tokens)


@pytest.mark.parametrize("leading", [(8,), (2, 4), (2, 2, 2), (1, 1, 8, 1)])
def test_any_leading_shape(leading):
    problem = small()
    for graph in composed(problem)[::37]:
        check(problem, graph, EXACT, leading=leading)


def test_inputs_and_gradients_that_are_not_contiguous():
    problem = small(tokens=8)
    X, W, b, A, B, G = tensors(problem)
    expected, gradients = exact(problem, X, W, b, A, B, G)
    for graph in composed(problem)[::37]:
        x = X.detach().t().contiguous().t().requires_grad_()
        Y = run(executable(graph, problem), x, W, b, A, B, S)
        torch.testing.assert_close(Y.detach(), expected)
        for mine, theirs in zip(
            torch.autograd.grad(Y, (x, A, B), G.t().contiguous().t()), gradients, strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        Y = run(executable(graph, problem), x, W, b, A, B, S)
        ones = torch.autograd.grad(Y.sum(), (x, A, B))  # the gradient of a sum has stride 0
        for mine, theirs in zip(
            ones, exact(problem, X, W, b, A, B, torch.ones_like(G))[1], strict=True
        ):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("leading", [(8,), (2, 4)])
def test_the_result_may_be_changed_in_place(leading):
    problem = small(bias=True)
    X, W, b, A, B, G = tensors(problem, leading=leading)
    for graph in composed(problem)[::37]:
        changed = torch.nn.functional.relu(
            run(executable(graph, problem), X, W, b, A, B, S), inplace=True
        )
        expected = torch.relu(reference(X, W, b, A, B, S, torch.float64))
        for mine, theirs in zip(
            torch.autograd.grad(changed, (X, A, B), G),
            torch.autograd.grad(expected, (X, A, B), G),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


def test_gradcheck_and_gradgradcheck():
    problem = small(tokens=3, bias=True)
    X, W, b, A, B, _ = tensors(problem, leading=(3, 1))
    for graph in composed(problem)[::101]:
        made = executable(graph, problem)

        def layer(x, a, bb, made=made):
            return run(made, x, W, b, a, bb, S)

        assert torch.autograd.gradcheck(layer, (X, A, B))
        assert torch.autograd.gradgradcheck(layer, (X, A, B))


def test_a_frozen_lora_A_says_that_it_cannot_be_differentiated_twice():
    problem = small(gradients=("X", "B"))
    X, W, b, A, B, G = tensors(problem)
    graph = find_graph("base_first/h=saved/dX=lowrank/dB=via_h", problem)
    Y = run(executable(graph, problem), X, W, b, A, B, S)
    with pytest.raises(RuntimeError, match=r"autolora\.restore"):
        torch.autograd.grad(Y, (X, B), G, create_graph=True)


def test_a_changed_weight_between_forward_and_backward_is_noticed():
    problem = small()
    X, W, b, A, B, G = tensors(problem)
    Y = run(executable(analytic_graph(problem), problem), X, W, b, A, B, S)
    with torch.no_grad():
        A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Y.backward(G)


@pytest.mark.parametrize("gradients", [(), ("A", "B"), GRADIENTS])
def test_flops_equal_those_that_torch_counts(gradients):
    problem = small(gradients=gradients, in_features=7, out_features=11, tokens=13, rank=3)
    for graph in composed(problem):
        X, W, b, A, B, G = tensors(problem)
        with flop_counter() as counter:
            Y = run(executable(graph, problem), X, W, b, A, B, S)
            if gradients:
                Y.backward(G)
        assert graph.flops(problem) == counter.get_total_flops(), graph.name


def test_flops_of_the_reference_equal_those_that_torch_counts():
    problem = small()
    X, W, b, A, B, G = tensors(problem)
    with flop_counter() as counter:
        reference(X, W, b, A, B, S, torch.float64).backward(G)
    assert reference_graph(problem).flops(problem) == counter.get_total_flops()


@pytest.mark.parametrize("dtypes", [("float64",) * 3, ("bfloat16", "float32", "float32")])
@pytest.mark.parametrize("gradients", NEEDS[1:], ids="".join)
def test_saved_bytes_equal_what_autograd_keeps(gradients, dtypes):
    dtype, adapter, compute = dtypes
    problem = small(dtype=dtype, adapter_dtype=adapter, compute_dtype=compute, gradients=gradients)
    for graph in composed(problem)[::5]:
        X, W, b, A, B, _ = tensors(problem)
        parameters = {t.data_ptr() for t in (W, A, B)}
        kept: dict[int, int] = {}

        def keep(t, parameters=parameters, kept=kept):
            if t.data_ptr() not in parameters:
                kept[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            run(executable(graph, problem), X, W, b, A, B, S)
        assert graph.saved_bytes(problem) == sum(kept.values()), graph.name


def test_graphs_are_many_and_their_names_tell_them_apart():
    problem = small()
    graphs = valid_graphs(problem)
    assert len(graphs) > 900
    assert next(iter(graphs)) == REFERENCE
    for name, graph in graphs.items():
        assert name == graph.name
        assert find_graph(name, problem) == graph
        assert len(name) <= 200


def test_names_are_stable_since_the_cache_stores_them():
    problem = small(dtype="float32")
    graph = find_graph(
        "merged/h=recomputed/dX=lowrank/dA=via_z/dB=via_h/t=Z,dB/onednn=Y,Z,dX", problem
    )
    assert (graph.forward, graph.saves_h) == ("merged", False)
    assert (graph.dx, graph.da, graph.db) == ("lowrank", "via_z", "via_h")
    assert (graph.transposed, graph.onednn) == ({"Z", "dB"}, {"Y", "Z", "dX"})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "merge",
        "merged/dX=merged",
        "merged/h=saved/dX=merged/dA=via_z/dB=via_h",
        "reference/onednn=Y",
        "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/t=dB,h",
        "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/onednn=",
        "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/onednn=V",
        "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/onednn=dX,Y",
    ],
)
def test_other_names_are_no_graphs(name):
    assert find_graph(name, small(dtype="float32")) is None


def test_onednn_is_for_float32_on_the_cpu():
    name = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/onednn=Y,dX"
    assert find_graph(name, small(dtype="float32")) is not None
    assert find_graph(name, small(dtype="bfloat16")) is None
    assert find_graph(name, small(dtype="float32", device="cuda")) is None


@pytest.mark.parametrize("changes", [{"dropout": True}, {"layout": "conv1d"}, {"layout": "nf4"}])
def test_where_only_the_reference_is_valid(changes):
    problem = small(**changes)
    assert list(valid_graphs(problem)) == [REFERENCE]
    assert analytic_graph(problem) == flops_graph(problem) == reference_graph(problem)


def test_the_choices_without_measurement():
    many, few = small(tokens=10**5), small(tokens=1, in_features=4096, out_features=4096)
    assert flops_graph(many).forward == "merged"
    assert flops_graph(few).forward == "base_first"
    for problem in (many, few):
        least = min(graph.flops(problem) for graph in composed(problem))
        assert flops_graph(problem).flops(problem) == least
        assert not flops_graph(problem).transposed
    mixed = small(tokens=10**5, dtype="bfloat16", adapter_dtype="float32")
    assert analytic_graph(mixed).forward == "base_first"  # no unmeasured rounding of the weight


@pytest.mark.parametrize(
    ("step", "formula", "flops"),
    [
        (Contraction("h", "X", "A"), "h = X Aᵀ", 2 * 8 * 6 * 3),
        (Contraction("Z", "G", "B", scaled=True), "Z = s·G B", 2 * 8 * 5 * 3),
        (Contraction("P", "G", "X"), "P = Gᵀ X", 2 * 8 * 5 * 6),
        (Contraction("V", "B", "A", onto="W", scaled=True), "V = W + s·B A", 2 * 5 * 3 * 6),
        (Contraction("dB", "P", "A", scaled=True), "dB = s·P Aᵀ", 2 * 5 * 6 * 3),
    ],
)
def test_formulas_and_flops_follow_from_the_axes(step, formula, flops):
    assert step.formula == formula
    assert step.flops(sizes_of(small())) == flops


def test_every_tensor_of_every_step_has_axes():
    for graph in composed(small()):
        for step in graph.steps:
            assert {step.out, *step.reads} <= AXES.keys()
