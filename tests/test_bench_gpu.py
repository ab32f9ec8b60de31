"""The run on a GPU, in sizes that a CPU computes at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools/bench_gpu.py"


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_a_gpu_it_says_so():
    done = run()
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert "no CUDA device" in done.stdout


def test_each_part_leaves_its_figures_and_how_it_ended(tmp_path):
    parts = ["tests", "layers", "experts", "compiled", "block"]
    budget = ["--budget", "400s", "--only", *parts, "others-compiled"]
    done = run("--device", "cpu", "--tiny", "--out", tmp_path, *budget)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    ended = {part["part"]: part for part in summary["parts"]}
    logs = {path.name: path.read_text(encoding="utf-8")[-2000:] for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (ended, logs)
    assert {ended[part]["ended"] for part in parts} == {"finished"}, (ended, logs)
    for part in parts[1:]:
        found = json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))
        assert found["results"]


def test_a_part_that_fails_or_finds_no_time_is_named(tmp_path):
    failing = "import bench_gpu as b; b.PARTS = {'bad': b.Part(lambda tiny: ['none.py'], 9), "
    failing += "'long': b.Part(b.tests, 9e9)}; b.main()"
    command = [sys.executable, "-c", failing, "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    own = {"PYTHONPATH": f"{ROOT}{os.pathsep}{TOOL.parent}"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
    bad, long = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["parts"]
    assert (done.returncode, bad["ended"], long["ended"]) == (1, "failed", "skipped")
    assert "No such file" in bad["why"]
    assert "of the budget" in long["why"]
