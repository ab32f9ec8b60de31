"""The benchmark of other implementations, from one end to the other on tiny sizes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")


@pytest.fixture
def tool(monkeypatch):
    tool = importlib.import_module("bench_peers")
    peers = importlib.import_module("common.peers")
    monkeypatch.setattr(tool, "SHAPES", [(16, 24, 40)])
    speeds = importlib.import_module("common.limit").Speeds({"float32": 10.0}, 10.0)
    monkeypatch.setattr(tool, "speeds_of", lambda device, dtype: speeds)

    def wrong(linear, rank, alpha):
        layer = Plain(linear, rank, 1.5 * alpha)
        return layer, layer.A, layer.B

    def right(linear, rank, alpha):
        layer = Plain(linear, rank, alpha)
        return layer, layer.A, layer.B

    monkeypatch.setitem(tool.PEERS, "right", peers.Peer("torch", ("torch",), right))
    monkeypatch.setitem(tool.PEERS, "wrong", peers.Peer("torch", ("torch",), wrong))
    monkeypatch.setitem(tool.PEERS, "absent", peers.Peer("absent_peer", ("absent-peer",), right))
    monkeypatch.setattr(tool, "WAYS", (*tool.WAYS, "right", "wrong", "absent"))
    return tool


class Plain(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scaling = linear, alpha / rank
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.A.t() @ self.B.t())


def rows_of(tool, monkeypatch, tmp_path, *options):
    path = tmp_path / "peers.json"
    common = ["--regime", "float32", "--rank", "4", "--rounds", "3", "--effort", "quick"]
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *common, *options, "--json", str(path)])
    tool.main()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["way"]: row for row in rows}


def test_a_layer_is_timed_in_every_way(tool, monkeypatch, tmp_path, capsys):
    ways = ["autolora", "fewest FLOPs", "forward, then backward", "bare"]
    options = ["--subject", "layer", "--paper-seconds", "0", "--steps", "--way", *ways]
    rows = rows_of(tool, monkeypatch, tmp_path, *options, "right", "wrong", "absent", "Unsloth")
    assert [way for way, row in rows.items() if "ms" in row] == [
        "PEFT",
        *ways,
        "right",
        "wrong",
    ]
    assert {way for way, row in rows.items() if not row.get("exact", True)} == {"wrong"}
    assert rows["right"]["differs"] < 1e-5 < 1e-2 < rows["wrong"]["differs"]
    assert rows["absent"]["reason"] == "is not installed"
    assert rows["Unsloth"]["reason"] == "runs on cuda only"
    for way in ("PEFT", "autolora", "right"):
        row = rows[way]
        assert row["over_limit"] == pytest.approx(row["ms"]["median"] / row["limit_ms"])
    assert "limit_ms" not in rows["bare"]
    (winner,) = rows["autolora"]["graphs"].values()
    assert bool(rows["autolora"]["steps"]) == (winner != "reference")
    assert "computes something else" in capsys.readouterr().out


def tiny_llama(batch, length):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **counts))
    return model, [torch.randint(0, 64, (batch, length))]


def test_a_model_is_timed_with_siblings(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "llama", tiny_llama)
    options = ["--subject", "model", "--tokens", "8", "--way", "autolora", "autolora, siblings"]
    rows = rows_of(tool, monkeypatch, tmp_path, *options, "right", "bare")
    assert list(rows) == ["PEFT", "autolora", "autolora, siblings", "right", "bare"]
    assert all(row["exact"] and row["ms"]["median"] > 0 for row in rows.values())


def test_a_peer_that_cannot_be_installed_says_why(tool, monkeypatch, tmp_path):
    peers = importlib.import_module("common.peers")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(peers.Missing, match="absent-peer"):
        peers.environment(tmp_path / "environments", tool.PEERS["absent"])


@pytest.mark.parametrize("name", ["loralib", "LyCORIS", "litgpt", "NeMo Automodel"])
def test_a_peer_that_is_here_is_exact(tool, monkeypatch, tmp_path, name):
    if not tool.PEERS[name].is_here:
        pytest.skip(f"{name} is not installed")
    rows = rows_of(tool, monkeypatch, tmp_path, "--subject", "layer", "--way", name)
    assert rows[name]["exact"]
