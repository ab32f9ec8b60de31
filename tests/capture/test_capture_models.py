"""Kinds of models: capture lists what a real training step of each asks its layers for."""

import importlib.metadata
import json

import pytest
import torch
from small_llama import SIZES, VISION
from torch import nn

import autolora
from autolora.capture.capture import capture
from autolora.capture.experts import notes_of_experts
from autolora.capture.found import at_loads
from autolora.capture.hf_config import hf_inputs_of
from autolora.capture.run import run_problems
from autolora.capture.target import Adapters, load_target
from autolora.nn.adapted import adapted_layers
from autolora.nn.adding import find_targets
from autolora.problem import Experts, Problem

SHORT = {**SIZES, "max_position_embeddings": 20}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, **SIZES}
MLA = {  # latent attention, and groups of experts
    **EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
SWITCH = {
    "model_type": "switch_transformers",
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": 4,
    "vocab_size": 128,
}


def looking(model_type, text, vision, **more):
    """A language model that is shown images."""
    return {
        "model_type": model_type,
        "image_token_id": 63,
        "image_token_index": 63,
        "text_config": {"model_type": text, "pad_token_id": 0, **SIZES},
        "vision_config": {"model_type": vision, **VISION} if vision else VISION,
        **more,
    }


# configuration → token counts of a batch of 2 × 16 tokens, or of 2 images of 16 patches
KINDS = {
    "grouped queries": ({"model_type": "llama", **SIZES}, {32}),
    "encoder and decoder": (
        {"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 128}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        {32},
    ),
    "speech": (
        {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        | {"max_source_positions": 100},
        {200, 32},
    ),
    "sound": (
        {"model_type": "wav2vec2", "conv_dim": [8, 8], "conv_kernel": [10, 3]}
        | {"conv_stride": [5, 2], "num_feat_extract_layers": 2, "vocab_size": 40}
        | {name: SIZES[name] for name in SIZES if name.startswith(("hidden", "inter", "num_a"))}
        | {"num_hidden_layers": 1},
        {30},  # two convolutions without padding leave 15 of 16 frames
    ),
    "images": ({"model_type": "vit", **VISION}, {34}),
    "images, windows merged": (
        {"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 16}
        | {"depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        {128, 32},
    ),
    "text and images, two towers": (
        {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": 16,
            "text_config": SHORT,
            "vision_config": VISION,
        },
        {32, 34, 2},
    ),
    "text and images, pooled by attention": (
        {"model_type": "siglip", "text_config": SHORT, "vision_config": VISION},
        {32, 2},
    ),
    "images among tokens": (looking("llava", "llama", "clip_vision_model"), {34, 32}),
    "images among tokens, pooled": (
        looking("gemma3", "gemma3_text", "siglip_vision_model", mm_tokens_per_image=4),
        {32, 2},
    ),
    "images among tokens, shuffled": (
        looking("idefics3", "llama", "", scale_factor=2),
        {32, 8},
    ),
    "one layer shared by all": (
        {"model_type": "albert", "embedding_size": 16, **SIZES, "num_hidden_layers": 3},
        {32},
    ),
    "mixtral": ({"model_type": "mixtral", **EXPERTS}, {32}),
    "qwen3_moe": ({"model_type": "qwen3_moe", **EXPERTS}, {32}),
    "qwen2_moe": ({"model_type": "qwen2_moe", **EXPERTS}, {32}),
    "deepseek_v3": ({"model_type": "deepseek_v3", **MLA}, {32}),
    "gpt_oss": ({"model_type": "gpt_oss", **EXPERTS}, {32}),
    "llama4": ({"model_type": "llama4_text", **EXPERTS}, {32}),
    "granitemoe": ({"model_type": "granitemoe", **EXPERTS}, {32}),
    "jetmoe": ({"model_type": "jetmoe", "kv_channels": 8, **EXPERTS}, {32}),
}

# the kinds with stacked experts: how many blocks of a mixture they have, and experts in all
STACKED = {
    "mixtral": (2, 8),
    "qwen3_moe": (2, 8),
    "qwen2_moe": (2, 8),
    "deepseek_v3": (1, 4),
    "gpt_oss": (2, 8),
    "llama4": (2, 8),
    "granitemoe": (2, 8),
    "jetmoe": (4, 16),  # mixtures of attention heads as well
}


APART = ("llama4", "jetmoe")  # experts that do not follow the interface of transformers 5
SEPARATE = ("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3")  # experts in transformers 4
transformers_version = importlib.metadata.version("transformers")


def at_every_load(layers):
    """The layers, experts' at each load: which of these a step shows depends on its numbers."""
    return {(name, each) for name, problem in layers for each in at_loads(problem)}


def captured(config, folder, **options):
    """What is captured of a configuration, and what a training step of its model asked for."""
    pytest.importorskip("transformers")
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    target = load_target(str(path), Adapters(4, **options))
    found = capture(target, device="cpu", batch_size=2, seq_len=16)
    model = autolora.add_lora(type(target.model)(target.model.config), rank=4, **options).train()
    given = hf_inputs_of(target.model).batch(2, 16)
    model(**{name: torch.randn(x.shape) if x.is_meta else x for name, x in given.items()})
    return found, {(layer.name, layer.problem) for layer in autolora.explain(model).layers}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_model(tmp_path, kind):
    config, tokens = KINDS[kind]
    found, asked = captured(config, tmp_path)
    if kind in SEPARATE and transformers_version < "5":  # its counts vary: see below
        assert found.varying
        assert all(".experts." in name for name in found.varying)
        return
    assert at_every_load(found.layers) == at_every_load(asked)
    assert {problem.tokens for problem in found.problems} == tokens
    assert found.varying == {}
    if kind in STACKED:
        blocks, experts = STACKED[kind]
        (note,) = found.notes
        assert note.startswith(f"{blocks} mixture-of-experts block{'s' * (blocks > 1)} (")
        tuned = {name for name, problem in found.layers if isinstance(problem, Experts)}
        assert len(tuned) == (0 if kind in APART or transformers_version < "5" else 2 * blocks)
        end = "get adapters on gate_up_proj and down_proj and are tuned" if tuned else "left out"
        assert f" with {experts} routed experts in stacked 3-D weights {end}" in note
    else:
        assert found.notes == []


def test_a_model_that_is_shown_an_image_larger_than_its_text(tmp_path):
    config = looking("llava", "llama", "clip_vision_model")
    config["vision_config"] = {**VISION, "image_size": 64}
    found, asked = captured(config, tmp_path)
    assert set(found.layers) == asked
    assert {problem.tokens for problem in found.problems} == {130, 128, 2 * 65}


def test_images_of_any_size_are_taken_to_have_one(tmp_path):
    config = {
        **looking("qwen2_vl", "qwen2_vl_text", ""),
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config["text_config"]["rope_parameters"] = rope
    if transformers_version < "5":
        config["text_config"]["rope_scaling"] = rope
    found, asked = captured(config, tmp_path)
    assert set(found.layers) == asked
    assert found.left == []
    assert {problem.tokens for problem in found.problems} == {2 * 32 * 32, 2 * 16 * 16, 2 * 257}
    assert found.notes == ["its images may have any size: here 448 × 448 pixels"]


def test_an_encoder_and_a_decoder_of_other_lengths():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        d_model=32, d_ff=48, d_kv=8, num_heads=4, vocab_size=128, decoder_start_token_id=0
    )
    model = autolora.add_lora(transformers.T5ForConditionalGeneration(config), rank=4)
    long, short = (torch.ones(3, length, dtype=torch.long) for length in (7, 2))
    batch = {"input_ids": long, "labels": short}
    found = run_problems(model, batch)
    model.train()(**batch)
    assert set(found.layers) == {
        (layer.name, layer.problem) for layer in autolora.explain(model).layers
    }
    tokens = {name: problem.tokens for name, problem in found.layers}
    assert tokens["encoder.block.0.layer.0.SelfAttention.q"] == 21
    assert tokens["decoder.block.0.layer.0.SelfAttention.q"] == 6
    assert tokens["decoder.block.0.layer.1.EncDecAttention.q"] == 6
    assert tokens["decoder.block.0.layer.1.EncDecAttention.k"] == 21


def test_a_layer_in_two_places_and_tied_weights():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.first = nn.Linear(8, 8)
            self.again = self.first
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            x = self.first(self.embed(ids))
            return self.head(self.again(x[:, ::2]))

    model = autolora.add_lora(Shared(), rank=2)
    ids = torch.zeros(2, 6, dtype=torch.long)
    found = run_problems(model, ids)
    first = Problem(8, 8, 12, 2, "float32", "cpu", bias=True, gradients=("A", "B"))
    again = Problem(8, 8, 6, 2, "float32", "cpu", bias=True)
    assert found.layers == [
        ("first", first),
        ("first", again),
        ("head", Problem(8, 20, 6, 2, "float32", "cpu")),
    ]
    model(ids)
    assert set(found.layers) == {(e.name, e.problem) for e in autolora.explain(model).layers}
    assert model.head.base_layer.weight is model.embed.weight


# ---- mixtures of experts


class Mixture(nn.Module):
    """The routing that most write by hand."""

    def __init__(self, width=16, experts=6, chosen=2):
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.SiLU(), nn.Linear(24, width))
            for _ in range(experts)
        )
        self.shared = nn.Linear(width, width)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(self.chosen, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == number)
            if rows.numel() == 0:
                continue
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        return (out + self.shared(flat)).view(x.shape)


class ByMask(Mixture):
    def forward(self, x):
        scores = self.gate(x).sigmoid()
        out = self.shared(x)
        for number, expert in enumerate(self.experts):
            if (mask := scores[..., number] > 0.5).any():
                out[mask] += expert(x[mask]) * scores[mask][:, number, None]
        return out


class BySorting(Mixture):
    """Tokens are sorted by expert, and cut where the next one's begin."""

    def forward(self, x):
        flat = x.flatten(0, -2)
        chosen = self.gate(flat).argmax(-1)
        order = chosen.argsort()
        counts = torch.bincount(chosen, minlength=len(self.experts)).tolist()
        parts = [
            expert(part)
            for expert, part in zip(self.experts, flat[order].split(counts), strict=True)
        ]
        return self.shared(torch.cat(parts)[order.argsort()].view(x.shape))


class ByPool(Mixture):
    """Each expert chooses its tokens: no data decide how many."""

    def forward(self, x):
        flat = x.flatten(0, -2)
        out = self.shared(flat)
        best = self.gate(flat).topk(3, dim=0).indices
        for number, expert in enumerate(self.experts):
            out = out.index_add(0, best[:, number], expert(flat[best[:, number]]))
        return out.view(x.shape)


def mixture(kind, blocks=2, **options):
    model = nn.Sequential(nn.Embedding(50, 16), *(kind(**options) for _ in range(blocks)))
    return autolora.add_lora(model, rank=2)


@pytest.mark.parametrize("kind", [Mixture, ByMask, BySorting])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_experts_get_several_counts(kind, device):
    model = mixture(kind).to(device)
    found = run_problems(model, torch.zeros(4, 16, dtype=torch.long, device=device), device="cpu")
    layers = {layer.name for layer in adapted_layers(model)}
    experts = {name for name in layers if ".experts." in name}
    assert found.varying.keys() == experts
    tuned = {}
    for name, problem in found.layers:
        tuned.setdefault(name, set()).add(problem.tokens)
    for name, counts in tuned.items():
        if name in experts:
            least, most = found.varying[name]
            assert min(counts) <= max(least / 2, 1)
            assert max(counts) >= min(2 * most, 64)
            assert max(counts) == 64 or max(counts) & (max(counts) - 1) == 0
        else:
            assert counts == {64}
    assert found.left == []
    first = [problem for name, problem in found.layers if name == "1.experts.0.0"]
    assert {problem.gradients for problem in first} == {("A", "B")}  # fed by the embedding alone


def test_every_count_that_training_shows_is_answered():
    model = mixture(Mixture)
    found = run_problems(model, torch.zeros(4, 64, dtype=torch.long))
    for seed in range(5):
        torch.manual_seed(seed)
        model(torch.randint(50, (4, 64)))
    counts = {}
    for problem in found.problems:
        counts.setdefault(problem.at(1), set()).add(problem.tokens)
    for layer in autolora.explain(model).layers:
        known = counts[layer.problem.at(1)]
        assert min(known) <= layer.problem.tokens <= max(known)


def test_experts_that_get_no_token_get_the_same_counts():
    model = mixture(Mixture, blocks=1, experts=40)
    found = run_problems(model, torch.zeros(1, 12, dtype=torch.long))
    assert len(found.varying) == 80
    assert found.left == []
    assert {found.uses[problem] for problem in found.problems if problem.out_features == 24} == {40}


def test_experts_that_choose_their_tokens_do_not_vary():
    found = run_problems(mixture(ByPool), torch.zeros(4, 16, dtype=torch.long))
    assert found.varying == {}
    assert {p.tokens for n, p in found.layers if "experts" in n} == {3}


UNNAMED = "left out: target_modules must name these weights"


@pytest.mark.parametrize(
    ("kind", "target_modules", "noted"),
    [
        ("mixtral", ["q_proj", "v_proj"], ""),
        ("mixtral", ["q_proj", "w1", "w3"], UNNAMED),  # PEFT has new names for these
        ("qwen3_moe", ["q_proj", "down_proj"], "get adapters on down_proj and are tuned"),
        ("qwen3_moe", ["q_proj", "experts.gate_proj"], UNNAMED),
        ("qwen3_moe", ["q_proj", "experts"], UNNAMED),
        ("qwen3_moe", ["q_proj", "gate"], ""),  # the router
        ("qwen3_moe", r".*\.(q|up)_proj", UNNAMED),
        ("qwen3_moe", r".*self_attn\..*", ""),
        ("qwen3_moe", r".*\.experts\..*_proj", "get adapters on gate_up_proj and down_proj"),
        ("gpt_oss", ["q_proj", "experts.gate_up_proj"], "get adapters on gate_up_proj and are"),
        ("llama4", ["q_proj", "experts.gate_up_proj"], "left out: LoRA on these stays on PEFT's"),
    ],
)
def test_stacked_experts_are_noted_where_the_targets_include_them(
    tmp_path, kind, target_modules, noted
):
    if kind != "llama4" and transformers_version < "5":
        pytest.skip("its experts do not follow the interface in this version of transformers")
    found, asked = captured(KINDS[kind][0], tmp_path, target_modules=target_modules)
    assert at_every_load(found.layers) == at_every_load(asked)
    assert len(found.notes) == bool(noted)
    assert noted in "".join(found.notes)


@pytest.mark.parametrize(
    ("options", "lack"),
    [({"dropout": 0.1}, "dropout"), ({"dora": True}, "DoRA"), ({"lora_bias": True}, "bias")],
)
@pytest.mark.skipif(transformers_version < "5", reason="experts without the interface")
def test_experts_are_left_out_of_adapters_that_they_cannot_have(tmp_path, warnings, options, lack):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KINDS["qwen3_moe"][0]), encoding="utf-8")
    found = capture(load_target(str(path), Adapters(4, **options)), device="cpu")
    assert not any(isinstance(problem, Experts) for problem in found.problems)
    assert found.notes == []
    assert [f"have no {lack}" in warning for warning in warnings()] == [True]
    for named in (["q_proj", "down_proj"], r".*_proj"):
        with pytest.raises(autolora.AutoloraError, match=f"have no {lack}, as in PEFT: leave out"):
            load_target(str(path), Adapters(4, target_modules=named, **options))


def test_stacked_experts_that_are_written_by_hand_are_known_by_their_router():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(8, 3, bias=False)
            self.experts = nn.Module()
            self.experts.weight = nn.Parameter(torch.zeros(3, 16, 8))

    def noted(model):
        return notes_of_experts(model, "all-linear", find_targets(model, "all-linear"))

    others = [nn.Conv1d(3, 8, 3), nn.Linear(8, 3)]  # (8, 3, 3) and (3, 8)
    plain = nn.Module()
    plain.place, plain.first = nn.Parameter(torch.zeros(1, 9, 8)), nn.Linear(8, 1)
    assert noted(nn.Sequential(*others, plain)) == []
    (note,) = noted(nn.Sequential(Experts(), *others))
    assert note.startswith("1 mixture-of-experts block (0) with 3 routed experts")


def test_a_mixture_of_transformers_has_a_note(tmp_path):
    found, asked = captured(SWITCH, tmp_path)
    experts = {name for name, _ in found.layers if ".experts." in name}
    assert set(found.varying) == experts
    assert len(experts) == 16
    assert {each for each in found.layers if each[0] not in experts} == {
        each for each in asked if each[0] not in experts
    }
    (note,) = found.notes
    assert note.startswith("16 layers get as many tokens as the data send them")


def test_tokens_that_the_user_names_hold_for_experts_too(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SWITCH), encoding="utf-8")
    pytest.importorskip("transformers")
    found = capture(load_target(str(path), Adapters(4)), device="cpu", tokens=[24])
    assert {problem.tokens for problem in found.problems} == {24}
    assert (found.varying, found.notes) == ({}, [])


def test_a_branch_that_data_decide_is_seen_on_both_ways():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.ways = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))

        def forward(self, ids):
            x = self.embed(ids)
            for one, other in zip(self.ways[::2], self.ways[1::2], strict=True):
                x = one(x) if x.mean() > 0 else other(x)
            return x

    found = run_problems(autolora.add_lora(Branch(), rank=2), torch.zeros(2, 3, dtype=torch.long))
    seen = [name for name, _ in found.layers]
    assert len(set(seen)) > 6  # one run shows exactly six
    assert {problem.tokens for problem in found.problems} == {6}
    assert found.varying == {}
    assert {name for name, _ in found.left} == {f"ways.{n}" for n in range(12)} - set(seen)
