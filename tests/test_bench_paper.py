"""The benchmark of the paper's models, from one end to the other on a tiny size."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    return importlib.import_module("bench_paper")


def test_a_row_is_timed_in_every_way(tool, monkeypatch, tmp_path, capsys):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    tiny = replace(tool.ROWS[2], dtype="float32", rank=4, sizes=sizes, vocabulary=512)
    monkeypatch.setattr(tool, "ROWS", [tiny])
    path = tmp_path / "paper.json"
    options = ["--depth", "1", "--batch", "1", "--length", "8", "--rounds", "2"]
    monkeypatch.setattr(
        sys, "argv", ["bench_paper.py", *options, "--effort", "quick", "--json", str(path)]
    )
    tool.main()
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (row["depth"], row["of_blocks"], row["paper_saved"]) == (1, 24, 0.1781)
    ways = row["ways"]
    assert list(ways) == ["peft", "autolora", "flops", "bare"]
    assert ways["peft"]["saved"] == ways["peft"]["overhead_removed"] == 0
    assert ways["bare"]["overhead_removed"] == 1
    for way in ("autolora", "flops"):
        assert ways[way]["loss"] == pytest.approx(ways["peft"]["loss"], rel=1e-5)
        assert 0 < ways[way]["saved_bytes"] <= ways["peft"]["saved_bytes"]
    assert all(each["chosen"] and each["by_flops"] for each in row["graphs"]["autolora"].values())
    told = capsys.readouterr().out
    assert "1 of 24 blocks (depth cut)" in told
    assert "17.81%" in told


def test_the_rows_have_the_sizes_that_are_published(tool):
    counts = {}
    for row in tool.ROWS:
        kind, config = row.made
        words = {"vocab_size": row.vocabulary} if row.vocabulary else {}
        with tool.torch.device("meta"):
            model = kind(config(num_hidden_layers=row.blocks, **words, **row.sizes))
        counts[row.model] = sum(each.numel() for each in model.parameters()) / 1e6
    expected = {
        "OPT-350M": 331,
        "RoBERTa-large": 355,
        "Llama-250M": 248,
        "ViT-base": 87,
        "RoBERTa-base": 125,
        "Llama2-7b": 6738,
    }
    assert counts == {name: pytest.approx(count, rel=0.01) for name, count in expected.items()}
