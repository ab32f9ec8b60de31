import random
from dataclasses import replace

import pytest
import torch
from cases import DORA, KINDS, PLAIN, SEED, Case, S, flop_counter, small, subsets
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.graphs import space
from autolora.graphs.base import REFERENCE
from autolora.graphs.contraction import AXES, Contraction
from autolora.graphs.reference import reference
from autolora.graphs.space import (
    find_graph,
    onednn_products,
    products_worth_onednn,
    reference_graph,
    valid_graphs,
)
from autolora.graphs.tensors import sizes_of
from autolora.graphs.unmeasured import analytic_graph, flops_graph, unmeasured_graph
from autolora.objective import Objective

EXACT = {"rtol": 1e-9, "atol": 1e-9}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ROUGH = {"rtol": 0.05, "atol": 0.5}


WHOLE = ("plain", "everything", "dropout")  # every graph of these
WIDE = ("dora", "dora dropout")  # every structure of these; the other kinds are alike


def composed(problem, most=None):
    """The graphs of a problem; with ``most`` about so many, spread over all of them."""
    graphs = [graph for name, graph in valid_graphs(problem).items() if name != REFERENCE]
    # a step that is no multiple of the orientations, which come in powers of two
    return graphs if most is None else graphs[:: len(graphs) // most // 2 * 2 + 1]


def structures(problem):
    """Every forward, route and choice of what is kept: no product turned, all, and some of them.

    Which are some is drawn with a fixed seed for each structure.
    """
    groups, rng = {}, random.Random(0)
    for graph in composed(problem):
        groups.setdefault(replace(graph, transposed=frozenset()), []).append(graph)
    return [
        graph
        for turned in groups.values()
        for graph in dict.fromkeys((turned[0], turned[-1], rng.choice(turned)))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_equals_autograd_in_float64(kind):
    problem, most = small(**KINDS[kind]), None if kind in WHOLE else 300
    case = Case.of(problem)
    for graph in structures(problem) if kind in WIDE else composed(problem, most):
        case.check(graph, EXACT)


@pytest.mark.parametrize("kind", ["plain", "everything", "dora bias", "dora dropout"])
def test_every_graph_equals_autograd_for_any_needed_gradients(kind):
    fields = KINDS[kind]
    for gradients in subsets(fields.get("gradients", PLAIN)):
        problem = small(**{**fields, "gradients": gradients})
        case = Case.of(problem)
        for graph in composed(problem, 60):
            case.check(graph, EXACT)


in_mixed_dtypes = pytest.mark.parametrize(
    ("dtype", "adapter", "compute", "tolerance"),
    [
        ("float32", "float32", "float32", CLOSE),
        ("float16", "float16", "float16", ROUGH),
        ("bfloat16", "bfloat16", "bfloat16", ROUGH),
        ("bfloat16", "float32", "float32", ROUGH),
        ("bfloat16", "float32", "bfloat16", ROUGH),
        ("float32", "float32", "bfloat16", ROUGH),
        ("float32", "bfloat16", "bfloat16", ROUGH),
    ],
)


@in_mixed_dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_equal_autograd_in_mixed_dtypes(kind, dtype, adapter, compute, tolerance):
    problem = small(dtype=dtype, adapter_dtype=adapter, compute_dtype=compute, **KINDS[kind])
    case = Case.of(problem)
    for graph in structures(problem) if kind == "plain" else composed(problem, 40):
        case.check(graph, tolerance)


@in_mixed_dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_equal_autograd_with_the_other_library(kind, dtype, adapter, compute, tolerance):
    problem = small(dtype=dtype, adapter_dtype=adapter, compute_dtype=compute, **KINDS[kind])
    case = Case.of(problem)
    for graph in structures(problem) if kind == "plain" else composed(problem, 40):
        products = onednn_products(graph, problem)
        assert {"dA", "dB"} <= products
        case.check(replace(graph, onednn=products), tolerance)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_graph_equals_autograd_at_any_size(data):
    size = st.integers(1, 33)
    fields = data.draw(st.sampled_from([f for f in KINDS.values() if "layout" not in f]))
    sizes = {name: data.draw(size) for name in ("in_features", "out_features", "tokens")}
    needs = data.draw(st.sampled_from(subsets(fields.get("gradients", PLAIN))))
    problem = small(**{**fields, **sizes, "rank": data.draw(st.integers(1, 9)), "gradients": needs})
    graph = data.draw(st.sampled_from(composed(problem)))
    Case.of(problem, seed=problem.tokens).check(graph, {"rtol": 1e-7, "atol": 1e-7})


@pytest.mark.parametrize("leading", [(8,), (2, 4), (2, 2, 2), (1, 1, 8, 1)])
@pytest.mark.parametrize("kind", ["plain", "everything", "dora bias", "dora dropout"])
def test_any_leading_shape(kind, leading):
    problem = small(**KINDS[kind])
    for graph in composed(problem, 25):
        Case.of(problem, leading=leading).check(graph, EXACT)


def test_inputs_and_gradients_that_are_not_contiguous():
    problem = small(tokens=8)
    case = Case.of(problem)
    _, gradients = case.exact()
    turned = case.G.t().contiguous().t()
    case.X = case.X.detach().t().contiguous().t().requires_grad_()
    for graph in composed(problem, 25):
        case.check(graph, EXACT)
        for mine, theirs in zip(
            torch.autograd.grad(case.run(graph), case.needed, turned), gradients, strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        ones = torch.autograd.grad(case.run(graph).sum(), case.needed)  # its gradient has stride 0
        for mine, theirs in zip(ones, case.exact(torch.ones_like(case.G))[1], strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["bias", "everything", "dora bias"])
@pytest.mark.parametrize("leading", [(8,), (2, 4)])
def test_the_result_may_be_changed_in_place(leading, kind):
    problem = small(**KINDS[kind])
    case = Case.of(problem, leading=leading)
    for graph in composed(problem, 25):
        changed = torch.nn.functional.relu(case.run(graph), inplace=True)
        torch.default_generator.manual_seed(SEED)
        expected = torch.relu(reference(case.X, case.tensors, S, case.p))
        for mine, theirs in zip(
            torch.autograd.grad(changed, case.needed, case.G),
            torch.autograd.grad(expected, case.needed, case.G),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["bias", "everything", "conv1d dropout", "nf4"])
def test_gradcheck_and_gradgradcheck(kind):
    problem = small(tokens=3, **KINDS[kind])
    case = Case.of(problem, leading=(3, 1))
    twice = 0
    for graph in composed(problem, 5 if kind == "nf4" else 8):

        def layer(*_, graph=graph):
            return case.run(graph)

        assert torch.autograd.gradcheck(layer, case.needed)
        if "D" not in graph.saves:
            twice += 1
            assert torch.autograd.gradgradcheck(layer, case.needed)
    assert twice >= 3


@pytest.mark.parametrize("kind", ["dora bias", "dora dropout", "dora conv1d", "nf4 dora"])
def test_gradients_of_dora_by_finite_differences(kind):
    """But for the norms, through which no gradient flows: they are held fast by B = 0's."""
    problem = small(tokens=3, **{**KINDS[kind], "gradients": ("X", "M")})
    case = Case.of(problem)
    for graph in composed(problem, 12):
        assert torch.autograd.gradcheck(lambda *_, g=graph: case.run(g), case.needed)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gradients": ("X", "B")}, "base_first/h=saved/dX=lowrank/dB=via_h"),
        (
            {"dropout": True},
            "base_first/h=saved/D=saved/dX=lowrank/dA=via_z/dB=via_h",
        ),
        (DORA, "merged/h=recomputed/U=saved/dX=merged/dA=via_z/dB=via_h/dM=via_u"),
        ({"rank": 6}, "merged/h=recomputed/V=saved/dX=merged/dA=via_z/dB=via_h"),
    ],
)
def test_a_graph_that_keeps_too_little_says_that_it_cannot_be_differentiated_twice(changes, name):
    problem = small(**changes)
    case = Case.of(problem)
    Y = case.run(find_graph(name, problem))
    with pytest.raises(RuntimeError, match=r"autolora\.restore"):
        torch.autograd.grad(Y, case.needed, case.G, create_graph=True)


def test_a_changed_weight_between_forward_and_backward_is_noticed():
    problem = small()
    case = Case.of(problem)
    Y = case.run(analytic_graph(problem))
    with torch.no_grad():
        case.leaves["A"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Y.backward(case.G)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_equal_those_that_torch_counts(kind):
    # an even row: where it is odd, bitsandbytes compiles code for each NF4 weight
    fields = {**KINDS[kind], "in_features": 8, "out_features": 11, "tokens": 13, "rank": 3}
    for needs in ((), ("A", "B"), fields.get("gradients", PLAIN)):
        problem = small(**{**fields, "gradients": needs})
        case = Case.of(problem)
        for graph in composed(problem, 12 if "nf4" in kind else 40):
            with flop_counter() as counter:
                Y = case.run(graph)
                if needs:
                    Y.backward(case.G)
            assert graph.flops(problem) == counter.get_total_flops(), graph.name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(("nf4", "int8"))])
def test_flops_of_the_reference_equal_those_that_torch_counts(kind):
    problem = small(**KINDS[kind])
    case = Case.of(problem)
    with flop_counter() as counter:
        reference(case.X, case.tensors, S, case.p).backward(case.G)
    assert reference_graph(problem).flops(problem) == counter.get_total_flops()


def kept_bytes(case, run):
    """What autograd keeps of a forward pass beside the parameters."""
    W, *rest = case.tensors
    if not isinstance(W, torch.Tensor):
        W = W.weight
    parameters = {t.data_ptr() for t in (W, *rest) if t is not None}
    kept = {}

    def keep(t):
        if t.data_ptr() not in parameters:
            kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return sum(kept.values())


@pytest.mark.parametrize("dtypes", [("float64",) * 3, ("bfloat16", "float32", "float32")])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_bytes_equal_what_autograd_keeps(kind, dtypes):
    """All gradients together in each dtype; of the smaller sets every other one, by turns."""
    dtype, adapter, compute = dtypes
    fields = {**KINDS[kind], "dtype": dtype, "adapter_dtype": adapter, "compute_dtype": compute}
    *smaller, whole = subsets(fields.get("gradients", PLAIN))[1:]
    for needs in (*smaller[dtype == "float64" :: 2], whole):
        problem = small(**{**fields, "gradients": needs})
        case = Case.of(problem)
        for graph in composed(problem, 30):
            mine = kept_bytes(case, lambda case=case, graph=graph: case.run(graph))
            assert graph.saved_bytes(problem) == mine, graph.name


@pytest.mark.parametrize("dtypes", [("float64",) * 3, ("bfloat16", "float32", "float32")])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "int8" not in kind])
def test_saved_bytes_of_the_reference_are_at_most_what_autograd_keeps(kind, dtypes):
    """At most: what is as small as a bias is left out, and copies of the weight are too."""
    dtype, adapter, compute = dtypes
    problem = small(
        dtype=dtype, adapter_dtype=adapter, compute_dtype=compute, **{**KINDS[kind], "tokens": 40}
    )
    case = Case.of(problem)
    kept = kept_bytes(case, lambda: reference(case.X, case.tensors, S, case.p))
    mine = reference_graph(problem).saved_bytes(problem)
    assert 0.8 * kept <= mine <= kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_never_keeps_more_than_the_reference(kind):
    """But for the sums over h, D and the like that only some of them keep in DoRA."""
    problem = small(**{**KINDS[kind], "tokens": 64, "in_features": 64, "out_features": 64})
    most = reference_graph(problem).saved_bytes(problem)
    for graph in composed(problem):
        assert graph.saved_bytes(problem) <= most, graph.name


def test_graphs_are_many_and_their_names_tell_them_apart():
    for kind, fields in KINDS.items():
        problem = small(**fields)
        graphs = valid_graphs(problem)
        assert len(graphs) > (900 if kind == "plain" else 200)
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
    assert (graph.forward, graph.saves, graph.recomputes) == ("merged", set(), {"h"})
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
        "base_first/h=saved/D=saved/dX=lowrank/dA=via_z/dB=via_h",
    ],
)
def test_other_names_are_no_graphs(name):
    assert find_graph(name, small(dtype="float32")) is None


def test_dropout_leaves_no_merged_weight():
    graphs = composed(small(dropout=True))
    assert {graph.forward for graph in graphs} == {"base_first", "adapter_first", "one_product"}
    assert {graph.dx for graph in graphs} == {"lowrank"}


def test_onednn_is_for_float32_and_16_bits_on_the_cpu():
    name = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/onednn=Y,dX"
    for dtype in ("float32", "bfloat16", "float16"):
        assert find_graph(name, small(dtype=dtype)) is not None
        assert find_graph(name, small(dtype=dtype, device="cuda")) is None
    assert find_graph(name, small(dtype="float64")) is None


def test_16_bit_products_run_in_float32_where_the_processor_is_slow_in_them(monkeypatch):
    problem, objective = small(dtype="bfloat16"), Objective()
    for slow in (frozenset(), frozenset({"bfloat16"})):
        monkeypatch.setattr(space, "slow_dtypes", lambda slow=slow: slow)
        graph, _ = unmeasured_graph(problem, objective)
        assert graph.onednn == (onednn_products(graph, problem) if slow else frozenset())
        assert products_worth_onednn(graph, problem) == graph.onednn
        exact = replace(problem, dtype="float32", adapter_dtype="float32", compute_dtype="float32")
        assert not unmeasured_graph(exact, objective)[0].onednn


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
def test_without_measurement_every_kind_has_a_graph(kind, adapter_dtype):
    problem = small(dtype="bfloat16", adapter_dtype=adapter_dtype, **KINDS[kind])
    for graph in (analytic_graph(problem), flops_graph(problem)):
        assert graph.name in valid_graphs(problem)


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_every_step_has_axes(kind):
    problem = small(**KINDS[kind])
    for graph in composed(problem):
        for step in graph.steps(problem):
            assert {step.out, *step.reads} <= AXES.keys()
