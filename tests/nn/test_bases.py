"""Which base layers are taken as linear layers, which are not, and why."""

import copy
import importlib
from dataclasses import replace

import peft
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
    choices_of,
    fast_calls,
    gradients,
)
from torch import nn

import autolora
from autolora.capture.capture import model_problems
from autolora.nn.layer_tensors import AS_LINEAR, base_layout


def class_of(key):
    module, name = key
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("key", AS_LINEAR, ids=lambda key: key[1])
def test_what_is_taken_as_linear_overrides_nothing_else(key):
    kind = class_of(key)
    assert kind.__bases__ == (nn.Linear,)
    own = {name for name, value in vars(kind).items() if callable(value)}
    assert own <= {"__init__", "forward"}
    own = {name for name in vars(nn.Linear(2, 2)) if name not in vars(kind(2, 2))}
    assert own == set()


@pytest.mark.parametrize("autocast", [None, BF16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("key", AS_LINEAR, ids=lambda key: key[1])
def test_what_is_taken_as_linear_computes_what_linear_computes(key, bias, dtype, autocast):
    layer = class_of(key)(24, 16, bias=bias).to(dtype)
    if not base_layout(layer):
        assert bias  # and without a bias it is taken
        assert not AS_LINEAR[key]
        return
    linear = nn.Linear(24, 16, bias=bias, dtype=dtype)
    nn.init.normal_(linear.weight)
    layer.load_state_dict(linear.state_dict())
    x = torch.randn(2, 5, 24, dtype=dtype)
    found = []
    for each in (layer, linear):
        X = x.clone().requires_grad_()
        with autocast_to(autocast):
            Y = each(X)
        Y.float().pow(2).sum().backward()
        found.append([Y.detach(), X.grad, *(parameter.grad for parameter in each.parameters())])
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = 1e-5 if autocast is None and dtype != BF16 else 2e-2
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def falcon(dtype=torch.float32, bias=False, **lora):
    config = transformers.FalconConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        bias=bias,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.default_generator.manual_seed(0)
    return adapt(transformers.FalconForCausalLM(config).to(dtype), **lora)


def at_x(problem):
    return replace(problem, gradients=("X", "A", "B"))


@pytest.mark.parametrize("regime", REGIMES)
def test_a_real_falcon(regime):
    dtype, adapter_dtype32, autocast = REGIMES[regime]
    plain = falcon(dtype, adapter_dtype32=adapter_dtype32)
    fast = accelerated(plain, 8)
    tolerance = 1e-4 if dtype == torch.float32 and autocast is None else TOLERANCE[BF16]
    assert_same_step(fast, plain, tolerance, autocast)
    assert fast_calls(fast) == (8, 0)
    with autocast_to(autocast):
        foreseen = model_problems(fast, [18], autocast).problems
    asked = [choice.problem for choice in choices_of(fast)]
    # which layers of a block need no dX is not known without a run
    assert {at_x(each) for each in asked} <= {at_x(each) for each in foreseen if not each.parts}


def test_a_compiled_falcon():
    plain = falcon()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    layers = [m.base_model.model.transformer.h[0].mlp.dense_h_to_4h for m in (plain, fast)]
    compiled = [torch.compile(layer, backend="eager", fullgraph=True) for layer in layers]
    x = torch.randn(3, 32)
    torch.testing.assert_close(compiled[1](x), compiled[0](x))


def test_a_falcon_with_a_bias_is_left():
    plain = falcon(bias=True)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert {reason for _, reason in report.left} == {"its base is a FalconLinear with a bias"}
    assert torch.equal(gradients(fast, BF16)[0], gradients(plain, BF16)[0])


def test_adapters_without_peft_on_a_falcon():
    model = autolora.add_lora(falcon().unload(), rank=2, target_modules=["query_key_value"])
    assert [each.name for each in autolora.explain(model, tokens=8).layers] == [
        f"transformer.h.{number}.self_attention.query_key_value" for number in (0, 1)
    ]


class Doubled(nn.Linear):
    """A subclass that nobody knows."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_an_unknown_subclass_is_left():
    config = peft.LoraConfig(target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(Doubled(8, 8)), config)
    assert autolora.accelerate(model).left == [("base_model.model.0", "its base is a Doubled")]
