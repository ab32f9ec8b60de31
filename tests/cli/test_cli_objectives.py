"""Objectives in the output of tune, show and explain."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from records import make_problem, make_record

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.records.candidate import Candidate, Verdict
from autolora.capture.found import Capture
from autolora.cli import main
from autolora.cli.output import evidence, objectives
from autolora.cli.output.objectives import objective_table, objectives_measured, shared_input_note
from autolora.cli.output.steps import Step, reference_of, steps, winner_of
from autolora.graphs.space import find_graph
from autolora.objective import Objective

MODEL = """
import torch
from torch import nn
model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
def example_inputs(batch_size, seq_len):
    return torch.zeros(batch_size, seq_len, dtype=torch.long)
"""
TUNE = ("tune", "model.py", "--rank", "2", "--effort", "quick", "--batch-size", "2")

LEAN = "base_first/h=recomputed/dX=lowrank/dA=via_z/dB=via_h"
FAST = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"
ONE = "one_product/h=saved/dX=one_product/dA=via_z/dB=via_h"
ALL = ("accuracy", "memory", "time")


@pytest.fixture
def autolora(capsys, tmp_path, monkeypatch):
    """Runs a command: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")

    def autolora(*words):
        code = main(words)
        return (code, *capsys.readouterr())

    return autolora


def verdict(error, gain):
    outputs = ("Y", "dX", "dA", "dB")
    return Verdict(True, dict.fromkeys(outputs, (error, error)), (1.0, gain))


def record_of(tokens=64, objectives=ALL, **changes):
    """Reference, fast, lean and accurate graph, with what they keep indeed."""
    problem = make_problem(tokens, **changes)
    rows = [("reference", 2000, 1e-3), (FAST, 1000, 1e-3), (LEAN, 1250, 1e-3), (ONE, 1100, 1e-4)]
    candidates = tuple(
        Candidate(
            name,
            time,
            10,
            5,
            find_graph(name, problem).saved_bytes(problem),
            verdict(error, 1.0 if name == ONE else 0.5),
        )
        for name, time, error in rows
    )
    return make_record(problem=problem, candidates=candidates, winner=FAST, objectives=objectives)


RECORD = record_of()
X, H = 4 * 64 * 512, 4 * 64 * 8  # bytes


# ---- steps


def step_of(record, inputs):
    names = [f"layer{n}" for n in range(len(inputs))]
    known = {(name, record.problem): n for name, n in zip(names, inputs, strict=True) if n >= 0}
    found = Capture([(name, record.problem) for name in names], inputs=known)
    (step,) = steps([record], found)
    return step


@pytest.mark.parametrize(
    ("inputs", "shared"),
    [([0, 1, 2], 3), ([0, 0, 0], 1), ([0, 0, 1], 2), ([0, 1, 0], 2), ([-1, -1, 0], 3)],
)
def test_an_input_that_layers_share_is_counted_once(inputs, shared):
    step = step_of(RECORD, inputs)
    lean = step.saved_bytes(lambda record: record.candidate(LEAN))
    assert lean == shared * X
    assert step.saved_bytes(winner_of) == shared * X + 3 * H
    assert step.saved_bytes(reference_of) == shared * X + 3 * H
    assert step.nanoseconds(winner_of) == 3000
    assert ("was not seen" in shared_input_note([step])) == (-1 in inputs)


def test_a_copy_of_the_input_is_nobody_elses():
    mixed = record_of(dtype="bfloat16", adapter_dtype="float32", compute_dtype="float32")
    step = step_of(mixed, [0, 0])
    reference = mixed.candidate("reference").saved_bytes
    assert step.saved_bytes(reference_of) == 2 * reference
    assert step.saved_bytes(winner_of) == 2 * mixed.candidate(FAST).saved_bytes - X // 2


def test_steps_of_several_sizes():
    records = [record_of(tokens) for tokens in (64, 128)]
    layers = [(name, record.problem) for name in "ab" for record in records]
    found = list(steps(records, Capture(layers, sizes=(64, 128, 256))))
    assert [(step.when, len(step.layers)) for step in found] == [
        ("In one step of 64 tokens", 2),
        ("In one step of 128 tokens", 2),
    ]
    assert found[0].sentence.startswith("In one step of 64 tokens, forward and backward, these 2")


# ---- what each objective would run


def test_each_objective_is_shown_with_its_graph_and_figures():
    step = step_of(RECORD, [0, 0])
    asked = Objective("time", X)
    found = objectives_measured([RECORD], asked)
    assert found == [Objective(), Objective("memory"), Objective("accuracy"), asked]
    text = [line.plain for line in objective_table([RECORD], [step], found)]
    assert all(len(line) <= 80 for line in text)
    shown = [" ".join(line.split()) for line in text]
    for first, second in [
        ("time 2.00x 130 KiB 100 %", FAST),
        ("memory 1.60x 128 KiB 98 %", LEAN),
        ("accuracy 1.82x 130 KiB 100 %", ONE),
        ("time, at most 128 KiB a layer 1.60x 128 KiB 98 %", "as for memory"),
    ]:
        assert shown[shown.index(first) + 1] == second
    assert "In one step, 2 layers together" in shown
    assert "memory 1.60x 128 KiB 97 %" in shown  # 2 h less, of one X and 2 h
    none = [line.plain for line in objective_table([RECORD], [], [Objective("memory", 1)])]
    assert none[-1].strip() == f"{LEAN}: none keeps less"


def test_only_what_all_records_were_measured_for_is_objectives_measured():
    records = [RECORD, record_of(128, objectives=("memory", "time"))]
    assert objectives_measured(records, Objective()) == [Objective(), Objective("memory")]
    assert objectives_measured([record_of(objectives=("time",))], Objective()) == [Objective()]


def test_tune_says_what_each_objective_would_run_and_how_to_use_it(autolora):
    code, out, _ = autolora(*TUNE)
    assert code == 0
    assert "each objective" not in out
    assert "AUTOLORA_OBJECTIVE" not in out
    code, out, _ = autolora(*TUNE, "--objective", "memory", "--max-saved-bytes", "4K")
    assert code == 0
    assert "What each objective would run" in out
    assert "In one step, 2 layers together" in out
    assert "  export AUTOLORA_OBJECTIVE=memory AUTOLORA_MAX_SAVED_BYTES=4096\n" in out
    assert 'accelerate(model, objective="memory",\nmax_saved_bytes=4096)' in out
    assert "An X that several layers get is counted once" in out
    assert max(map(len, out.splitlines())) <= 100  # graphs' names alone are longer than 80
    for record in TimingCache.load(search_path()[0]).records:
        assert record.objectives == ("memory", "time")
    _, out, _ = autolora(*TUNE, "--objective", "memory")
    assert "0 problems measured, 2 already in the cache" in out
    _, out, _ = autolora(*TUNE)
    assert "What each objective would run" in out  # since it is known


def test_tune_takes_the_environment_for_its_default(autolora, monkeypatch):
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "accuracy")
    code, out, _ = autolora(*TUNE, "--json")
    assert code == 0
    document = json.loads(out)
    for record in document["records"]:
        assert record["objectives"] == ["accuracy", "time"]
        assert [run["objective"] for run in record["runs"]] == ["time", "accuracy"]
        assert record["runs"][0]["graph"] == record["winner"]
    assert [step["objective"] for step in document["steps"]] == ["time", "accuracy"]
    assert {step["layers"] for step in document["steps"]} == {2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "speed"), "argument --objective: invalid choice: 'speed'"),
        (("--objective", ""), "invalid choice: ''"),
        (("--max-saved-bytes", "0"), "must be a whole number of bytes such as 1500000, 512K"),
        (("--max-saved-bytes", "1.5M"), "not '1.5M'"),
        (("--max-saved-bytes", "-5"), "not '-5'"),
        (("--max-saved-bytes", "20MB"), "not '20MB'"),
    ],
)
@pytest.mark.parametrize("command", [TUNE, ("show",), ("explain", "model.py", "--rank", "2")])
def test_bad_values_are_one_clear_error_and_nothing_is_written(autolora, command, words, message):
    code, out, err = autolora(*command, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("autolora: error: ")
    assert message in err
    assert not search_path()[0].exists()


# ---- show


def test_the_evidence_fits_a_small_screen_and_names_who_wins():
    lines = [line.plain for line in evidence.candidate_table(RECORD)]
    assert max(map(len, lines)) <= 80
    shown = [" ".join(line.split()) for line in lines]
    for name, first, role, gain in [
        (FAST, "1.00 µs spread 10 ns 5 rounds keeps 130 KiB accurate", "wins time", "0.500"),
        (ONE, "1.10 µs spread 10 ns 5 rounds keeps 130 KiB accurate", "wins accuracy", "1.000"),
        (LEAN, "1.25 µs spread 10 ns 5 rounds keeps 128 KiB accurate", "wins memory", "0.500"),
        ("reference", None, "PEFT's graph, FLOPs choice", "0.500"),
    ]:
        at = shown.index(name)
        assert first in (None, shown[at - 1])
        assert shown[at + 1] == role
        error = "1.0e-4" if name == ONE else "1.0e-3"
        for line, magnitude, kept in [(2, "1e-1", "1.000"), (3, "1e-3", gain)]:
            figures = f"{magnitude}: Y {error} dX {error} dA {error} dB {error} gain {kept}"
            assert shown[at + line] == figures


@pytest.mark.parametrize("extra", ["dc", "dM"])
def test_every_output_is_shown(extra):
    pair = (None, 1.2e-10)
    judged = Verdict(
        False,
        dict.fromkeys(("Y", "dX", "dA", "dB", extra), pair),
        (None, -1.0),
        "error of Y inf > 5.0e-03 at adapter size 0.1",
    )
    lean = replace(RECORD.candidate(LEAN), verdict=judged)
    others = [c for c in RECORD.candidates if c.graph != LEAN]
    record = replace(RECORD, candidates=(*others, lean))
    lines = [line.plain for line in evidence.candidate_table(record)]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert f"{extra} 1.2e-10 gain -1.000" in text
    assert "Y inf" in text
    assert "rejected: error of Y inf" in text


def test_show_for_an_objective(autolora):
    TimingCache([RECORD, record_of(128, objectives=("time",))], search_path()[0]).save()
    _, out, _ = autolora("show")
    assert (out.count(FAST), out.count(LEAN)) == (2, 0)
    code, out, _ = autolora("show", "--objective", "memory")
    assert code == 0
    assert (out.count(FAST), out.count(LEAN)) == (0, 2)
    assert "1.60x" in out
    assert "keeps 128 KiB, PEFT's graph 130 KiB" in out
    assert "Shown is what layers run for memory. 1 record not tuned for that." in out
    _, out, _ = autolora("show", "--objective", "memory", "--verbose")
    assert "wins time" in out  # the evidence is that of the whole record
    assert "errors against float64" in out
    document = json.loads(autolora("show", "--json")[1])
    runs = document["files"][0]["records"][0]["runs"]
    assert [(run["objective"], run["graph"]) for run in runs] == [
        ("time", FAST),
        ("memory", LEAN),
        ("accuracy", ONE),
    ]


# ---- explain


def test_explain_for_an_objective(autolora):
    options = ("explain", "model.py", "--rank", "2", "--batch-size", "2", "--objective", "memory")
    _, out, _ = autolora(*options)
    assert "not tuned, chosen by FLOPs of those that keep least" in out
    assert "2 layers for memory: 2 not tuned." in out
    assert "autolora tune model.py --rank 2 --batch-size 2 --objective memory" in out
    autolora(*TUNE)
    _, out, _ = autolora(*options)
    assert "exact, not tuned for memory" in out
    autolora(*TUNE, "--objective", "memory")
    _, out, _ = autolora(*options)
    assert "2 layers for memory: 2 exact." in out
    assert "not tuned" not in out
    document = json.loads(autolora(*options, "--json")[1])
    assert (document["objective"], document["max_saved_bytes"]) == ("memory", None)


# ---- small parts


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(), ("", "")),
        (Objective("time", 5), ("AUTOLORA_MAX_SAVED_BYTES=5", "max_saved_bytes=5")),
        (Objective("memory"), ("AUTOLORA_OBJECTIVE=memory", 'objective="memory"')),
    ],
)
def test_objective_settings(objective, expected):
    assert objectives.objective_settings(objective) == expected


def test_a_step_without_floors_claims_no_overhead():
    bare = replace(RECORD, floor_ns=None)
    step = Step(None, (("a", bare.problem),), {bare.problem: bare}, {})
    assert step.sentence.endswith("1.00 µs tuned: 2.00x as fast.")
