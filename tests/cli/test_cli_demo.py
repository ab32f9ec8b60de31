"""``autolora demo``."""

import re
from pathlib import Path

import pytest
import torch

from autolora.cache.files.paths import search_path
from autolora.cli import demo
from autolora.cli.demo_model import Shape


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(demo, "_SHAPE", Shape(hidden=32, ffn=48, layers=2, heads=2, vocabulary=16))
    monkeypatch.setattr(demo, "LENGTH", 16)


def test_demo(autolora, small_demo, tmp_path):
    completed = autolora("demo", "--steps", "3", "--rank", "2", "--device", "cpu")
    assert completed.code == 0
    assert "One training step, the median of 3" in completed.out
    assert "within the rounding of float32" in completed.out
    assert "4 problems" not in completed.out
    assert re.search(r"tuned +\S+ [mµ]s", completed.out)
    assert not search_path()[0].exists()  # the user's cache is left alone


def test_demo_json(autolora, small_demo):
    document = autolora("demo", "--steps", "2", "--dtype", "bf16", "--device", "cpu", "--json").json
    assert document["equal"] is True
    assert len(document["losses"]["tuned"]) == len(document["losses"]["reference"])
    assert document["losses"]["tuned"][-1] < document["losses"]["tuned"][0]
    assert document["speedup"] > 0
    kinds = [record["problem"].get("kind") for record in document["tuning"]["records"]]
    assert (kinds.count(None), kinds.count("siblings")) == (4, 3)


def test_demo_models_with_equal_graphs_stay_equal(small_demo):
    torch.manual_seed(0)
    shape = demo._SHAPE
    bare = demo.Llama(shape)
    one = demo.add_lora(demo.copy.deepcopy(bare), rank=2, target_modules=demo.TARGETS)
    runs = demo._runs(bare, one, Path("nowhere.json"), torch.device("cpu"))  # all misses: reference
    demo._train(runs, 2, torch.device("cpu"))
    assert [a.item() for a in runs[0].losses] == [b.item() for b in runs[1].losses]
    assert all(parameter.grad is None for parameter in bare.parameters())


@pytest.mark.parametrize(
    ("speedup", "noise", "words"),
    [
        (1.30, 0.01, "Tuned training is 1.30x as fast (± 0.02); 50 % of the time"),
        (1.03, 0.02, "No difference in speed"),
        (0.98, 0.02, "No difference in speed"),
        (0.90, 0.01, "The tuned graphs are slower here: 0.90x"),
    ],
)
def test_the_demo_is_honest(speedup, noise, words):
    compared = demo.Comparison(
        reference_ns=2e6,
        tuned_ns=2e6 / speedup,
        bare_ns=1e6,
        speedup=speedup,
        noise=noise,
        overhead_removed=0.5,
        first_loss=1.0,
        last_loss=0.5,
        largest_difference=0.0,
        equal=True,
    )
    assert demo._verdict(compared).startswith(words)
