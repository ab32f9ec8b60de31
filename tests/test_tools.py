"""The tools import what the package has, and their regimes mean what their names say."""

import importlib
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[1] / "tools"
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)


@pytest.mark.parametrize("tool", sorted(path.stem for path in TOOLS.glob("*.py")))
def test_every_tool_imports(tool):
    assert importlib.import_module(tool).__doc__


@pytest.mark.parametrize(
    ("name", "dtypes", "others"),
    [
        ("float32", (F32, F32), {}),
        ("float32, bfloat16 adapters", (F32, BF16), {}),
        ("bfloat16, float32 adapters, autocast", (BF16, F32), {"autocast": True}),
        ("bfloat16, float32 adapters, compute_dtype", (BF16, F32), {"compute": BF16}),
        ("nf4, bfloat16", (BF16, BF16), {"layout": "nf4"}),
        ("DoRA, dropout, float32", (F32, F32), {"lora": {"use_dora": True, "lora_dropout": 0.1}}),
    ],
)
def test_a_regime_is_stated_by_its_name(name, dtypes, others):
    regime = importlib.import_module("common.regimes").Regime
    assert regime.of(name) == regime(*dtypes, **others)


def test_an_unknown_word_is_no_regime():
    with pytest.raises(KeyError):
        importlib.import_module("common.regimes").Regime.of("float33")
