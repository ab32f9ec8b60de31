"""The plots of a report."""

import sys
from dataclasses import replace

import pytest
from records import CPU, MERGED, REFERENCE, SAVED, XEON, make_record

from autolora.errors import AutoloraError
from autolora.report.contents import Contents
from autolora.report.plots import require_matplotlib, write_plots

RECORDS = [
    make_record(64, {REFERENCE: 2000, SAVED: 1000, MERGED: 1500}),
    make_record(1024, {REFERENCE: 40_000, SAVED: 30_000, MERGED: 20_000}),
    make_record(64, environment=XEON),
]


def test_without_matplotlib_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AutoloraError, match=r"pip install 'autolora\[report\]'"):
        require_matplotlib()


def test_bars_and_token_counts_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "plots"
    paths = list(write_plots(Contents(["a.json"], RECORDS), folder))
    assert paths == [folder / f"{n}.{s}" for n in ("bars", "tokens-01") for s in ("svg", "png")]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths if path.suffix == ".png")
    assert all(b"<svg" in path.read_bytes() for path in paths if path.suffix == ".svg")


def test_names_are_no_formulas(tmp_path):
    pytest.importorskip("matplotlib")
    node = replace(CPU, device_name=r"$\frac{$")
    records = [make_record(tokens, environment=node) for tokens in (64, 128)]
    list(write_plots(Contents(["a.json"], records), tmp_path))
    assert node.device_name in (tmp_path / "tokens-01.svg").read_text(encoding="utf-8")


def test_a_single_token_count_has_no_plot(tmp_path):
    pytest.importorskip("matplotlib")
    paths = list(write_plots(Contents(["a.json"], RECORDS[:1]), tmp_path))
    assert {path.stem for path in paths} == {"bars"}


def test_a_folder_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(AutoloraError, match="cannot write the plots to"):
        list(write_plots(Contents(["a.json"], RECORDS), tmp_path / "file"))
