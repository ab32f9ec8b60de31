"""``autolora explain``."""

from pathlib import Path
from textwrap import dedent

import pytest
from commands import MODEL, QUICK


def test_explain_before_and_after_tuning(autolora):
    options = ("--rank", "2", "--batch-size", "2", "--seq-len", "8")
    completed = autolora("explain", "model.py", *options)
    assert completed.code == 0
    assert "not tuned, chosen by FLOPs and bytes" in completed.out
    assert f"To tune them: autolora tune model.py {' '.join(options)}" in completed.out
    autolora("tune", "model.py", *QUICK)
    completed = autolora("explain", "model.py", *options)
    assert "2 layers: 2 exact." in completed.out
    assert "To tune" not in completed.out
    layers = autolora("explain", "model.py", *options, "--json").json["layers"]
    assert [(layer["name"], layer["reason"]) for layer in layers] == [
        ("1", "exact"),
        ("3", "exact"),
    ]
    assert layers[0]["problem"]["tokens"] == 16
    near = autolora("explain", "model.py", *options[:-1], "9", "--json").json["layers"]
    assert {layer["reason"] for layer in near} == {"nearest"}


def test_explain_groups_equal_layers(autolora):
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
    completed = autolora("explain", "deep.py", "--rank", "2")
    assert "\nlayers.0\n" in f"\n{completed.out}"
    assert "\nlayers.* ×3\n" in completed.out


def test_explain_tells_of_layers_that_are_left(autolora):
    peft = pytest.importorskip("peft")
    del peft
    Path("mixed.py").write_text(
        MODEL + "import peft\n"
        "config = peft.LoraConfig(r=2, target_modules=['1', '3'], rank_pattern={})\n"
        "model = peft.get_peft_model(model, config)\n"
        "model.base_model.model[3].lora_dropout['default'] = nn.AlphaDropout(0.5)\n",
        encoding="utf-8",
    )
    completed = autolora("explain", "mixed.py")
    assert completed.code == 0
    assert "its own path: a dropout of type AlphaDropout" in completed.out
    assert len(autolora("explain", "mixed.py", "--json").json["left"]) == 1
