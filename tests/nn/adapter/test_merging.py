"""merge, unmerge and disable: the weights and outputs of PEFT's, and what is refused."""

import copy
import pickle

import peft
import pytest
import torch
from adapter_models import MIXTURES, base, by_peft, logits, trained
from torch import nn

import autolora
from autolora import AutoloraError, LoRAExperts, LoRALinear
from autolora.timing.quantise import quantised

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
STACKS = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
BIASED = {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}
MODELS = {
    "llama": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "lora_bias": ("llama", BIASED),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "lora_bias": True}),
    **{kind: (kind, STACKS) for kind in MIXTURES},
}


def ours_and_theirs(name, folder, dtype=F32, adapter_dtype32=True):
    kind, options = MODELS[name]
    theirs = by_peft(base(kind, dtype), adapter_dtype32=adapter_dtype32, **options)
    theirs.save_pretrained(folder)
    return autolora.load_adapter(base(kind, dtype), folder), theirs


def layers(model):
    return [m for m in model.modules() if isinstance(m, (LoRALinear, LoRAExperts))]


def assert_same_base(ours, theirs):
    found = {name: w for name, w in ours.state_dict().items() if "lora_" not in name}
    expected = theirs.state_dict()
    assert len(found) > 10
    for name, weight in found.items():
        assert torch.equal(weight, expected[f"base_model.model.{name}"]), name


def left(model):
    return {reason for _, reason in autolora.explain(model).left}


@pytest.mark.parametrize("adapter_dtype32", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_that_peft_merges_and_unmerges(name, dtype, adapter_dtype32, tmp_path):
    ours, theirs = ours_and_theirs(name, tmp_path, dtype, adapter_dtype32)
    assert autolora.merge(ours) is ours
    theirs.merge_adapter()
    assert_same_base(ours, theirs)
    assert autolora.unmerge(ours) is ours
    theirs.unmerge_adapter()
    assert_same_base(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name, tmp_path):
    ours, theirs = ours_and_theirs(name, tmp_path)
    plain, adapted = logits(base(MODELS[name][0])), logits(ours)
    assert (plain - adapted).abs().max() > 1e-2
    with autolora.disable(ours) as same:
        assert same is ours
        assert torch.equal(logits(ours), plain)
        with theirs.disable_adapter():
            assert torch.equal(logits(theirs), plain)
    assert torch.equal(logits(ours), adapted)
    autolora.merge(ours)
    torch.testing.assert_close(logits(ours), adapted, rtol=1e-4, atol=1e-5)
    theirs.merge_adapter()
    assert torch.equal(logits(ours), logits(theirs))
    autolora.unmerge(ours)
    torch.testing.assert_close(logits(ours), adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_has_the_files_of_its_adapters(name, tmp_path):
    ours, _ = ours_and_theirs(name, tmp_path)
    autolora.merge(ours)
    autolora.save_adapter(ours, tmp_path / "again")
    files = [f / "adapter_model.safetensors" for f in (tmp_path, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_of_a_merged_head_has_its_own_weights(tmp_path):
    model = trained(autolora.add_lora(base(), rank=3, target_modules=["lm_head", "q_proj"]))
    autolora.save_adapter(model, tmp_path)
    autolora.merge(model)
    autolora.save_adapter(model, tmp_path / "merged")
    autolora.unmerge(model)
    autolora.save_adapter(model, tmp_path / "unmerged")
    saved = [
        (tmp_path / f / "adapter_model.safetensors").read_bytes() for f in ("merged", "unmerged")
    ]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_explain_says_what_it_says_of_pefts_layers(name, tmp_path):
    ours, theirs = ours_and_theirs(name, tmp_path)
    autolora.accelerate(theirs)
    with autolora.disable(ours), theirs.disable_adapter():
        assert left(ours) == left(theirs) == {"its adapters are disabled"}
        assert autolora.explain(ours, tokens=8).layers == []
    assert autolora.explain(ours, tokens=8).layers
    autolora.merge(ours)
    theirs.merge_adapter()
    assert left(ours) == left(theirs) == {"its adapter is merged"}
    with pytest.raises(AutoloraError, match="its adapter is merged"):
        autolora.tune(ours, tokens=8)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_merged_and_disabled_layers_train_nothing(name, tmp_path):
    ours, _ = ours_and_theirs(name, tmp_path)
    ours.train().get_input_embeddings().requires_grad_(True)  # else nothing needs a gradient
    ids = torch.randint(0, 64, (1, 5))
    with autolora.disable(ours):
        ours(input_ids=ids, labels=ids).loss.backward()
    autolora.merge(ours)
    ours(input_ids=ids, labels=ids).loss.backward()
    autolora.unmerge(ours)
    assert all(layer.lora_A.weight.grad is None for layer in layers(ours))
    ours(input_ids=ids, labels=ids).loss.backward()
    assert all(layer.lora_B.weight.grad.any() for layer in layers(ours))


def test_dropout_is_left_out():
    layer = trained(LoRALinear(8, 8, 2, alpha=4, dropout=0.5)).train()
    x = torch.randn(4, 8)
    with autolora.disable(layer):
        assert torch.equal(layer(x), layer.base_layer(x))
    merged = autolora.merge(layer)
    assert torch.equal(merged(x), layer.base_layer(x))
    torch.testing.assert_close(autolora.unmerge(layer).eval()(x), layer._plain_forward(x))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_compiled_code_follows(name, tmp_path):
    ours, _ = ours_and_theirs(name, tmp_path)
    theirs = base(MODELS[name][0])
    for model in (ours, theirs):
        del model.model.layers[1:]  # each is traced
    compiled = torch.compile(ours, backend="eager")
    plain, adapted = logits(theirs), logits(ours)
    torch.testing.assert_close(logits(compiled), adapted)
    with autolora.disable(compiled):
        torch.testing.assert_close(logits(compiled), plain)
    torch.testing.assert_close(logits(compiled), adapted)
    autolora.merge(compiled)
    torch.testing.assert_close(logits(compiled), adapted, rtol=1e-4, atol=1e-5)
    autolora.unmerge(compiled)
    torch.testing.assert_close(logits(compiled), adapted, rtol=1e-4, atol=1e-5)


def test_one_of_two_stacks_may_be_merged(tmp_path):
    ours, _ = ours_and_theirs("mixtral", tmp_path)
    adapted = logits(ours)
    inner = ours.model.layers[0].mlp.experts.base_layer
    assert inner.parameter_name == "gate_up_proj"
    autolora.merge(inner)
    torch.testing.assert_close(logits(ours), adapted, rtol=1e-4, atol=1e-5)
    with pytest.raises(AutoloraError, match=r"cannot merge .*experts\.base_layer: its adapter is"):
        autolora.merge(ours)
    assert [layer.merged for layer in layers(ours)].count(True) == 1
    autolora.unmerge(ours)
    assert not any(layer.merged for layer in layers(ours))


def test_a_backward_pass_after_a_merge_is_an_error_of_torch():
    layer = trained(LoRALinear(8, 8, 2, alpha=4))
    x = torch.randn(4, 8, requires_grad=True)
    loss = layer(x).sum()
    autolora.merge(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_stay_merged(tmp_path):
    ours, _ = ours_and_theirs("llama", tmp_path)
    autolora.merge(ours)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(logits(again), logits(ours))
        autolora.unmerge(again)
    assert all(layer.merged for layer in layers(ours))


def test_disabling_nests_and_ends_with_an_error():
    model = trained(autolora.add_lora(base(), rank=3))
    with autolora.disable(model):
        with autolora.disable(model.model.layers[0]):
            pass
        assert all(layer.disabled for layer in layers(model))
    with pytest.raises(IndexError), autolora.disable(model):
        model(input_ids=torch.tensor([[64]]))
    assert not any(layer.disabled for layer in layers(model))


# ---- what is refused


def test_twice_is_refused():
    model = trained(autolora.add_lora(base(), rank=3))
    with pytest.raises(AutoloraError, match="no adapter of this LlamaForCausalLM is merged"):
        autolora.unmerge(model)
    autolora.merge(model)
    before = copy.deepcopy(model.state_dict())
    q = "model.layers.0.self_attn"
    with pytest.raises(AutoloraError) as error:
        autolora.merge(model)
    assert str(error.value) == (
        f"cannot merge {q}.q_proj, {q}.k_proj and 12 more: its adapter is merged; "
        "autolora.unmerge(model) takes it out of the weight"
    )
    with (
        pytest.raises(AutoloraError, match=r"cannot disable .*its adapter is merged"),
        autolora.disable(model),
    ):
        pass
    assert all(torch.equal(weight, before[n]) for n, weight in model.state_dict().items())
    autolora.unmerge(model)
    with autolora.disable(model), pytest.raises(AutoloraError, match="its adapters are disabled"):
        autolora.merge(model)


@pytest.mark.parametrize("layout", ["nf4", "int8"])
def test_quantised_bases(layout):
    model = nn.Sequential(
        LoRALinear(64, 64, 2, alpha=4),
        LoRALinear.from_linear(quantised(torch.randn(32, 64), None, layout), 2, alpha=4),
    )
    before = model[0].weight.clone()
    with pytest.raises(AutoloraError, match=rf"cannot merge 1: its base is quantised \({layout}\)"):
        autolora.merge(model)
    assert torch.equal(model[0].weight, before)
    x = torch.randn(3, 64)
    with autolora.disable(trained(model)):
        assert torch.equal(model[1](x), model[1].base_layer(x))


def parametrised(layer):
    nn.utils.parametrize.register_parametrization(layer.base_layer, "weight", nn.Identity())


CHANGES = {
    "not finite": lambda m: m[1].lora_A.weight.data[0, 0].fill_(torch.nan),
    "has a bias, and its base has none": lambda m: m.__setitem__(
        1, LoRALinear(8, 8, 2, alpha=4, bias=False, lora_bias=True)
    ),
    "is shared by 1.base_layer, 2": lambda m: m[2].__setattr__("weight", m[1].base_layer.weight),
    "on the meta device": lambda m: m[1].to("meta"),
    "lora_A is torch.float64, lora_B torch.float32": lambda m: m[1].lora_A.double(),
    "its weight is torch.float8_e4m3fn": lambda m: m[1].base_layer.to(torch.float8_e4m3fn),
    "its weight is no parameter": lambda m: parametrised(m[1]),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_cannot_be_merged(reason):
    model = nn.Sequential(*(LoRALinear(8, 8, 2, alpha=4) for _ in range(2)), nn.Linear(8, 8))
    trained(model)
    CHANGES[reason](model)
    before = model[0].weight.clone()
    with pytest.raises(AutoloraError, match=f"^cannot merge 1: .*{reason}"):
        autolora.merge(model)
    assert torch.equal(model[0].weight, before)
    assert not any(layer.merged for layer in layers(model))


def test_models_without_layers_of_add_lora():
    with pytest.raises(AutoloraError, match=r"this Linear has no layers of autolora\.add_lora"):
        autolora.merge(nn.Linear(2, 2))
    theirs = by_peft(base(), target_modules=["q_proj"])
    autolora.accelerate(theirs)
    for refused in (autolora.merge, autolora.unmerge):
        with pytest.raises(AutoloraError, match="are PEFT's, accelerated or not; use its save_pre"):
            refused(theirs)
    with pytest.raises(AutoloraError, match="are PEFT's"), autolora.disable(theirs):
        pass
    assert isinstance(theirs, peft.PeftModel)
