"""Accelerated mixtures of experts: tuned, recorded, explained, copied and restored."""

import copy
import pickle

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft_models import assert_same_step, batch
from small_mixture import LOWRANK, experts_along, mixture

import autolora
from autolora.graphs.kinds import reference_graph
from autolora.nn.choosing import pin
from autolora.problem import Experts


def accelerated(plain):
    """An accelerated copy whose experts run along a graph, and whose other layers as PEFT's."""
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    along = experts_along(f"{LOWRANK}/x=loop")
    pin(fast, lambda p: along(p) if isinstance(p, Experts) else reference_graph(p))
    return fast


def test_restoring_copying_and_pickling():
    plain = mixture()
    fast = accelerated(plain)
    again = pickle.loads(pickle.dumps(copy.deepcopy(fast)))
    assert_same_step(again, plain, 1e-9)
    assert len(autolora.restore(fast)) == 2 * 3
    assert sum(type(module) is ParamWrapper for module in fast.modules()) == 4
    assert_same_step(fast, plain, 0)


def test_a_model_is_tuned_and_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "timings.v1.json"))
    fast = mixture(dtype=torch.float32)
    autolora.accelerate(fast)
    result = autolora.tune(fast, tokens=18, effort="quick")
    experts = [r for r in result.records if isinstance(r.problem, Experts)]
    assert {r.problem.load for r in experts} == {"uniform", "skewed"}
    assert set().union(*(r.problem.layer_sizes for r in experts)) == {(32, 32), (16, 32)}
    assert all(r.problem.implementation == "eager" for r in experts)
    fast(**batch()).loss.backward()
    found = [e for e in autolora.explain(fast).layers if isinstance(e.problem, Experts)]
    assert len(found) == 4
    assert {e.reason for e in found} == {"exact"}


def test_a_recording_holds_what_a_step_showed():
    fast = mixture(dtype=torch.float32, implementation="grouped_mm")
    autolora.accelerate(fast)
    with autolora.record(fast) as problems:
        fast(**batch()).loss.backward()
    found = [problem for problem in problems if isinstance(problem, Experts)]
    assert {(p.experts, p.top_k, p.tokens, p.implementation) for p in found} == {
        (4, 2, 18, "grouped_mm")
    }
    assert not problems.left
    plain = mixture(dtype=torch.float32, implementation="grouped_mm")
    with autolora.record(plain) as again:
        plain(**batch()).loss.backward()
    assert set(again) == set(problems)


def test_a_miss_is_told_with_how_it_runs(caplog):
    fast = mixture(dtype=torch.float32, implementation="grouped_mm")
    autolora.accelerate(fast)
    fast(**batch()).loss.backward()
    assert "4 experts 32 → 32, top 2" in caplog.text
    assert "it runs PEFT's path" in caplog.text
    assert LOWRANK not in caplog.text


def test_explain_names_a_faster_implementation():
    fast = mixture(dtype=torch.float32, implementation="batched_mm")
    autolora.accelerate(fast)
    pin(fast, reference_graph)
    fast(**batch()).loss.backward()
    whys = [e.why for e in autolora.explain(fast).layers if isinstance(e.problem, Experts)]
    assert all("set_experts_implementation('grouped_mm')" in why for why in whys)
