"""Several ranks: what one tunes in the first steps, all of them run."""

import json

import pytest
from made_up_ranks import run_as_ranks

CALLBACK = """
import json, sys, tempfile
from trainers import llama, losses, trainer
import autolora
from autolora.integrations import AutoloraCallback

made = trainer(
    llama(), tempfile.mkdtemp(), [AutoloraCallback(tune=True, budget=3600)], ddp_backend="gloo"
)
made.train()
graphs = {layer.name: [layer.graph, layer.why] for layer in autolora.explain(made.model).layers}
print(json.dumps({"graphs": graphs, "losses": losses(made)}))
"""
SCRIPT = """
import json, sys
import peft, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).double()
model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"]))
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
torch.manual_seed(distributed.get_rank())
losses = []
for _ in range(8):
    x = torch.randn(48, 24, dtype=torch.float64)
    loss = (parallel(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
weights = [p.sum().item() for p in model.parameters()]
distributed.barrier()
import autolora
choices = {l.name: [l.graph, l.reason] for l in autolora.explain(model).layers}
print(json.dumps({"losses": losses, "weights": weights, "graphs": choices}))
distributed.destroy_process_group()
"""
RUN = """
import sys
from pathlib import Path
from autolora.cli import main

Path("train.py").write_text(SCRIPT, encoding="utf-8")
sys.exit(main(["run", "--tune", "train.py"]))
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ranks(source):
    own = {"OMP_NUM_THREADS": "1"}
    return run_as_ranks(source, [own, own])


def test_the_callback_has_all_ranks_run_the_graphs_of_one():
    (first, err), (second, _) = ranks(CALLBACK)
    assert {name: graph for name, (graph, _) in first["graphs"].items()} == {
        name: graph for name, (graph, _) in second["graphs"].items()
    }
    assert all("exact" in why and "rank 0's plan" in why for _, why in second["graphs"].values())
    assert err.count("Tuning took") == 1


def test_a_script_under_torchrun_is_tuned_once():
    (plain, _), _ = ranks(SCRIPT)
    (first, err), (second, other) = ranks(f"SCRIPT = {SCRIPT!r}\n{RUN}")
    for key in ("losses", "weights"):
        assert first[key] == pytest.approx(plain[key], rel=1e-9)
    assert first["weights"] == second["weights"]
    assert first["graphs"] == second["graphs"]
    assert {reason for _, reason in first["graphs"].values()} == {"exact"}
    assert err.count("Tuning took") == 1
    assert "autolora" not in other, json.dumps(other)
