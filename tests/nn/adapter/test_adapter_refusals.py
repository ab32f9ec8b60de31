"""What save_adapter and load_adapter refuse, in one line, and that nothing is changed then."""

import json
import resource
import sys

import pytest
import torch
from adapter_models import base, by_peft, logits, trained
from safetensors.torch import load_file, save_file
from torch import nn

import autolora
from autolora import AutoloraError, LoRAExperts, LoRALinear

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path):
    """A folder with an adapter on q_proj, of rank 3 and s = 2."""
    folder = tmp_path / "adapter"
    autolora.save_adapter(native(), folder)
    return folder


def native(**options):
    given = {"rank": 3, "alpha": 6, "target_modules": ["q_proj"], **options}
    return trained(autolora.add_lora(base(), **given))


def change(folder, **fields):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | fields), encoding="utf-8")


def refused(folder, model=None):
    """The message of load_adapter, which leaves the model as it was."""
    model = base() if model is None else model
    names, trains = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    before = logits(model)
    with pytest.raises(AutoloraError) as error:
        autolora.load_adapter(model, folder)
    assert list(model.state_dict()) == names
    assert [p.requires_grad for p in model.parameters()] == trains
    assert torch.equal(logits(model), before)
    message = str(error.value)
    assert "\n" not in message
    return message


# ---- files


def test_folders_and_files_that_are_missing(saved, tmp_path):
    assert refused(tmp_path / "none") == (
        f"no such folder: {tmp_path / 'none'}; an adapter is a folder with {CONFIG} and {WEIGHTS}"
    )
    (saved / WEIGHTS).rename(saved / "adapter.safetensors")
    assert refused(saved) == f"{saved} holds no {WEIGHTS}"
    (saved / CONFIG).unlink()
    assert refused(saved) == f"cannot read {saved / CONFIG}: No such file or directory"


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_is_not_read(tmp_path):
    theirs = by_peft(base(), target_modules=["q_proj"])
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'adapter_model.bin'} is a pickle, which can run any ")
    assert "save_pretrained" in message


@pytest.mark.parametrize("data", [b"", b"no tensors", b"\xff" * 64])
def test_damaged_weights(saved, data):
    (saved / WEIGHTS).write_bytes(data)
    assert refused(saved).startswith(f"cannot read {saved / WEIGHTS}: ")


def test_truncated_weights(saved):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:-100])
    assert refused(saved).startswith(f"cannot read {saved / WEIGHTS}: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "must hold an object, not a list"),
        (b"{}", "is of peft_type None; it must be LORA"),
    ],
)
def test_configurations_that_are_none(saved, data, message):
    (saved / CONFIG).write_bytes(data)
    assert message in refused(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "is of peft_type 'IA3'; it must be LORA"),
        ({"r": "8"}, "must be a whole number, not '8'"),
        ({"r": True}, "must be a whole number, not True"),
        ({"lora_alpha": [1]}, "lora_alpha in"),
        ({"target_modules": {"q_proj": 1}}, "must be a list of names or a regular expression"),
        ({"target_modules": ["q_proj", 3]}, "must be a list of names or a regular expression"),
        ({"target_parameters": "q_proj.weight"}, "must be a list of names, not 'q_proj.weight'"),
        ({"rank_pattern": {"q_proj": 2.5}}, "must be an object of patterns and whole numbers"),
        ({"layers_to_transform": ["0"]}, "must be a number or a list of numbers"),
        ({"use_rslora": 1}, "must be true or false, not 1"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
        (
            {"target_modules": ["embed_tokens"]},
            "include model.embed_tokens (Embedding), and layers",
        ),
        ({"target_modules": ["w1"]}, "names no layer of this LlamaForCausalLM, which has q_proj, "),
        ({"target_modules": None}, "names no layer of this LlamaForCausalLM"),
        ({"target_parameters": ["norm.weight"]}, "include model.norm.weight (LlamaRMSNorm)"),
        ({"lora_dropout": 1.5}, "dropout must be at least 0 and below 1, not 1.5"),
        ({"lora_alpha": -6}, "alpha must be a positive number, not -6"),
    ],
)
def test_bad_fields(saved, fields, message):
    change(saved, **fields)
    assert message in refused(saved)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("use_dora", {"use_dora": True}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("bias", {"bias": "lora_only"}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
        ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
    ],
)
def test_adapters_of_peft_that_compute_something_else(field, options, tmp_path):
    by_peft(base(), target_modules=["q_proj"], **options).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / CONFIG} has {field} = ")
    assert message.endswith("peft.PeftModel.from_pretrained, then use autolora.accelerate")


@pytest.mark.filterwarnings("ignore")
def test_routers_of_a_mixture_are_named(tmp_path):
    by_peft(base("mixtral"), target_modules="all-linear").save_pretrained(tmp_path)
    message = refused(tmp_path, base("mixtral"))
    assert "target_parameters include model.layers.0.mlp.gate.weight (MixtralTop" in message


def test_fields_of_a_newer_peft_are_warned_of(saved, warnings):
    change(saved, use_more=True, more_config=None, less=[], qalora_group_size=32)
    autolora.load_adapter(base(), saved)
    assert warnings() == [
        f"autolora: {saved / CONFIG} has fields that are not known here: use_more"
    ]


def test_all_linear_is_as_in_add_lora(tmp_path):
    ours = trained(autolora.add_lora(base(), rank=3))
    autolora.save_adapter(ours, tmp_path)
    change(tmp_path, target_modules="all-linear")
    assert torch.equal(logits(autolora.load_adapter(base(), tmp_path)), logits(ours))


def test_without_safetensors(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    expected = "adapters are files of safetensors, which is not installed: pip install safetensors"
    assert refused(saved) == expected
    with pytest.raises(AutoloraError, match="which is not installed: pip install safetensors"):
        autolora.save_adapter(native(), saved)


# ---- what does not fit


def rewrite(folder, **weights):
    found = load_file(folder / WEIGHTS) | {f"{Q}.{end}": w for end, w in weights.items()}
    save_file({name: w for name, w in found.items() if w is not None}, folder / WEIGHTS)


CHANGES = {
    "it lacks {Q}.lora_A.weight": {"lora_A.weight": None},
    "it has besides {Q}.lora_B.bias": {"lora_B.bias": torch.zeros(32)},
    "{Q}.lora_A.weight is (2, 32) in the file and (3, 32) in the model": {
        "lora_A.weight": torch.zeros(2, 32)
    },
    "{Q}.lora_A.weight is torch.int8": {"lora_A.weight": torch.zeros(3, 32, dtype=torch.int8)},
    "{Q}.base_layer.weight is (1,) in the file and (32, 32) in the model": {
        "base_layer.weight": torch.ones(1)
    },
    "it lacks {Q}.lora_A.weight, {Q}.lora_B.weight; it has besides {Q}.lora_C": {
        "lora_A.weight": None,
        "lora_B.weight": None,
        "lora_C": torch.zeros(1),
    },
}


@pytest.mark.parametrize("make", [base, native])
@pytest.mark.parametrize("difference", CHANGES)
def test_weights_that_do_not_fit(difference, make, saved):
    rewrite(saved, **CHANGES[difference])
    found = difference.replace("{Q}", Q)
    assert refused(saved, make()) == f"{saved} does not fit this LlamaForCausalLM: {found}"


def test_other_layers_than_the_file_has(saved):
    message = refused(saved, native(target_modules=["q_proj", "v_proj"]))
    where = "base_model.model.model.layers.0.self_attn.v_proj"
    assert message.endswith(f": it lacks {where}.lora_A.weight, {where}.lora_B.weight and 2 more")
    message = refused(saved, native(target_modules=r".*\.1\..*q_proj"))
    assert message.endswith(f": it has besides {Q}.lora_A.weight, {Q}.lora_B.weight")


@pytest.mark.parametrize(("options", "s"), [({"alpha": 3}, "1"), ({"use_rslora": True}, "3.4641")])
def test_other_scalings_than_the_file_has(saved, options, s):
    first = "model.layers.{}.self_attn.q_proj scales by 2 in the file and by {} in the model"
    expected = ", ".join(first.format(n, s) for n in range(2))
    assert refused(saved, native(**options)).endswith(f"LlamaForCausalLM: {expected}")


def test_models_that_take_no_file(saved):
    theirs = by_peft(base(), target_modules=["q_proj"])
    assert "are PEFT's, accelerated or not; use its save_pretrained" in refused(saved, theirs)
    merged = autolora.merge(native())
    assert refused(saved, merged).endswith(" are merged; call autolora.unmerge(model) first")
    with torch.device("meta"):
        empty = base()
    with pytest.raises(
        AutoloraError, match=r"0\.self_attn\.q_proj is on the meta device; load the"
    ):
        autolora.load_adapter(empty, saved)


# ---- saving


def test_models_that_have_no_file(tmp_path):
    folder = tmp_path / "adapter"
    experts = base("mixtral").model.layers[0].mlp.experts
    wrapped = LoRAExperts(LoRAExperts(experts, "down_proj", 2, alpha=2), "gate_up_proj", 2, alpha=2)
    some_biased = nn.Sequential(
        LoRALinear(4, 4, 2, alpha=2), LoRALinear(4, 4, 2, alpha=2, lora_bias=True)
    )
    sharded = native()
    projection = sharded.model.layers[0].self_attn.q_proj
    projection.lora_A.weight.data = projection.lora_A.weight.data.flatten()[:48]
    empty = native()
    empty.model.layers[0].self_attn.q_proj.lora_B.to("meta")
    gather = r"not a whole weight \(.*\); gather the weights first$"
    for model, message in {
        base(): "this LlamaForCausalLM has no layers of autolora.add_lora",
        by_peft(base(), target_modules=["q_proj"]): "are PEFT's, accelerated or not",
        LoRALinear(4, 4, 2, alpha=2): "the model is itself a LoRALinear, and PEFT's files",
        wrapped: "the model is itself a LoRAExperts, and PEFT's files name layers of a model",
        some_biased: "lora_bias is one setting for all layers in PEFT's files",
        sharded: rf"q_proj\.lora_A\.weight is a Parameter \(48,\) on cpu, {gather}",
        empty: rf"q_proj\.lora_B\.weight is a Parameter \(32, 3\) on meta, {gather}",
    }.items():
        with pytest.raises(AutoloraError, match=message):
            autolora.save_adapter(model, folder)
    assert not folder.exists()


def test_folders_that_cannot_be_written(saved, tmp_path):
    with pytest.raises(AutoloraError, match=f"cannot write the adapter to {saved / CONFIG}: "):
        autolora.save_adapter(native(), saved / CONFIG)
    before = (saved / WEIGHTS).read_bytes()
    (saved / CONFIG).unlink()
    (saved / CONFIG).mkdir()
    with pytest.raises(AutoloraError, match=r"adapter_config\.json is a folder"):
        autolora.save_adapter(native(), saved)
    assert (saved / WEIGHTS).read_bytes() == before
    assert {path.name for path in saved.iterdir()} == {WEIGHTS, CONFIG}


@pytest.mark.parametrize("most", [0, 100, 400])  # the last has room for the weights alone
def test_a_full_disk_leaves_the_old_files(most, tmp_path):
    model = nn.Sequential(LoRALinear(4, 4, 1, alpha=1))
    autolora.save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before[WEIGHTS]) < 400 < len(before[CONFIG])
    trained(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(AutoloraError) as error:
            autolora.save_adapter(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == f"cannot write the adapter to {tmp_path}: File too large"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    autolora.save_adapter(model, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() != before[WEIGHTS]
