"""``autolora explain``."""

from pathlib import Path
from textwrap import dedent

import pytest
from commands import MODEL, QUICK


def test_explain_before_and_after_tuning(say):
    options = ("--rank", "2", "--batch-size", "2", "--seq-len", "8")
    said = say("explain", "model.py", *options)
    assert said.code == 0
    assert "not tuned, chosen by FLOPs and bytes" in said.out
    assert f"To tune them: autolora tune model.py {' '.join(options)}" in said.out
    say("tune", "model.py", *QUICK)
    said = say("explain", "model.py", *options)
    assert "2 layers: 2 exact." in said.out
    assert "To tune" not in said.out
    layers = say("explain", "model.py", *options, "--json").json["layers"]
    assert [(layer["name"], layer["reason"]) for layer in layers] == [
        ("1", "exact"),
        ("3", "exact"),
    ]
    assert layers[0]["problem"]["tokens"] == 16
    near = say("explain", "model.py", *options[:-1], "9", "--json").json["layers"]
    assert {layer["reason"] for layer in near} == {"nearest"}


def test_explain_groups_equal_layers(say):
    Path("deep.py").write_text(
        dedent("""
        import torch
        from torch import nn
        model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4))})
        def forward(x):
            for layer in model["layers"]:
                x = layer(x)
            return x
        model.forward = forward
        def example_inputs(batch_size, seq_len):
            return torch.zeros(batch_size, seq_len, 8)
        """),
        encoding="utf-8",
    )
    said = say("explain", "deep.py", "--rank", "2")
    assert "\nlayers.0\n" in f"\n{said.out}"
    assert "\nlayers.* ×3\n" in said.out


def test_explain_tells_of_layers_that_are_left(say):
    peft = pytest.importorskip("peft")
    del peft
    Path("mixed.py").write_text(
        MODEL + "import peft\n"
        "config = peft.LoraConfig(r=2, target_modules=['1', '3'], rank_pattern={})\n"
        "model = peft.get_peft_model(model, config)\n"
        "model.base_model.model[3].lora_dropout['default'] = nn.AlphaDropout(0.5)\n",
        encoding="utf-8",
    )
    said = say("explain", "mixed.py")
    assert said.code == 0
    assert "its own path: a dropout of type AlphaDropout" in said.out
    assert len(say("explain", "mixed.py", "--json").json["left"]) == 1
