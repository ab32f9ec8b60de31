"""Measuring layers compiled by torch.compile, and what happens where that does not work."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

import autolora
from autolora.graphs.operators import TRACEABLE
from autolora.problem import COMPILED, Problem
from autolora.timing import compiling, data
from autolora.tuning.check import check_records
from autolora.tuning.tuner import tune_problems

pytestmark = pytest.mark.skipif(not TRACEABLE, reason="this torch compiles PEFT's path")

LAYER = Problem(24, 16, 32, 4, "float32", "cpu", mode=COMPILED)


@pytest.fixture(autouse=True)
def _layers_anew(compile_anew):
    cached = (data._layer, data._floor, compiling.require_compiler)
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch):
    """Layers are not compiled, which takes seconds, unless ``fails`` says that one cannot be."""

    def use(fails=lambda graph: False):
        def compiled(layer):
            parts = dict(zip(layer.__code__.co_freevars, layer.__closure__ or (), strict=True))
            graph = parts["made"].cell_contents.graph if "made" in parts else None

            def run(*arguments):
                if fails(graph):
                    raise Unsupported("no kernel for this\nand more lines", case_name="x")
                return layer(*arguments)

            return run

        monkeypatch.setattr(data, "compiled", compiled)
        monkeypatch.setattr(data, "require_compiler", lambda device: None)

    return use


def test_a_model_is_tuned_as_it_runs_compiled():
    net = autolora.add_lora(nn.Sequential(nn.Linear(24, 16)), rank=4)
    result = autolora.tune(net, tokens=32, compiled=True, effort="quick")
    assert {record.problem.mode for record in result.records} == {COMPILED}
    assert result.failed == []
    again = autolora.tune(net, tokens=32, compiled=True, effort="quick")
    assert (len(again.records), len(again.skipped)) == (0, len(result.records))
    torch.compile(net, backend="eager", fullgraph=True)(torch.randn(32, 24))
    (layer,) = autolora.explain(net).layers
    assert (layer.problem.mode, layer.reason) == (COMPILED, "exact")
    for record in result.records:
        timed = [candidate for candidate in record.candidates if candidate.median_ns]
        assert len(timed) > 1
        assert record.reference in {candidate.graph for candidate in timed}


def test_a_graph_that_cannot_be_compiled_is_rejected_with_the_cause(uncompiled):
    uncompiled(lambda graph: graph is not None and graph.forward == "base_first")
    (record,) = tune_problems([LAYER], effort="normal").records
    rejected = {c.graph: c.verdict.reason for c in record.candidates if not c.verdict.ok}
    assert set(rejected.values()) == {"not compiled: no kernel for this"}
    raced = {c.graph for c in record.candidates if c.median_ns is not None}
    assert raced
    assert not any(name.startswith("base_first") for name in raced)


def test_where_the_layer_cannot_be_compiled_the_rest_goes_on(uncompiled):
    uncompiled(lambda graph: True)
    eager = LAYER.in_mode("eager")
    result = tune_problems([LAYER, eager], effort="quick")
    assert [record.problem for record in result.records] == [eager]
    ((problem, reason),) = result.failed
    assert problem == LAYER
    assert reason == "the layer without its adapter is not compiled: no kernel for this"


def test_a_check_that_cannot_compile_says_so_and_goes_on(uncompiled):
    uncompiled()
    (record,) = tune_problems([LAYER], effort="quick").records
    data._layer.cache_clear()
    uncompiled(lambda graph: True)
    found = check_records([record], device=torch.device("cpu"), most=1)
    assert [reason for _, reason in found.failed] == ["not compiled: no kernel for this"]


def test_an_unknown_mode_is_told():
    with pytest.raises(autolora.AutoloraError, match=r"a mode of torch.compile: default, .*'fast'"):
        autolora.tune([LAYER], compiled="fast")


def test_a_compiler_that_is_turned_off_is_told():
    turned_off = torch._dynamo.config.patch(disable=True)  # monkeypatch would delete the setting
    with turned_off, pytest.raises(autolora.AutoloraError, match="turned off"):
        autolora.tune([LAYER], compiled=True)


def test_no_compiler_is_one_line(tmp_path):
    model = tmp_path / "model.py"
    model.write_text("from torch import nn\nmodel = nn.Sequential(nn.Linear(24, 16))\n")
    there = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    there |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    command = [sys.executable, "-m", "autolora", "tune", str(model), "--rank", "4", "--compiled"]
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("autolora: error")]
    assert "torch.compile does not work on this machine's cpu" in line
