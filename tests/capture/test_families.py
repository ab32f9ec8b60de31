"""Layers with one X are found in models of many architectures, without knowing them."""

from collections import Counter

import pytest
import torch

import autolora
from autolora.capture.capture import model_problems
from autolora.capture.siblings import families_of, problem_of_siblings
from autolora.problem import COMPILED, Problem, Siblings

transformers = pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
QKV, MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
BERT = ("query", "key", "value")
# configuration and class of the model, its sizes, and the families with their number
ARCHITECTURES = {
    "Llama": ("LlamaForCausalLM", GROUPED, {QKV: 2, MLP: 2}),
    "Mistral": ("MistralForCausalLM", GROUPED, {QKV: 2, MLP: 2}),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED, {QKV: 2, MLP: 2}),
    "Gemma": ("GemmaForCausalLM", {**GROUPED, "head_dim": 8}, {QKV: 2, MLP: 2}),
    "Falcon": ("FalconForCausalLM", TEXT, {("query_key_value", "dense_h_to_4h"): 2}),
    "Phi": ("PhiForCausalLM", TEXT, {(*QKV, "fc1"): 2}),
    "GPTNeoX": ("GPTNeoXForCausalLM", TEXT, {}),
    "OPT": (
        "OPTForCausalLM",
        {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32},
        {QKV: 2},
    ),
    "Bert": ("BertForMaskedLM", TEXT, {BERT: 2}),
    "Roberta": ("RobertaForMaskedLM", TEXT, {BERT: 2}),
    "ViT": ("ViTForImageClassification", {**TEXT, "image_size": 32, "patch_size": 8}, None),
    "T5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
        {("q", "k", "v"): 4, ("k", "v"): 2},
    ),
    "Whisper": (
        "WhisperForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 64,
            "max_source_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        None,
    ),
}


def adapted(kind, sizes):
    with torch.device("meta"):
        model = getattr(transformers, kind)
        made = model(model.config_class(**sizes))
    return autolora.add_lora(made, rank=2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_families_of_architectures(name):
    kind, sizes, expected = ARCHITECTURES[name]
    found = model_problems(adapted(kind, sizes), [8], device="cpu")
    families = Counter(
        tuple(path.rpartition(".")[2] for path in names) for names in dict(found.families)
    )
    if expected is not None:
        assert families == expected
    else:  # whose layers have other names in other versions of transformers
        assert {len(names) for names in families} in ({3}, {2, 3})


def problem(out_features=16, **changes):
    return Problem(24, out_features, 8, 2, "float32", "cpu", **changes)


def test_the_problems_of_families():
    layers = [("a.q", problem()), ("a.k", problem(8)), ("a.v", problem(8)), ("a.o", problem(24))]
    ((names, found),) = families_of(layers, [("a.q", "a.k", "a.v")])
    assert names == ("a.q", "a.k", "a.v")
    assert found == Siblings.of([problem(), problem(8), problem(8)])
    assert list(families_of(layers, [("a.q", "a.q")])) == []
    assert list(families_of(layers, [("a.q", "a.unknown")])) == []
    twice = [*layers, *((name, each.at(16)) for name, each in layers)]
    assert [p.tokens for _, p in families_of(twice, [("a.q", "a.k")])] == [8, 16]


def test_siblings_that_run_one_by_one_have_no_problem():
    assert problem_of_siblings([problem(), problem(8)]) is not None
    assert problem_of_siblings([problem(), problem(8, dropout=True)]) is None
    compiled = [problem(mode=COMPILED), problem(8, mode=COMPILED)]
    assert problem_of_siblings(compiled).mode == COMPILED
    assert problem_of_siblings([problem(mode=COMPILED), problem(8)]) is None
