"""Real PEFT models for the tests, and what it means that two of them train alike."""

import contextlib
import copy

import peft
import pytest
import torch
import transformers
from small_llama import SIZES
from torch import nn

import autolora
from autolora.nn.peft import Accelerated

BF16 = torch.bfloat16
# dtype of the base, autocast_adapter_dtype (PEFT's default: adapters in float32), autocast
REGIMES = {
    "float32": (torch.float32, True, None),
    "float32-autocast": (torch.float32, True, BF16),
    "bfloat16": (BF16, False, None),
    "bfloat16-adapters32": (BF16, True, None),
    "bfloat16-adapters32-autocast": (BF16, True, BF16),
}
TOLERANCE = {torch.float32: 1e-4, BF16: 5e-2}


def llama(dtype=torch.float32, **lora):
    """A small real Llama with trained-looking adapters, by PEFT."""
    config = transformers.LlamaConfig(**SIZES, attention_bias=True)
    torch.default_generator.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(dtype)
    return adapt(model, **lora)


def adapt(model, adapter_dtype32=True, **lora):
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    model = peft.get_peft_model(
        model, peft.LoraConfig(**lora), autocast_adapter_dtype=adapter_dtype32
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def quantised(kind, dtype=torch.float32, quant_type="nf4", stored=torch.uint8, **lora):
    """The small Llama with its linear layers quantised by bitsandbytes."""
    bnb = pytest.importorskip("bitsandbytes")
    model = llama(dtype).unload()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and "lm_head" not in name:
            i, o, bias = layer.in_features, layer.out_features, layer.bias is not None
            if kind == "nf4":
                how = {"quant_type": quant_type, "quant_storage": stored}
                new = bnb.nn.Linear4bit(i, o, bias=bias, compute_dtype=dtype, **how)
                new.weight = bnb.nn.Params4bit(layer.weight.data, False, module=new, **how)
            else:
                new = bnb.nn.Linear8bitLt(i, o, bias=bias, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(layer.weight.data, False, has_fp16_weights=False)
            if bias:
                new.bias = layer.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new.to("cpu"))
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    return adapt(model, **lora)


def accelerated(plain, layers=14):
    """A copy of a model whose LoRA layers are accelerated, all of them."""
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert len(report.taken) == layers
    assert report.left == report.notes == []
    return fast


def batch(seed=0, device="cpu"):
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(seed)).to(device)
    return {"input_ids": ids, "labels": ids}


def autocast_to(dtype, device="cpu"):
    return torch.autocast(device, dtype) if dtype else contextlib.nullcontext()


def gradients(model, autocast=None):
    """Loss and the gradients of the trainable parameters."""
    model.zero_grad()
    device = next(model.parameters()).device
    with autocast_to(autocast, device.type):
        loss = model(**batch(device=device)).loss
    loss.backward()
    return loss.detach().clone(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad
    }


def assert_same_step(model, other, tolerance, autocast=None):
    loss, grads = gradients(model, autocast)
    expected_loss, expected = gradients(other, autocast)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    assert grads.keys() == expected.keys()
    whole = torch.cat([grad.flatten().float() for grad in expected.values()]).norm()
    for name, grad in grads.items():
        assert grad.dtype == expected[name].dtype
        error, norm = (grad.float() - expected[name].float()).norm(), expected[name].float().norm()
        # some gradients are nothing but rounding: the bias of a key, which softmax does not see
        assert error <= tolerance * max(norm, whole / 50), name


def fast_calls(model):
    """How many calls ran along a graph, and how many took PEFT's path."""
    choices = choices_of(model)
    fast = sum(c.calls for c in choices if c.executable is not None)
    return fast, sum(c.calls for c in choices) - fast


def choices_of(model):
    return [
        choice
        for module in model.modules()
        if isinstance(module, Accelerated)
        for choice in module._autolora.choices.values()
    ]
