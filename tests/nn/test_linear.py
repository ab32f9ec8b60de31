"""LoRALinear and add_lora against the defining equation and against PEFT."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autolora
from autolora import AutoloraError, LoRALinear
from autolora.timing.quantise import quantised

BF16 = torch.bfloat16


def trained(layer):
    nn.init.normal_(layer.lora_B.weight, std=0.1)
    return layer


def defining_equation(layer, x):
    base = layer.base_layer
    update = layer.scaling * (x @ layer.lora_A.weight.T) @ layer.lora_B.weight.T
    return F.linear(x, base.weight, base.bias) + update


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (1, 6)])
def test_equals_the_defining_equation(bias, shape):
    layer = trained(LoRALinear(6, 5, 3, alpha=6, bias=bias))
    x = torch.randn(shape, requires_grad=True)
    G = torch.randn(*shape[:-1], 5)
    leaves = (x, layer.lora_A.weight, layer.lora_B.weight)
    mine = torch.autograd.grad(layer(x), leaves, G)
    theirs = torch.autograd.grad(defining_equation(layer, x), leaves, G)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    (choice,) = layer._autolora.choices.values()
    assert choice.executable is not None


def test_a_new_layer_computes_its_base():
    layer = LoRALinear(6, 5, 3, alpha=6)
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == [
        "lora_A.weight",
        "lora_B.weight",
    ]
    assert repr(layer).startswith("LoRALinear(\n  rank=3, alpha=6, dropout=0.0")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_bias_in_lora_b(dropout):
    layer = trained(LoRALinear(6, 5, 3, alpha=6, lora_bias=True, dropout=dropout))
    assert not layer.lora_B.bias.any()
    nn.init.normal_(layer.lora_B.bias)
    x = torch.randn(4, 6, requires_grad=True)
    G = torch.randn(4, 5)
    leaves = (x, layer.lora_A.weight, layer.lora_B.weight, layer.lora_B.bias)
    torch.manual_seed(1)
    mine = torch.autograd.grad(layer(x), leaves, G)
    torch.manual_seed(1)
    h = F.linear(F.dropout(x, dropout), layer.lora_A.weight)
    Y = layer.base_layer(x) + layer.scaling * F.linear(h, layer.lora_B.weight, layer.lora_B.bias)
    theirs = torch.autograd.grad(Y, leaves, G)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    (choice,) = layer._autolora.choices.values()
    assert choice.problem.adapter_bias
    assert choice.executable is not None
    torch.testing.assert_close(layer.eval()._plain_forward(x), layer(x))


def test_from_linear_shares_the_layer():
    linear = nn.Linear(6, 5).eval()
    layer = LoRALinear.from_linear(linear, 2, alpha=4, use_rslora=True)
    assert layer.base_layer is linear
    assert layer.scaling == pytest.approx(4 / math.sqrt(2))
    assert not layer.training
    assert not linear.weight.requires_grad


@pytest.mark.parametrize("compute", [None, BF16])
@pytest.mark.parametrize("autocast", [False, True])
def test_float32_adapters_on_a_bfloat16_base(autocast, compute):
    layer = trained(
        LoRALinear(
            16, 12, 4, alpha=8, dtype=BF16, adapter_dtype=torch.float32, compute_dtype=compute
        )
    )
    x = torch.randn(5, 16, dtype=BF16, requires_grad=True)
    with torch.autocast("cpu", BF16) if autocast else contextlib.nullcontext():
        y = layer(x)
        plain = layer._plain_forward(x)
    assert y.dtype == plain.dtype == BF16
    torch.testing.assert_close(y, plain, rtol=0.05, atol=0.05)
    for out in (y, plain):
        layer.zero_grad()
        out.float().pow(2).sum().backward()
        assert layer.lora_A.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("tokens", [32, 200])
def test_dropout_in_training_draws_the_mask_of_peft(tokens):
    layer = trained(LoRALinear(64, 8, 4, alpha=4, dropout=0.5))
    x = torch.randn(tokens, 64)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    h = F.dropout(x, 0.5) @ layer.lora_A.weight.T
    torch.testing.assert_close(y, layer.base_layer(x) + h @ layer.lora_B.weight.T)
    turned = x.t().contiguous().t()  # in the memory's order the mask is another
    torch.manual_seed(1)
    y = layer(turned)
    torch.manual_seed(1)
    h = F.dropout(turned, 0.5) @ layer.lora_A.weight.T
    torch.testing.assert_close(y, layer.base_layer(x) + h @ layer.lora_B.weight.T)
    layer.eval()
    torch.testing.assert_close(layer(x), defining_equation(layer, x))
    choices = layer._autolora.choices.values()
    assert [(choice.problem.dropout, choice.calls) for choice in choices] == [(True, 1), (False, 1)]
    assert all(choice.executable for choice in choices)


def test_hooks_on_the_parts_are_called():
    layer = trained(LoRALinear(6, 5, 3, alpha=6))
    called = []
    layer.lora_A.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), defining_equation(layer, x))
    assert called == [1]


def test_compiled_layers_take_the_plain_path():
    layer = trained(LoRALinear(6, 5, 3, alpha=6))
    x = torch.randn(4, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), defining_equation(layer, x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)})
        self.head = nn.Linear(6, 3)
        self.twin = self.block["up"]

    def forward(self, x):
        return self.head(self.block["down"](F.relu(self.block["up"](x))))

    def get_output_embeddings(self):
        return self.head


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("all-linear", ["block.up", "block.down"]),
        (["up"], ["block.up"]),
        (["block.down", "head"], ["block.down", "head"]),
        (r".*\.(up|down)", ["block.up", "block.down"]),
    ],
)
def test_add_lora_adapts_what_is_asked_for(targets, adapted):
    model = Net()
    assert autolora.add_lora(model, rank=2, alpha=4, target_modules=targets) is model
    found = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert found == adapted
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.lora_{part}.weight" for name in adapted for part in "AB"}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"rank_pattern": {"up": 2}}, {"up": (2, 2), "down": (4, 4)}),
        ({"rank_pattern": {"^up": 2, "block.down": 3}}, {"up": (4, 4), "down": (3, 3)}),
        ({"alpha": 8, "rank_pattern": {"u.": 2}}, {"up": (2, 8), "down": (4, 8)}),
        ({"alpha": 8, "alpha_pattern": {"down": 1.5}}, {"up": (4, 8), "down": (4, 1.5)}),
    ],
)
def test_other_ranks_and_alphas_by_patterns(options, sizes):
    model = autolora.add_lora(Net(), rank=4, **options)
    found = {name: model.block[name] for name in ("up", "down")}
    assert {name: (each.rank, each.alpha) for name, each in found.items()} == sizes
    for layer in found.values():
        assert layer.lora_A.weight.shape[0] == layer.rank
        assert layer.scaling == layer.alpha / layer.rank
    peft = pytest.importorskip("peft")
    config = {"r": 4, "lora_alpha": options.pop("alpha", 4), "target_modules": ["up", "down"]}
    theirs = peft.get_peft_model(Net(), peft.LoraConfig(**config, **options))
    for name, layer in found.items():
        assert theirs.base_model.model.block[name].r["default"] == layer.rank


def test_a_layer_in_two_places_stays_one_layer():
    model = autolora.add_lora(Net(), rank=2)
    assert model.twin is model.block["up"]


def test_copies_compute_the_same():
    model = autolora.add_lora(Net(), rank=2)
    x = torch.randn(4, 6)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_weights_saved_by_peft_load_by_their_names(tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    torch.manual_seed(3)
    base = Net()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["up", "down"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    ours = autolora.add_lora(base, rank=2, alpha=4, target_modules=["up", "down"])
    names = {name.removeprefix("base_model.model."): weight for name, weight in saved.items()}
    missing, unexpected = ours.load_state_dict(names, strict=False)
    assert not unexpected
    assert not [name for name in missing if "lora_" in name]
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, not 0"),
        ({"rank": 2.5}, "rank must be a whole number of at least 1, not 2.5"),
        ({"rank": 2, "alpha": -1}, "alpha must be a positive number, not -1"),
        ({"rank": 2, "alpha": float("nan")}, "alpha must be a positive number, not nan"),
        ({"rank": 2, "dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"rank": 2, "target_modules": ["query"]}, r"match no linear layer.*it has up, down"),
        ({"rank": 2, "target_modules": "("}, "is no regular expression"),
        ({"rank": 2, "rank_pattern": {"(": 3}}, r"the pattern '\(' is no regular expression"),
        (
            {"rank": 2, "rank_pattern": {"up": 0}},
            "rank must be a whole number of at least 1, not 0",
        ),
        ({"rank": 2, "alpha_pattern": {"up": -1}}, "alpha must be a positive number, not -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(AutoloraError, match=message):
        autolora.add_lora(Net(), **arguments)


def test_a_bad_argument_leaves_the_model_as_it_was():
    model = Net()
    with pytest.raises(AutoloraError):
        autolora.add_lora(model, rank=2, dropout=2)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_a_model_that_is_one_linear_layer_is_told_what_to_do():
    with pytest.raises(AutoloraError, match=r"LoRALinear\.from_linear"):
        autolora.add_lora(nn.Linear(3, 3), rank=1)


def test_a_rank_that_saves_nothing_is_warned_of():
    with pytest.warns(UserWarning, match="rank 9 is larger than a layer of 6→5"):
        LoRALinear(6, 5, 9, alpha=9)


def test_add_lora_takes_conv1d_and_quantised_layers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    model = autolora.add_lora(transformers.GPT2LMHeadModel(config), rank=2)
    names = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert [name.rpartition(".")[2] for name in names] == ["c_attn", "c_proj", "c_fc", "c_proj"]
    layer = trained(model.transformer.h[0].mlp.c_fc)
    x = torch.randn(3, 5, 16, requires_grad=True)
    W, A, B = layer.base_layer.weight.T, layer.lora_A.weight, layer.lora_B.weight
    expected = x @ W.T + layer.base_layer.bias + layer.scaling * (x @ A.T) @ B.T
    torch.testing.assert_close(layer(x), expected)
    (choice,) = layer._autolora.choices.values()
    assert choice.problem.layout == "conv1d"
    assert choice.executable is not None
    nf4 = quantised(torch.randn(24, 64), None, "nf4")
    layer = trained(LoRALinear.from_linear(nf4, 4, alpha=4))
    x = torch.randn(6, 64, requires_grad=True)
    expected = nf4(x) + (x @ layer.lora_A.weight.T) @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert [c.problem.layout for c in layer._autolora.choices.values()] == ["nf4"]
    int8 = LoRALinear.from_linear(quantised(torch.randn(24, 64), None, "int8"), 4, alpha=4)
    assert int8.lora_A.weight.dtype == torch.float32
