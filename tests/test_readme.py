"""The README, held to what it promises."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK_START = README.split("## Quick start")[1].split("\n## ")[0]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_the_quick_start_has_two_blocks_and_they_are_the_first():
    assert blocks(QUICK_START, "sh") == blocks(README, "sh")
    first, second = blocks(QUICK_START, "sh")
    assert first.endswith("autolora demo\n")
    assert second.endswith("python -m pytest\n")
    for block in (first, second):
        assert "-c tools/constraints.txt" in block


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_examples_are_python(block):
    compile(block, "README.md", "exec")


def test_every_pin_is_exact():
    lines = (ROOT / "tools/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)


def test_the_top_level_holds_what_it_should():
    known = {"autolora", "cache_schema", "docs", "tests", "tools"}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert folders - {"build", "dist", "autolora.egg-info"} == known
