"""Every common kind of LoRA, by PEFT and accelerated: the same losses, gradients and masks."""

import copy
import pickle
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from peft_models import (
    BF16,
    REGIMES,
    TOLERANCE,
    accelerated,
    adapt,
    assert_same_step,
    autocast_to,
    batch,
    choices_of,
    fast_calls,
    gradients,
    llama,
    quantised,
)

import autolora
from autolora.graphs.space import find_graph, reference_graph, valid_graphs
from autolora.nn.choosing import pin
from autolora.tuning.tuner import tune_problems

KINDS = {
    "dropout": {"lora_dropout": 0.1},
    "rslora": {"use_rslora": True},
    "lora_B bias": {"lora_bias": True},
    "dora": {"use_dora": True},
    "dora dropout": {"use_dora": True, "lora_dropout": 0.1},
    "everything": {"lora_bias": True, "lora_dropout": 0.2, "use_rslora": True},
}


def gpt2(**lora):
    """A small real GPT-2, whose layers are Conv1D."""
    config = transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.default_generator.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    names = ["c_attn", "c_proj", "c_fc"]
    return adapt(model, target_modules=names, fan_in_fan_out=True, **lora)


def seeded(model, seed=5):
    """A model whose forward starts from a seed, and leaves the random state that it comes to."""
    forward = model.forward

    def from_seed(*args, **kwargs):
        torch.default_generator.manual_seed(seed)
        return forward(*args, **kwargs)

    model.forward = from_seed
    return model


def assert_same_training_step(fast, plain, tolerance, autocast=None):
    """Loss, gradients, and random numbers drawn."""
    states = []
    for model in (fast, plain):
        torch.default_generator.manual_seed(5)
        gradients(model, autocast)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    forwards = {model: vars(model).get("forward") for model in (fast, plain)}
    try:
        assert_same_step(seeded(fast), seeded(plain), tolerance, autocast)
    finally:
        for model, forward in forwards.items():
            del model.forward
            if forward is not None:
                model.forward = forward


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradients_and_random_state_equal_those_of_peft(kind, regime):
    dtype, adapter_dtype32, autocast = REGIMES[regime]
    plain = llama(dtype, adapter_dtype32=adapter_dtype32, **KINDS[kind])
    fast = accelerated(plain)
    assert_same_training_step(fast, plain, TOLERANCE[autocast or dtype], autocast)
    assert fast_calls(fast)[1] == 0


@pytest.mark.parametrize("kind", ["dropout", "dora", "dora dropout", "everything"])
def test_any_graph_gives_the_gradients_of_peft(kind):
    plain = llama(**KINDS[kind])
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.1)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    gradients(fast)
    problem = max((c.problem for c in choices_of(fast)), key=lambda p: len(p.gradients))
    names = [name for name in valid_graphs(problem) if "V=saved" not in name]  # of any size
    for name in names[1::97]:  # a sample: tests/graphs runs them one by one

        def choose(problem, name=name):  # the first block's q, k and v need no dX
            without = "/".join(part for part in name.split("/") if not part.startswith("dX="))
            found = find_graph(name if "X" in problem.gradients else without, problem)
            return found or reference_graph(problem)

        pin(fast, choose)
        assert_same_training_step(fast, plain, 1e-4)
        assert fast_calls(fast)[0] >= 11


@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.1}, {"use_dora": True}])
def test_conv1d(lora):
    plain = gpt2(**lora)
    fast = copy.deepcopy(plain)
    assert len(autolora.accelerate(fast).taken) == 8
    assert_same_training_step(fast, plain, 1e-4)
    assert fast_calls(fast)[1] == 0
    assert {choice.problem.layout for choice in choices_of(fast)} == {"conv1d"}
    fast.merge_adapter(), plain.merge_adapter()
    with torch.no_grad():
        assert torch.equal(fast.eval()(**batch()).logits, plain.eval()(**batch()).logits)


@pytest.mark.parametrize("autocast", [None, BF16])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(
    "lora", [{}, {"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}]
)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_layers(kind, lora, dtype, autocast):
    if kind == "int8" and "use_dora" in lora:
        pytest.skip("PEFT itself cannot train it on the CPU")
    plain, fast = (quantised(kind, dtype, **lora) for _ in range(2))
    report = autolora.accelerate(fast)
    assert len(report.taken) == 14
    for model in (plain, fast):
        gradients(model, autocast)  # bitsandbytes settles its layers at their first call
    tolerance = 5e-2 if BF16 in (dtype, autocast) else 1e-4
    assert_same_training_step(fast, plain, tolerance, autocast)
    assert fast_calls(fast)[0] >= 28
    assert {c.problem.layout for c in choices_of(fast) if c.executable} == {kind}
    assert len(autolora.restore(fast)) == 14
    assert {type(m) for m in fast.modules()} == {type(m) for m in plain.modules()}


def test_a_quantised_model_is_tuned_and_pickled():
    model = quantised("nf4", lora_dropout=0.1)
    autolora.accelerate(model)
    result = autolora.tune(model, tokens=18, effort="quick")
    assert {record.problem.layout for record in result.records} == {"nf4"}
    assert {record.problem.dropout for record in result.records} == {True}
    gradients(model)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    assert [choice.reason for choice in layer._autolora.choices.values()] == ["exact"]
    assert pickle.loads(pickle.dumps(type(layer))) is type(layer)


def test_eight_bits_in_evaluation_stay_those_of_bitsandbytes():
    plain, fast = (quantised("int8").eval() for _ in range(2))
    autolora.accelerate(fast)
    with torch.no_grad():
        assert torch.equal(fast(**batch()).logits, plain(**batch()).logits)
    assert fast_calls(fast) == (0, 0)
    assert "8-bit products" in autolora.explain(fast, tokens=18).left[0][1]


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.1}, {"use_dora": True}])
def test_a_frozen_half_gets_no_gradient(frozen, lora):
    plain = llama(**lora)
    for name, parameter in plain.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same_training_step(fast, plain, 1e-4)
    gone = frozen[-1]
    assert all(gone not in choice.problem.gradients for choice in choices_of(fast))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["dropout", "dora dropout"])
def test_dropout_under_gradient_checkpointing(kind, reentrant):
    plain = llama(**KINDS[kind])
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for model in (plain, fast):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    assert_same_training_step(fast, plain, 1e-4)
    assert fast_calls(fast)[0] >= 28


@pytest.mark.parametrize("kind", ["dropout", "dora dropout"])
def test_twenty_steps_with_dropout_have_the_losses_of_peft(kind):
    plain = llama(**KINDS[kind])
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    losses = []
    for model in (plain, fast):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        torch.default_generator.manual_seed(1)
        losses.append([])
        for _ in range(20):
            loss = model(**batch()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert losses[0][0] - losses[0][-1] > 0.05


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "magnitude"])
def test_a_nan_in_the_adapter_is_named_and_left_to_peft(where):
    plain = llama(use_dora=True, lora_dropout=0.1)
    for name, parameter in plain.named_parameters():
        if where in name:
            parameter.data.view(-1)[0] = torch.nan
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert report.taken == []
    reason = "its adapter default holds numbers that are not finite"
    assert {why for _, why in report.left} == {reason}
    assert {why for _, why in autolora.explain(fast, tokens=8).left} == {reason}
    assert gradients(fast)[0].isnan()
    assert gradients(plain)[0].isnan()


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "magnitude"])
def test_a_nan_that_comes_in_training_comes_out_as_with_peft(where):
    plain = llama(use_dora=True, lora_dropout=0.1)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for model in (plain, fast):
        for name, parameter in model.named_parameters():
            if where in name:
                parameter.data.view(-1)[0] = torch.nan
        assert gradients(model)[0].isnan()
    assert fast_calls(fast) == (14, 0)


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"target_modules": ["embed_tokens"]}, "a layer.Embedding layer"),
        ({"lora_dropout": 1.0}, "dropout 1 while training"),
    ],
)
def test_what_stays_with_peft_is_listed(lora, reason):
    plain = llama(**lora)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert {why for _, why in report.left + report.notes} == {reason}
    assert_same_training_step(fast, plain, 0.0)
    assert reason in str(report)
    assert {why for _, why in autolora.explain(fast, tokens=8).left} == {reason}


def test_autocast_of_float32_with_dropout():
    plain = llama(lora_dropout=0.1)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    with autocast_to(BF16):
        torch.default_generator.manual_seed(0)
        fast(**batch())
    assert {choice.problem.dtype for choice in choices_of(fast)} == {"bfloat16"}


def test_a_quantised_problem_without_its_library(monkeypatch):
    problem = autolora.Problem(32, 32, 8, 4, "float32", "cpu", layout="nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    result = tune_problems([problem, replace(problem, layout="linear")], effort="quick")
    ((failed, reason),) = result.failed
    assert failed == problem
    assert "bitsandbytes, which is not installed: pip install 'autolora[quantised]'" in reason
    assert [record.problem.layout for record in result.records] == ["linear"]


def test_another_quantisation_stays_with_peft():
    plain, fast = (quantised("nf4", quant_type="fp4") for _ in range(2))
    report = autolora.accelerate(fast)
    assert {why for _, why in report.notes} == {"a weight quantised as fp4"}
    assert_same_training_step(fast, plain, 0.0)
    assert fast_calls(fast)[0] == 0
