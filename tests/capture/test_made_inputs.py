"""Models of transformers get inputs made from their configuration, where no one has written any."""

import random
import runpy

import numpy as np
import pytest
import torch
from small_llama import SIZES, VISION
from torch import nn

import autolora
from autolora.capture.capture import capture, model_problems
from autolora.capture.hf_config import hf_inputs_of
from autolora.capture.target import Adapters, load_target
from autolora.nn.siblings.family import families

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TEXT = {**SIZES, "max_position_embeddings": 40, "pad_token_id": 0}
BOTH = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
# class and configuration → token counts of a batch of 2 × 16 tokens, or of 2 images or sounds
MODELS = {
    "text": ("LlamaForCausalLM", {"model_type": "llama", **TEXT}, {32}),
    "text, pooled": ("BertForSequenceClassification", {"model_type": "bert", **TEXT}, {32, 2}),
    "vision": ("ViTForImageClassification", {"model_type": "vit", **VISION}, {2 * 17, 2}),
    "speech": (
        "WhisperForConditionalGeneration",
        {"model_type": "whisper", **BOTH, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
        | {"decoder_ffn_dim": 48, "vocab_size": 64, "max_source_positions": 100}
        | {"pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
        {2 * 100, 32},
    ),
    "sound": (
        "Wav2Vec2ForCTC",
        {"model_type": "wav2vec2", "conv_dim": [8, 8], "conv_kernel": [10, 3], "layerdrop": 0}
        | {"conv_stride": [5, 2], "num_feat_extract_layers": 2, **TEXT},
        {2 * 15},
    ),
    "encoder and decoder": (
        "T5ForConditionalGeneration",
        {"model_type": "t5", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4}
        | {"num_layers": 2, "vocab_size": 64, "decoder_start_token_id": 0},
        {32},
    ),
    "text and images, two towers": (
        "CLIPModel",
        {"model_type": "clip", "projection_dim": 16, "text_config": TEXT, "vision_config": VISION},
        {32, 2 * 17, 2},
    ),
    "images among tokens": (
        "LlavaForConditionalGeneration",
        {
            "model_type": "llava",
            "image_token_id": 63,
            "image_token_index": 63,
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
        {2 * 17, 32},
    ),
    "images of any size among tokens": (
        "Qwen2VLForConditionalGeneration",
        {
            "model_type": "qwen2_vl",
            "image_token_id": 63,
            "text_config": {"model_type": "qwen2_vl_text", **SIZES, "pad_token_id": 0}
            | {"rope_parameters": ROPE, "rope_scaling": ROPE},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
        },
        {2 * 32 * 32, 2 * 16 * 16, 2 * 257},
    ),
}
SIZED = "its images may have any size: here 448 × 448 pixels"
BUILD = """
import peft, transformers
config = {config}
def build_model():
    model = transformers.{kind}(transformers.{kind}.config_class(**config))
    return {adapted}
"""
ADAPTED = {
    "PEFT": "peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules='all-linear'))",
    "own": "__import__('autolora').add_lora(model, rank=4)",
    "none": "model",
}


@pytest.fixture
def write(tmp_path):
    """Writes a model file that holds a function for a model, and nothing else."""

    def write(name, adapters="PEFT", more="", **changes):
        kind, config, _ = MODELS[name]
        given = {key: value for key, value in (config | changes).items() if key != "model_type"}
        path = tmp_path / "model.py"
        source = BUILD.format(config=given, kind=kind, adapted=ADAPTED[adapters])
        path.write_text(source + more, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def build(write):
    """Builds a model for training."""

    def build(*what, **changes):
        return runpy.run_path(write(*what, **changes))["build_model"]().train()

    return build


def trained(model, batch_size=2, seq_len=16):
    """What a step of a model asks of each of its layers."""
    if isinstance(model, peft.PeftModel):
        autolora.accelerate(model)
    given = hf_inputs_of(model).batch(batch_size, seq_len)
    model(**{name: torch.randn(x.shape) if x.is_meta else x for name, x in given.items()})
    return {(layer.name, layer.problem) for layer in autolora.explain(model).layers}


@pytest.mark.parametrize("adapters", ["PEFT", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_needs_no_example_inputs(write, name, adapters):
    path = write(name, adapters)
    found = capture(load_target(path, Adapters()), device="cpu", batch_size=2, seq_len=16)
    assert found.notes == ([SIZED] if "any size" in name else [])
    assert found.left == []
    tokens = {problem.tokens for _, problem in found.layers}
    head = {2} if (name, adapters) == ("vision", "own") else set()  # which has no adapters
    assert tokens == MODELS[name][2] - head
    assert set(found.layers) == trained(runpy.run_path(path)["build_model"]())


@pytest.mark.parametrize("adapters", ["PEFT", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_of_a_live_model_are_seen(build, name, adapters):
    model = build(name, adapters)
    if adapters == "PEFT":
        autolora.accelerate(model)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    hooks = {path: len(module._forward_hooks) for path, module in model.named_modules()}
    found = model_problems(model, [24, 77])
    assert autolora.explain(model).layers == []  # no layer has run
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == before
    assert {path: len(module._forward_hooks) for path, module in model.named_modules()} == hooks
    assert (found.notes, found.left, found.sizes) == ([], [], (24, 77))
    asked = trained(model)
    assert set(found.layers) == {(path, p.at(n)) for path, p in asked for n in (24, 77)}
    assert set(found.siblings) == set(families(model))


def test_chance_is_the_same_before_and_after(build):
    """Of a model that draws layers to drop by torch and frames to mask by NumPy."""

    def states():
        _, numbers, place, *_ = np.random.get_state()  # noqa: NPY002
        return bytes(torch.get_rng_state()), random.getstate(), bytes(numbers), place

    model = build("sound", layerdrop=0.5, num_hidden_layers=8)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = states()
        found.append(model_problems(model, [8]))
        assert states() == before
    assert found[0].layers == found[1].layers
    assert len({name for name, _ in found[0].layers}) == 8 * 6 + 2
    assert " layers, such as " in found[0].notes[0]


def test_adapters_that_the_command_adds(write):
    target = load_target(write("text", "none"), Adapters(4, dtype=torch.bfloat16))
    found = capture(target, device="cpu", batch_size=2, seq_len=16)
    assert {(p.tokens, p.rank, p.dtype) for _, p in found.layers} == {(32, 4, "bfloat16")}
    gradients = [p.gradients for name, p in found.layers if ".layers.0." in name]
    assert gradients == [("A", "B")] * 3 + [("X", "A", "B")] * 4
    assert len(found.layers) == 14
    assert (found.notes, found.left) == ([], [])


def test_tuning_a_live_model_measures_what_training_asks_for(build):
    model = build("text")
    autolora.accelerate(model)
    result = autolora.tune(model, tokens=2 * 16, effort="quick")
    assert len(result.records) == len({record.problem for record in result.records})
    single = {record.problem for record in result.records if not record.problem.parts}
    assert single == {problem for _, problem in trained(model)}
    assert {layer.reason for layer in autolora.explain(model).layers} == {"exact"}
    assert autolora.tune(model, tokens=2 * 16, effort="quick").records == []


# ---- wrappers of a model


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_not_compiled_for_it_and_is_later(build, in_place):
    model = build("text")
    expected = {problem for _, problem in model_problems(model, [8]).layers}
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    if in_place:
        model.compile(backend=backend, fullgraph=True)
    else:
        model = torch.compile(model, backend=backend, fullgraph=True)
    found = model_problems(model, [8])
    assert {problem for _, problem in found.layers} == expected
    assert {name for name, _ in found.layers} <= {name for name, _ in model.named_modules()}
    assert compiled == []
    model(input_ids=torch.ones(2, 8, dtype=torch.long))
    assert compiled


@pytest.mark.parametrize("wrapper", ["tuner", "injected", "mixed"])
def test_other_ways_to_add_peft(build, wrapper):
    model, config = build("text", "none"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    if wrapper == "tuner":
        model = peft.LoraModel(model, config, "default")
    elif wrapper == "mixed":
        model = peft.get_peft_model(model, config, mixed=True)
    else:
        model.add_adapter(config)
    gradients = [problem.gradients for _, problem in model_problems(model, [8]).layers]
    assert gradients == [("A", "B")] * 2 + [("X", "A", "B")] * 2


def test_layers_that_run_one_by_one_have_no_siblings(build):
    model = build("text")
    assert len(model_problems(model, [8]).siblings) == 4
    autolora.accelerate(model, siblings=False)
    found = model_problems(model, [8])
    assert found.siblings == []
    assert len(found.layers) == 14


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_needs_its_gradients_too(build, reentrant):
    model = build("text")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    autolora.accelerate(model)
    found = model_problems(model, [32])
    assert {problem.gradients for _, problem in found.layers} == {("X", "A", "B")}
    model(**hf_inputs_of(model).batch(2, 16)).logits.sum().backward()
    asked = {(layer.name, layer.problem) for layer in autolora.explain(model).layers}
    assert set(found.layers) <= asked


def test_a_kernel_of_attention_that_needs_a_gpu(build):
    model = build("text")
    expected = model_problems(model, [8]).layers
    config = model.get_base_model().config
    config._attn_implementation_internal = "flash_attention_2"
    found = model_problems(model, [8])
    assert (found.layers, found.notes) == (expected, [])
    assert config._attn_implementation == "flash_attention_2"


def test_a_model_placed_by_accelerate(build):
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("text")
    expected = model_problems(model, [8])
    hook = hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
    hooks.add_hook_to_module(model.get_base_model(), hook)
    found = model_problems(model, [8])
    assert (found.layers, found.notes) == (expected.layers, [])


def test_quantised_layers(build):
    pytest.importorskip("bitsandbytes")
    from autolora.timing.quantise import quantised

    model = build("text", "none")
    for module in model.model.layers.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, quantised(child.weight.detach(), None, "nf4"))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    found = model_problems(peft.get_peft_model(model, config), [8])
    assert found.notes == []
    assert {problem.layout for _, problem in found.layers} == {"nf4"}
    assert {problem.gradients for name, problem in found.layers if ".0.self_attn." in name} == {
        ("A", "B")
    }


# ---- what made inputs cannot show


def test_a_live_model_that_cannot_be_run_is_tuned_as_assumed(build, warnings):
    model = build("text")

    def forward(*args, **kwargs):
        raise RuntimeError("it wants numbers")

    model.get_base_model().model.forward = forward
    found = model_problems(model, [8])
    (note,) = found.notes
    assert note == (
        "the model cannot be run on inputs made from its configuration (RuntimeError: it wants "
        "numbers): which layers need the gradient of their input is assumed"
    )
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    assert [p.gradients for name, p in found.layers if name == path] == [
        ("A", "B"),
        ("X", "A", "B"),
    ]
    result = autolora.tune(model, tokens=8, effort="estimate")
    assert {estimate.problem for estimate in result.estimates} == set(found.problems)
    assert warnings() == [note]


def test_a_file_whose_model_cannot_be_run_says_why(write):
    target = load_target(write("text, pooled"), Adapters())
    assert target.seq_len == 40  # its positions end there
    found = capture(target, device="cpu")
    assert {problem.tokens for _, problem in found.layers} == {4 * 40, 4}
    found = capture(target, device="cpu", seq_len=64)
    (note,) = found.notes
    assert note.startswith(
        "model.py has no example_inputs(batch_size, seq_len), and the model cannot be run on "
        "inputs made from its configuration (RuntimeError: "
    )
    assert note.endswith("): every layer is taken to get 256 tokens, 4 sequences of 64")
    assert {problem.tokens for _, problem in found.layers} == {256}
    found = capture(target, device="cpu", seq_len=64, tokens=[8])
    assert found.notes[0].endswith("): which layers need the gradient of their input is assumed")
    assert {problem.tokens for _, problem in found.layers} == {8}


def test_example_inputs_that_cannot_be_run_are_replaced(write):
    more = "def example_inputs(batch_size, seq_len): return {'no_such_argument': 1}"
    found = capture(load_target(write("text", more=more), Adapters()), device="cpu", seq_len=8)
    (note,) = found.notes
    assert note.startswith("the model cannot be run without its numbers (ValueError: ")
    assert note.endswith("): it is run on inputs made from its configuration")
    assert {problem.tokens for _, problem in found.layers} == {4 * 8}
    assert len(found.layers) == 14


def test_layers_that_made_inputs_do_not_reach(write):
    more = """
without = build_model
def build_model():
    model = without()
    model.model.spare = __import__("torch").nn.Linear(32, 48)
    return model
"""
    path = write("text", "none", more)
    model = peft.get_peft_model(
        runpy.run_path(path)["build_model"](),
        peft.LoraConfig(r=4, target_modules=["spare", "q_proj"]),
    )
    found = model_problems(model, [8, 16])
    (note,) = found.notes
    assert note == (
        "layer base_model.model.model.spare: not called in a run on inputs made from the "
        "configuration; how it is called in training is assumed"
    )
    assert found.left == []
    spare = [problem for _, problem in found.layers if problem.out_features == 48]
    assert {(p.tokens, p.gradients) for p in spare} == {
        (tokens, gradients) for tokens in (8, 16) for gradients in (("A", "B"), ("X", "A", "B"))
    }
    assert len(found.layers) == 2 * (2 + 2)
    found = capture(load_target(path, Adapters(4)), device="cpu", batch_size=2, seq_len=8)
    assert "layer model.spare: not called" in found.notes[0]
    assert {problem.tokens for _, problem in found.layers} == {16}
    assert found.left == []
