"""The accelerated model against PEFT itself."""

import copy
import io
import pickle

import peft
import pytest
import torch
import transformers
from peft_models import (
    BF16,
    REGIMES,
    TOLERANCE,
    accelerated,
    assert_same_step,
    batch,
    choices_of,
    fast_calls,
    gradients,
    llama,
)
from torch import nn

import autolora
from autolora.graphs.space import find_graph, reference_graph, valid_graphs
from autolora.nn.choosing import pin
from autolora.objective import Objective


@pytest.mark.parametrize("regime", REGIMES)
def test_loss_and_gradients_equal_those_of_peft(regime):
    dtype, adapter_dtype32, autocast = REGIMES[regime]
    plain = llama(dtype, adapter_dtype32=adapter_dtype32)
    fast = accelerated(plain)
    assert_same_step(fast, plain, TOLERANCE[autocast or dtype], autocast)
    assert fast_calls(fast) == (14, 0)


def test_layers_take_the_objective_that_accelerate_is_given(monkeypatch):
    model = llama()
    layers = model.base_model.model.model.layers
    for given, wanted in [
        ({}, Objective()),
        ({"objective": "memory"}, Objective("memory")),
        ({"objective": "accuracy", "max_saved_bytes": 10}, Objective("accuracy", 10)),
    ]:
        autolora.accelerate(model, **given)
        assert layers[0].mlp.up_proj._autolora.policy.wanted == wanted
    assert pickle.loads(pickle.dumps(layers[0].mlp.up_proj))._autolora.policy.wanted == wanted
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "memory")
    autolora.accelerate(model)
    assert layers[1].self_attn.q_proj._autolora.policy.wanted == Objective("memory")
    autolora.accelerate(model, objective="time")
    assert layers[1].self_attn.q_proj._autolora.policy.wanted == Objective()
    with pytest.raises(autolora.AutoloraError, match="objective must be one of"):
        autolora.accelerate(model, objective="speed")
    with pytest.raises(autolora.AutoloraError, match="max_saved_bytes must be"):
        autolora.accelerate(llama(), max_saved_bytes="20M")


GRAPHS = list(valid_graphs(autolora.Problem(2, 2, 2, 1, "float32", "cpu")))[1::70]


@pytest.mark.parametrize("graph", GRAPHS)
def test_any_graph_gives_the_gradients_of_peft(graph):
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)

    def choose(problem):  # the first block's q, k and v need no dX
        name = graph if "X" in problem.gradients else without_dx(graph)
        return find_graph(name, problem) or reference_graph(problem)

    pin(fast, choose)
    assert_same_step(fast, plain, 1e-4)
    assert fast_calls(fast)[0] >= 11


def without_dx(name):
    return "/".join(part for part in name.split("/") if not part.startswith("dX="))


def test_a_trained_model_stays_the_same_model():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    models = (plain, fast)
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for model in models
    ]
    for step in range(10):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = model(**batch(step)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_compute_dtype_runs_float32_adapters_in_bfloat16():
    plain = llama(BF16)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast, compute_dtype=BF16)
    loss, grads = gradients(fast)
    expected_loss, expected = gradients(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=0.05, atol=0.05)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        assert (grad - expected[name]).norm() / expected[name].norm() < 0.1
    problems = {c.problem.compute_dtype for c in choices_of(fast)}
    assert problems == {"bfloat16"}


def test_restore_undoes_accelerate():
    model = llama()
    classes = [type(m) for m in model.modules()]
    state = set(vars(model.base_model.model.model.layers[0].mlp.up_proj))
    autolora.accelerate(model)
    assert [type(m) for m in model.modules()] != classes
    assert len(autolora.restore(model)) == 14
    assert [type(m) for m in model.modules()] == classes
    assert set(vars(model.base_model.model.model.layers[0].mlp.up_proj)) == state
    assert autolora.restore(model) == []


def test_accelerating_twice_is_the_same_as_once():
    model = llama()
    autolora.accelerate(model)
    assert len(autolora.accelerate(model, compute_dtype=BF16).taken) == 14
    assert len(autolora.restore(model)) == 14


def switch_off(model):
    model.base_model.disable_adapter_layers()


def merge(model):
    model.merge_adapter()


def hook_a_part(model):
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.lora_A["default"].register_forward_hook(lambda *_: None)


def replace_a_forward(model):
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.base_layer.forward = module.base_layer.forward


class Tagged(torch.Tensor):
    """A tensor subclass that only remembers what it is."""


def subclass_a_weight(model):
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            weight = module.base_layer.weight.detach().as_subclass(Tagged)
            module.base_layer.weight = nn.Parameter(weight, requires_grad=False)


def two_adapters(model):
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    "change",
    [switch_off, merge, hook_a_part, replace_a_forward, subclass_a_weight, two_adapters],
)
def test_peft_runs_whenever_the_fast_path_does_not_hold(change):
    plain = llama()
    fast = copy.deepcopy(plain)
    for model in (plain, fast):
        torch.manual_seed(1)
        change(model)
    report = autolora.accelerate(fast)
    assert len(report.taken) == len(report.notes) == 14
    with torch.no_grad():
        assert torch.equal(fast(**batch()).logits, plain(**batch()).logits)
    assert fast_calls(fast) == (0, 0)


def test_evaluation_with_dropout_is_fast():
    plain = llama(lora_dropout=0.1)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    plain.eval(), fast.eval()
    assert_same_step(fast, plain, 1e-4)
    assert fast_calls(fast) == (14, 0)


def test_adapter_names_go_to_peft():
    plain = llama()
    plain.add_adapter("second", peft.LoraConfig(r=2, target_modules="all-linear"))
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    plain.eval(), fast.eval()
    names = ["default", "second"]
    with torch.no_grad():
        expected = plain(**batch(), adapter_names=names).logits
        assert torch.equal(fast(**batch(), adapter_names=names).logits, expected)
    listed = autolora.explain(fast).left
    assert len(listed) == 14
    assert {why for _, why in listed} == {"its forward was given adapter_names"}
    assert fast_calls(fast) == (0, 14)


def test_switching_and_deleting_adapters():
    plain = llama()
    plain.add_adapter("second", peft.LoraConfig(r=2, target_modules="all-linear"))
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for model in (plain, fast):
        model.set_adapter("second")
    assert_same_step(fast, plain, 1e-4)
    assert {choice.problem.rank for choice in choices_of(fast)} == {2}
    for model in (plain, fast):
        model.set_adapter("default")
        model.delete_adapter("second")
    assert_same_step(fast, plain, 1e-4)
    assert {choice.problem.rank for choice in choices_of(fast)} == {2, 4}


def test_saving_and_loading_stay_those_of_peft(tmp_path):
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    fast.save_pretrained(tmp_path)
    base = transformers.LlamaForCausalLM(plain.base_model.model.config)
    base.load_state_dict(llama().unload().state_dict())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch()).logits, plain(**batch()).logits)


def test_merging_and_unloading_stay_those_of_peft():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    with torch.no_grad():
        expected = plain.merge_and_unload()(**batch()).logits
        merged = fast.merge_and_unload()
    assert not any(isinstance(module, peft.tuners.lora.Linear) for module in merged.modules())
    assert torch.equal(merged(**batch()).logits, expected)


def test_copies_and_pickles_work_and_stay_fast():
    model = llama()
    autolora.accelerate(model, compute_dtype=torch.float32)
    gradients(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert_same_step(twin, model, 1e-6)
        assert fast_calls(twin) == (14, 0)


def test_gradient_checkpointing():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for reentrant in (False, True):
        for model in (plain, fast):
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.train()
        assert_same_step(fast, plain, 1e-4)
    assert fast_calls(fast)[0] > 14


def test_a_base_that_is_trained_too_is_left_to_peft():
    plain = llama(bias="all")
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert {why for _, why in report.notes} == {"the base layer is trained too"}
    left = autolora.explain(fast, tokens=18).left
    assert left == report.notes
    assert len(left) == 8  # those with a bias
    assert autolora.accelerate(fast.eval()).notes == []
    autolora.accelerate(fast.train())
    assert_same_step(fast, plain, 1e-4)
    reasons = {c.detail for c in choices_of(fast) if c.executable is None}
    assert reasons == {"the base layer is trained too"}


def test_a_frozen_lora_A_gets_no_gradient():
    plain = llama()
    for name, parameter in plain.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same_step(fast, plain, 1e-4)
    assert fast_calls(fast) == (14, 0)


def test_inputs_without_tokens():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for model in (plain, fast):
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        x = torch.zeros(0, 32, requires_grad=True)
        y = layer(x)
        assert y.shape == (0, 48)
        y.sum().backward()
        assert x.grad.shape == (0, 32)


def test_second_derivatives():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    results = []
    for model in (plain, fast):
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        x = torch.linspace(-1, 1, 64).view(2, 32).requires_grad_()
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.pow(2).sum(), (x, layer.lora_A["default"].weight)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_functional_transforms_and_tracing_go_to_peft():
    fast = llama()
    autolora.accelerate(fast)
    layer = fast.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
        torch.testing.assert_close(torch.jit.trace(layer, x, check_trace=False)(x), layer(x))
        value, _ = torch.func.jvp(layer, (x,), (x,))
        torch.testing.assert_close(value, layer(x))


def test_a_compiled_model_is_that_of_peft():
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    layers = [m.base_model.model.model.layers[0].mlp.up_proj for m in (plain, fast)]
    compiled = [torch.compile(layer, backend="eager", fullgraph=True) for layer in layers]
    x = torch.randn(3, 32)
    torch.testing.assert_close(compiled[1](x), compiled[0](x))
    assert fast_calls(fast) == (0, 0)


def test_an_error_for_a_model_without_lora_layers():
    with pytest.raises(autolora.AutoloraError, match="holds no PEFT LoRA layer"):
        autolora.accelerate(nn.Linear(3, 3))
    with pytest.raises(autolora.AutoloraError, match="compute_dtype"):
        autolora.accelerate(llama(), compute_dtype=torch.int8)


def test_layers_of_another_kind_are_left_with_a_reason():
    model = llama(target_modules=["embed_tokens", "q_proj"])
    report = autolora.accelerate(model)
    assert len(report.taken) == 2
    assert [reason for _, reason in report.left] == ["a layer.Embedding layer"]
    assert "left: 1 × a layer.Embedding layer" in str(report)
    assert_same_step(model, model, 1e-6)
