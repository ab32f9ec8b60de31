"""The advice to run float32 adapters in the dtype of a base in 16 bits."""

import logging
from pathlib import Path

import peft
import pytest
import torch
from records import REFERENCE, make_record
from torch import nn

import autolora
from autolora.environment import Environment
from autolora.nn.advice import in_dtype_of_base, runs_in_float32
from autolora.problem import Problem, Siblings
from autolora.tuning import advice
from autolora.tuning.result import TuneResult

CPU = Environment.of(torch.device("cpu"))
NARROW = "base_first/h=saved/dA=via_z/dB=via_h"
PROBLEM = Problem(24, 32, 64, 4, "bfloat16", "cpu", adapter_dtype="float32", gradients=("A", "B"))


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "autolora")
    return lambda: [r.getMessage() for r in caplog.records if "float32 adapters" in r.getMessage()]


def layer(dtype=torch.bfloat16, **options):
    """A layer with float32 adapters, called twice."""
    model = nn.Sequential(nn.Linear(24, 32, bias=False)).to(dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=4))
    autolora.accelerate(model, **options)
    return model


def step(model, dtype=torch.bfloat16):
    model(torch.randn(64, 24, dtype=dtype)).sum().backward()


def test_it_is_given_once_where_the_branch_runs_in_float32(said):
    for _ in range(2):
        step(layer())
    (text,) = said()
    assert "autolora.accelerate(model, compute_dtype=torch.bfloat16)" in text
    assert "which is not measured yet" in text


def test_it_is_not_given_where_it_is_followed_or_would_change_nothing(said):
    step(layer(compute_dtype=torch.bfloat16))
    step(layer(torch.float32), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        step(layer())
    with torch.no_grad():
        layer()(torch.randn(64, 24, dtype=torch.bfloat16))
    assert said() == []


@pytest.mark.parametrize(("narrow", "text"), [(500, "2.00x as fast for 24 → 32"), (1200, "")])
def test_it_names_what_the_cache_has_measured(narrow, text, said, tmp_path):
    records = [
        make_record(problem=problem, times={REFERENCE: 3000, NARROW: taken}, environment=CPU)
        for problem, taken in ((PROBLEM, 1000), (in_dtype_of_base(PROBLEM), narrow))
    ]
    autolora.TimingCache(records).save(tmp_path / "timings.v1.json")
    step(layer())
    assert bool(said()) == bool(text)
    assert text in "".join(said())


def test_a_tuning_run_measures_it_for_the_layer_that_takes_most(monkeypatch):
    large = Problem(240, 320, 64, 4, "bfloat16", "cpu", adapter_dtype="float32")
    plain = Problem(2400, 3200, 64, 4, "bfloat16", "cpu")
    asked = []

    def tune_problems(problems, **options):
        asked.append((problems, options))
        return TuneResult(
            Path("c.json"), [make_record(problem=problems[0], times={REFERENCE: 800})]
        )

    monkeypatch.setattr(advice, "tune_problems", tune_problems)
    result = TuneResult(
        Path("c.json"), [make_record(problem=each) for each in (PROBLEM, large, plain)]
    )
    text = advice.measured_advice(result, {large: 2}, device="cpu", budget=60)
    assert "1.25x as fast for 240 → 320, 64 tokens" in text
    ((problems, options),) = asked
    assert problems == [in_dtype_of_base(large)]
    assert options["effort"] == "quick"
    assert options["budget"] == pytest.approx(60 - 3 * 1.5)
    assert advice.measured_advice(result, {}, device="cpu", budget=4) == ""  # spent
    result.interrupted = True
    assert advice.measured_advice(result, {}, device="cpu") == ""
    only = TuneResult(Path("c.json"), [make_record(problem=plain)])
    assert advice.measured_advice(only, {}, device="cpu") == ""
    assert len(asked) == 1


def test_tuning_a_model_leaves_both_figures_in_the_cache():
    model = layer()
    autolora.tune(model, tokens=64, effort="quick")
    records = autolora.TimingCache.load(autolora.tune(model, tokens=64).path).records
    assert {record.problem.compute_dtype for record in records} == {"float32", "bfloat16"}


def test_which_problems_it_is_for():
    assert runs_in_float32(PROBLEM)
    assert not runs_in_float32(in_dtype_of_base(PROBLEM))
    assert not runs_in_float32(Problem(8, 8, 8, 2, "float32", "cpu"))
    assert not runs_in_float32(Siblings.of([PROBLEM, PROBLEM]))
