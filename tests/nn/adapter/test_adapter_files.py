"""save_adapter and load_adapter against PEFT: the same bytes, and the same outputs."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from adapter_models import MIXTURES, base, by_peft, logits, trained
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import autolora
from autolora import LoRAExperts, LoRALinear
from autolora.nn.linear import scaling_of
from autolora.timing.quantise import quantised

BF16 = torch.bfloat16
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

OURS = {  # name → model, options of add_lora
    "llama": ("llama", {}),
    "some layers": ("llama", {"target_modules": r".*\.(0\..*q_proj|1\..*(v_proj|down_proj))"}),
    "rslora": ("llama", {"use_rslora": True}),
    "lora_bias": ("llama", {"lora_bias": True, "dropout": 0.1}),
    "ranks": ("llama", {"rank_pattern": {"q_proj": 5, "^model.layers.0.mlp.up_proj": 2}}),
    "alphas": ("llama", {"alpha_pattern": {"v_proj": 1.5, r"1\.mlp\.up_proj": 7}}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "conv1d": ("gpt2", {"lora_bias": True, "use_rslora": True}),
    "conv1d and tied head": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    "shared expert": ("deepseek_v3", {"rank_pattern": {"gate_proj": 2}, "use_rslora": True}),
    **{kind: (kind, {"rank_pattern": {"experts.down_proj": 2}}) for kind in MIXTURES},
    "one stack": ("mixtral", {"target_modules": ["experts.down_proj"]}),
    "stacks of one layer": ("qwen3_moe", {"target_modules": r".*\.1\.mlp\.experts\..*"}),
}
STACKS = {"target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
THEIRS = {  # name → model, options of LoraConfig
    "llama": ("llama", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r".*\.self_attn\.[qv]_proj"}),
    "excluded": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["0.mlp.up_proj"]},
    ),
    "excluded by regex": ("llama", {"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}),
    "layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "layers by name": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "ranks": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"q_proj": 4, r"layers\.1\.self_attn\.k_proj": 2},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 10},
            "use_rslora": True,
        },
    ),
    "lora_bias": ("llama", {"target_modules": ["q_proj"], "lora_bias": True, "lora_dropout": 0.1}),
    "gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "linear by weight": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    **{kind: (kind, STACKS) for kind in MIXTURES},
    "one stack": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["1.mlp.experts.gate_up_proj"]},
    ),
    "ranks of stacks": (
        "qwen3_moe",
        {**STACKS, "rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    ),
}


PAGE = Path(__file__).parents[3] / "docs/training.md"


def bytes_of(folder):
    return (folder / WEIGHTS).read_bytes()


def config_of(folder):
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def add_lora(kind, options, dtype=torch.float32):
    return trained(
        autolora.add_lora(base(kind, dtype), **{"rank": 3, "alpha": 6, **options})
    ).eval()


def native(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (LoRALinear, LoRAExperts))}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("name", OURS)
def test_peft_loads_what_autolora_saves_and_saves_the_same_bytes(name, tmp_path):
    kind, options = OURS[name]
    ours = add_lora(kind, options)
    autolora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(kind), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(ours))
    theirs.save_pretrained(tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path)
    again = autolora.load_adapter(base(kind), tmp_path).eval()
    assert torch.equal(logits(again), logits(ours))
    autolora.save_adapter(again, tmp_path / "last")
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "last" / file).read_bytes() == (tmp_path / file).read_bytes()
    assert {n: (m.rank, m.scaling) for n, m in native(again).items()} == {
        n: (m.rank, m.scaling) for n, m in native(ours).items()
    }


@pytest.mark.parametrize("name", THEIRS)
def test_autolora_loads_what_peft_saves_and_saves_the_same_bytes(name, tmp_path):
    kind, options = THEIRS[name]
    theirs = by_peft(base(kind), **options)
    theirs.save_pretrained(tmp_path)
    ours = autolora.load_adapter(base(kind), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs))
    autolora.save_adapter(ours, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path)
    third = peft.PeftModel.from_pretrained(base(kind), tmp_path / "again")
    torch.testing.assert_close(logits(third), logits(theirs))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_dtypes_are_those_of_the_file(kind, tmp_path):
    options = STACKS if kind == "mixtral" else {"target_modules": "all-linear"}
    by_peft(base(kind, BF16), adapter_dtype32=False, **options).save_pretrained(tmp_path)
    ours = autolora.load_adapter(base(kind, BF16), tmp_path)
    assert {layer.lora_A.weight.dtype for layer in native(ours).values()} == {BF16}
    autolora.save_adapter(ours, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path)
    wide = autolora.load_adapter(base(kind, BF16), tmp_path, adapter_dtype=torch.float32)
    for name, layer in native(wide).items():
        assert layer.lora_B.weight.dtype == torch.float32
        assert torch.equal(layer.lora_B.weight, native(ours)[name].lora_B.weight.float())


def test_loaded_layers_are_as_add_lora_makes_them(tmp_path):
    lora = {"target_modules": ["q_proj"], "lora_dropout": 0.25, "use_rslora": True}
    by_peft(base(), **lora).save_pretrained(tmp_path)
    model = base().train()
    assert (
        autolora.load_adapter(
            model, str(tmp_path), compute_dtype=BF16, objective="memory", siblings=False
        )
        is model
    )
    first = model.model.layers[0].self_attn.q_proj
    assert (first.rank, first.alpha, first.dropout, first.use_rslora) == (3, 6, 0.25, True)
    assert first.training
    policy = first._autolora.policy
    assert (policy.compute_dtype, policy.wanted.kind, policy.siblings) == (BF16, "memory", False)
    trained_ones = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained_ones == {n for n, _ in model.named_parameters() if "lora_" in n}
    loss = model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum()
    loss.backward()
    assert first.lora_B.weight.grad.any()


def test_layers_that_are_there_take_the_values_of_the_file(tmp_path):
    ours = add_lora("mixtral", {"dropout": 0.0})
    autolora.save_adapter(ours, tmp_path)
    other = add_lora("mixtral", {"adapter_dtype": torch.float64})
    held = {name: p for name, p in other.named_parameters() if p.requires_grad}
    assert autolora.load_adapter(other, tmp_path) is other
    assert {n: p for n, p in other.named_parameters() if p.requires_grad} == held  # not replaced
    for name, layer in native(other).items():
        assert layer.lora_A.weight.dtype == torch.float64
        assert torch.equal(layer.lora_A.weight, native(ours)[name].lora_A.weight.double())
    torch.testing.assert_close(logits(other), logits(ours), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "bits"), [("nf4", 4), ("int8", 8)])
def test_quantised_bases(layout, bits, tmp_path):
    W = torch.randn(24, 64)

    def plain():
        model = nn.Sequential(quantised(W, None, layout))
        setattr(model, f"is_loaded_in_{bits}bit", True)  # as PEFT knows such models
        return model

    ours = trained(autolora.add_lora(plain(), rank=3, alpha=6))
    autolora.save_adapter(ours, tmp_path)
    x = torch.randn(5, 64)
    theirs = peft.PeftModel.from_pretrained(plain(), tmp_path)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(theirs.train()(x), ours.train()(x), **tolerance)
    torch.testing.assert_close(autolora.load_adapter(plain(), tmp_path).train()(x), ours(x))
    theirs.save_pretrained(tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path)


def test_a_model_is_named_in_the_configuration(tmp_path):
    model = base()
    model.name_or_path = "some/llama"
    autolora.save_adapter(autolora.add_lora(model, rank=3), tmp_path)
    found = config_of(tmp_path)
    assert found["base_model_name_or_path"] == "some/llama"
    assert found["auto_mapping"] == {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    assert found["inference_mode"] is True
    assert found["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


class Tower(nn.Module):
    """Layers whose paths are the ends of others' paths."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"q": nn.Linear(6, 6), "p": nn.Linear(6, 6)})
        self.deep = nn.ModuleDict({"block": nn.ModuleDict({"p": nn.Linear(6, 6)})})

    def forward(self, x):
        return self.q(x) + self.block["p"](self.block["q"](x)) + self.deep["block"]["p"](x)


@pytest.mark.parametrize(
    "adapted", [["q"], ["block.q"], ["q", "block.p"], ["block.p", "deep.block.p"]]
)
def test_layers_with_the_end_of_anothers_path(adapted, tmp_path):
    torch.manual_seed(0)
    plain = Tower()
    pattern = "|".join(map(r"\b{}".format, adapted))
    model = autolora.add_lora(Tower(), rank=2, target_modules=pattern)
    model.load_state_dict(
        {
            name.replace(".weight", ".base_layer.weight"): w
            for name, w in plain.state_dict().items()
        },
        strict=False,
    )
    assert list(native(model)) == adapted
    autolora.save_adapter(trained(model), tmp_path)
    x = torch.randn(3, 6)
    state = {name.replace("base_layer.", ""): w for name, w in model.state_dict().items()}
    for load in (autolora.load_adapter, peft.PeftModel.from_pretrained):
        fresh = Tower()
        fresh.load_state_dict({n: w for n, w in state.items() if "lora_" not in n})
        torch.testing.assert_close(load(fresh, tmp_path)(x), model(x))


def test_a_layer_in_two_places(tmp_path):
    model = Tower()
    model.twin = model.block["p"]
    autolora.add_lora(model, rank=2)
    autolora.save_adapter(trained(model), tmp_path)
    saved = load_file(tmp_path / WEIGHTS)
    twins = [name for name in saved if "twin" in name or ".block.p." in name]
    assert len(twins) == 6  # with those of deep.block.p
    again = Tower()
    again.twin = again.block["p"]
    autolora.load_adapter(again, tmp_path)
    assert again.twin is again.block["p"]
    assert torch.equal(again.twin.lora_A.weight, model.twin.lora_A.weight)


def test_wrappers_that_were_nested_by_hand_are_named_as_peft_nests_them(tmp_path):
    ours = base("mixtral")
    ours.requires_grad_(False)
    for layer in ours.model.layers:
        inner = LoRAExperts(layer.mlp.experts, "down_proj", 2, alpha=4)
        layer.mlp.experts = LoRAExperts(inner, "gate_up_proj", 2, alpha=4)
    autolora.save_adapter(trained(ours), tmp_path)
    for load in (autolora.load_adapter, peft.PeftModel.from_pretrained):
        torch.testing.assert_close(logits(load(base("mixtral"), tmp_path)), logits(ours))


def test_layers_of_several_kinds_keep_their_scaling(tmp_path, warnings):
    ours = base()
    attention = ours.model.layers[0].self_attn
    for rank, name in enumerate(("q_proj", "k_proj", "v_proj"), start=3):
        linear = attention.get_submodule(name)
        made = LoRALinear.from_linear(
            linear, rank, alpha=5, use_rslora=rank != 4, dropout=0.1 * (rank > 3)
        )
        setattr(attention, name, made)
    attention.v_proj.scaling *= 3
    autolora.save_adapter(trained(ours), tmp_path)
    found = config_of(tmp_path)
    assert (found["use_rslora"], found["lora_dropout"]) == (False, 0.0)
    assert "layers differ in dropout" in warnings()[0]
    for load in (autolora.load_adapter, peft.PeftModel.from_pretrained):
        torch.testing.assert_close(logits(load(base(), tmp_path)), logits(ours))
    again = autolora.load_adapter(base(), tmp_path).model.layers[0].self_attn
    assert again.v_proj.scaling == pytest.approx(attention.v_proj.scaling)


def compiled(model):
    return torch.compile(model, backend="eager")


def in_blocks(wrap):
    def wrapped(model):
        for n, layer in enumerate(model.model.layers):
            model.model.layers[n] = wrap(layer)
        return model

    return wrapped


@pytest.mark.parametrize(
    "wrap", [compiled, in_blocks(compiled), nn.DataParallel, in_blocks(checkpoint_wrapper)]
)
def test_wrapped_models_are_saved_and_loaded_by_their_own_names(wrap, tmp_path):
    plain = add_lora("llama", {})
    autolora.save_adapter(plain, tmp_path)
    model = wrap(add_lora("llama", {}))
    autolora.load_adapter(model, tmp_path)
    autolora.save_adapter(model, tmp_path / "again")
    fresh = wrap(base())
    assert autolora.load_adapter(fresh, tmp_path) is fresh
    torch.testing.assert_close(logits(fresh), logits(plain))
    autolora.save_adapter(fresh, tmp_path / "last")
    for folder in ("again", "last"):
        for file in (WEIGHTS, CONFIG):
            assert (tmp_path / folder / file).read_bytes() == (tmp_path / file).read_bytes()


def test_alpha_of_rslora_is_kept(tmp_path):
    ours = add_lora("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 7}})
    autolora.save_adapter(ours, tmp_path)
    found = config_of(tmp_path)
    assert (found["lora_alpha"], found["alpha_pattern"]) == (6, {})
    again = autolora.load_adapter(base(), tmp_path).model.layers[0].self_attn.q_proj
    assert again.scaling == scaling_of(7, 6, True)


def test_the_example_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.M | re.S)
    (example,) = [block for block in blocks if "save_adapter" in block]
    ours = add_lora("llama", {})
    names = {"autolora": autolora, "model": ours, "base": base()}
    exec(compile(example, "training.md", "exec"), names)
    assert names["model"] is names["base"]
    torch.testing.assert_close(logits(names["model"]), logits(ours), rtol=1e-4, atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(base(), "adapter")
    torch.testing.assert_close(logits(theirs), logits(ours))
