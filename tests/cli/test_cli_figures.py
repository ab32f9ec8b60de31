"""Figures and tables of records."""

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
from commands import MODEL, QUICK

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cli.output import console, figures, tables
from autolora.units import size


@pytest.mark.parametrize("module", [console, figures, tables], ids=lambda module: module.__name__)
def test_examples_in_the_code(module):
    assert doctest.testmod(module).failed == 0


def test_names_with_several_numbers():
    names = [f"layers.{a}.experts.{b}.up" for a in range(2) for b in range(2)]
    assert tables.group_names(names) == "layers.*.experts.*.up"
    assert tables.group_names(["lm_head"]) == "lm_head"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (10**6, "977 KiB"), (2**40, "1024 GiB")],
)
def test_bytes(number, text):
    assert size(number) == text


def test_figures_fit_a_small_screen(autolora, tmp_path):
    Path("wide.py").write_text(
        MODEL.replace("8, 16", "8192, 16384").replace("16, 8)", "16384, 8192)"), encoding="utf-8"
    )
    autolora("tune", "model.py", *QUICK)
    (record, *_) = TimingCache.load(search_path()[0]).records
    large = replace(record.problem, in_features=28672, out_features=8192, tokens=131072, rank=128)
    for width in (80, 120):
        lines = tables.record_table([record, replace(record, problem=large)], width)
        names = {f"    {record.winner}"}
        assert all(len(line.plain) <= width for line in lines if line.plain not in names)
