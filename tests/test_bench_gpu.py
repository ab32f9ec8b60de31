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


# the tool with two more parts: one that fails, and one that fits no budget
MORE = """
import bench_gpu as tool
tool.PARTS["bad"] = tool.Part(lambda tiny: ["none.py"], 9)
tool.PARTS["long"] = tool.Part(tool.tests, 9e9)
tool.main()
"""


def run(*arguments):
    command = [sys.executable, "-c", MORE, *map(str, arguments)]
    own = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_a_gpu_it_says_so():
    done = run()
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert "no CUDA device" in done.stdout


def test_each_part_leaves_its_figures_and_how_it_ended(tmp_path):
    parts = ["tests", "layers", "experts", "block"]
    done = run("--device", "cpu", "--tiny", "--out", tmp_path, "--only", *parts, "bad", "long")
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    ended = {part["part"]: part for part in summary["parts"]}
    logs = {path.name: path.read_text(encoding="utf-8")[-2000:] for path in tmp_path.glob("*.log")}
    assert {ended[part]["ended"] for part in parts} == {"finished"}, (ended, logs)
    for part in parts[1:]:
        found = json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))
        assert found["rows"]
    assert (ended["bad"]["ended"], ended["long"]["ended"]) == ("failed", "skipped")
    assert "No such file" in ended["bad"]["why"]
    assert "of the budget" in ended["long"]["why"]
    assert done.returncode == 1
