"""Quantised bases without graphs train along PEFT's path, and the reason names the method."""

import copy
import importlib

import peft
import pytest
import torch
from peft.tuners import lora
from torch import nn

import autolora


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def assert_left(model, reason, parts=("left",)):
    """It is left to PEFT with this reason, and computes what it computed."""
    plain = copy.deepcopy(model)
    report = autolora.accelerate(model)
    assert [why for part in parts for _, why in getattr(report, part)] == [reason]
    assert [why for _, why in autolora.explain(model, tokens=8).left] == [reason]
    with pytest.raises(autolora.AutoloraError, match=reason):
        autolora.tune(model, tokens=8)
    x = torch.randn(8, 64)
    for each in (plain, model):
        each(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        ("gptq", "GPTQLoraLinear", "a GPTQ layer"),
        ("awq", "AwqLoraLinear", "an AWQ layer"),
        ("aqlm", "AqlmLoraLinear", "an AQLM layer"),
    ],
)
def test_pefts_class_for_a_method(module, name, reason):
    """Around a plain layer: it does not look at what is quantised, nor does autolora."""
    kind = getattr(importlib.import_module(f"peft.tuners.lora.{module}"), name, None)
    if kind is None:
        pytest.skip(f"PEFT {peft.__version__} names it otherwise")
    base = nn.Linear(64, 64).requires_grad_(False)
    config = peft.LoraConfig(r=4, init_lora_weights=False)
    assert_left(Model(kind(base, "default", config=config, r=4, lora_alpha=8)), reason)


def test_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    config = peft.LoraConfig(r=4, target_modules=["layer"], init_lora_weights=False)
    model = Model(nn.Linear(64, 64, bias=False))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    adapted = peft.get_peft_model(model, config)
    assert type(adapted.base_model.model.layer) is lora.torchao.TorchaoLoraLinear
    assert_left(adapted, "a torchao layer")
    adapted = peft.get_peft_model(Model(nn.Linear(64, 64, bias=False)), config)
    base = adapted.base_model.model.layer.base_layer
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig())
    assert type(adapted.base_model.model.layer) is lora.Linear
    assert_left(adapted, "a torchao layer", ("notes",))


def test_hqq():
    hqq = pytest.importorskip("hqq.core.quantize")
    config = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
    layer = hqq.HQQLinear(
        nn.Linear(64, 64, bias=False), config, compute_dtype=torch.float32, device="cpu"
    )
    lora_config = peft.LoraConfig(r=4, target_modules=["layer"], init_lora_weights=False)
    assert_left(peft.get_peft_model(Model(layer), lora_config), "an HQQ layer")
