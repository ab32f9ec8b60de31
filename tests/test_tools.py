"""The tools import what the package has, and their regimes mean what their names say."""

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
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


def test_the_drawn_step_is_that_of_its_results():
    draw_step = importlib.import_module("draw_step")
    results = json.loads(draw_step.MODELS.read_text(encoding="utf-8"))
    assert draw_step.drawing(results) == draw_step.STEP.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("removed", "shares"),
    [(0.0, (0.8, 0.2, 0.2)), (0.5, (0.8, 0.2, 0.1)), (1.0, (0.8, 0.2, 0)), (2.0, (0.6, 0.2, 0))],
)
def test_the_parts_of_a_drawn_step(removed, shares):
    row = {"ms": {"peft": 5.0, "floor": 4.0}, "overhead_removed": removed}
    assert importlib.import_module("draw_step").parts(row) == pytest.approx(shares)


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_the_drawing_can_be_read_on_light_and_on_dark_pages(page):
    draw_step = importlib.import_module("draw_step")

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(colour):
        dark, light = sorted((luminance(colour), luminance(page)))
        return (light + 0.05) / (dark + 0.05)

    assert contrast(draw_step.TEXT) > 4
    assert min(map(contrast, (draw_step.BASE, draw_step.PEFT, draw_step.OURS))) > 3


def test_system_calls_on_a_folder_are_counted_between_marks():
    calls = """\
7 openat(AT_FDCWD, "/c/a.json", O_RDONLY) = 3</c/a.json>
7 newfstatat(AT_FDCWD, "/open-begins", 0x7, 0) = -1 ENOENT (No such file or directory)
7 openat(AT_FDCWD, "/c/a.json", O_RDONLY) = 3</c/a.json>
8 read(3</c/a.json>, "{", 2)             = 1
8 read(4</elsewhere>, "{", 2)             = 1
7 newfstatat(AT_FDCWD, "/open-ends", 0x7, 0) = -1 ENOENT (No such file or directory)
7 close(3</c/a.json>)                     = 0
"""
    counted = importlib.import_module("bench_scaling").counted
    assert counted(calls, "/c/") == {"open": {"openat": 1, "read": 1}}
