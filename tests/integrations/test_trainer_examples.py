"""The examples of trainers in docs/training.md, and what they say of the output."""

from collections import Counter

import pytest
import torch
from documents import PAGES, blocks
from trainers import llama, rows, settings
from transformers import Trainer, TrainingArguments

import autolora
from autolora.cache.records.payback import Payback
from autolora.integrations.usage import Usage

PAGE = PAGES["docs/training.md"]
TRAINER = PAGE.split("## In the Trainer")[1].split("\n## ")[0]


def test_the_callback(tmp_path):
    args = TrainingArguments(**settings(tmp_path))
    names = {"Trainer": Trainer, "model": llama(), "args": args, "data": rows()}
    (block,) = blocks(TRAINER, "python")
    exec(block, names)
    last = names["trainer"].state.log_history[-2]
    assert {"autolora/measured_share", "autolora/saved_seconds"} <= last.keys()
    assert all(f"`{key}`" in TRAINER for key in last if key.startswith("autolora/"))


def test_the_account_reads_as_it_is_written():
    usage = Usage(210, Counter({"exact": 1_680, "miss": 840}), saved_ns=1.6e9)
    (block,) = blocks(PAGE, "text")
    first, second = block.splitlines()
    assert first == f"autolora: {Payback(15.0, 0.201)}"
    assert second == f"autolora: 210 LoRA layers of 1 model accelerated; {usage}"


@pytest.mark.parametrize("first", ["accelerate", "prepare"])
def test_the_loop_of_accelerate(first, tmp_path):
    import accelerate

    def losses(*, fast):
        loop, model = accelerate.Accelerator(cpu=True), llama()
        if fast and first == "accelerate":
            autolora.accelerate(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        data = torch.utils.data.DataLoader(rows(8), batch_size=2)
        model, optimizer, data = loop.prepare(model, optimizer, data)
        if fast and first == "prepare":
            autolora.accelerate(model)
        found = []
        for batch in data:
            loss = model(**batch).loss
            loop.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found, model

    plain, _ = losses(fast=False)
    tuned, model = losses(fast=True)
    assert tuned == pytest.approx(plain, rel=1e-5)
    assert len(autolora.explain(model).layers) == 14
