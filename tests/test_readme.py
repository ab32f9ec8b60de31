"""The README, held to what it promises."""

import re

from documents import PAGES, ROOT, blocks

README = PAGES["README.md"]
QUICK_START = README.split("## Quick start")[1].split("\n## ")[0]
LONGEST = 200  # lines


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LONGEST


def test_the_quick_start_has_two_blocks_and_they_are_the_first():
    assert blocks(QUICK_START, "sh") == blocks(README, "sh")
    first, second = blocks(QUICK_START, "sh")
    assert first.endswith("autolora demo\n")
    assert second.endswith("python -m pytest\n")
    for block in (first, second):
        assert "-c tools/constraints.txt" in block


def test_every_pin_is_exact():
    lines = (ROOT / "tools/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)


def test_the_top_level_holds_what_it_should():
    known = {"autolora", "cache_schema", "docs", "tests", "tools"}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert folders - {"build", "dist", "autolora.egg-info"} == known
