"""A frozen model: no file and no variable changes what it runs."""

import copy
import os
import pickle
from dataclasses import replace

import peft
import pytest
import torch
from one_layer import LAYER, TALL, model, ran, record_of
from records import REFERENCE
from torch import nn

import autolora
from autolora.cache.files.store import TimingCache
from autolora.environment import Environment
from autolora.graphs.unmeasured import analytic_graph
from autolora.nn import choosing
from autolora.objective import TIME, Objective

HERE = Environment.of("cpu")


def lean(record):
    """The same record, in which the reference graph keeps least, ready for memory."""
    candidates = tuple(
        replace(candidate, saved_bytes=1 if candidate.graph == REFERENCE else 4096)
        for candidate in record.candidates
    )
    return replace(record, candidates=candidates, objectives=("memory", "time"))


@pytest.fixture
def tuned(path):
    """A model whose layer has TALL as its measured graph at 8 tokens."""
    TimingCache([lean(record_of(TALL))], path).save()
    choosing.refresh()
    return model()


def other_winner(path, monkeypatch):
    TimingCache([record_of(REFERENCE, effort="thorough")], path).save()


def no_file(path, monkeypatch):
    path.unlink()


def other_path(path, monkeypatch):
    TimingCache([record_of(REFERENCE)], path.with_name("other.json")).save()
    monkeypatch.setenv("AUTOLORA_CACHE", str(path.with_name("other.json")))


def other_objective(path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "memory")


@pytest.mark.parametrize("change", [other_winner, no_file, other_path, other_objective])
def test_nothing_changes_what_a_frozen_model_runs(tuned, path, monkeypatch, change):
    free = copy.deepcopy(tuned)
    autolora.freeze(tuned)
    assert ran(tuned) == (TALL, "exact", "frozen")
    change(path, monkeypatch)
    choosing.refresh(tuned)
    tuned[0]._autolora.choices.clear()  # so that it chooses again
    assert ran(tuned) == (TALL, "exact", "frozen")
    assert ran(free)[0] != TALL  # the change is one that matters


def test_a_frozen_model_is_answered_as_the_files_would(path, monkeypatch):
    older, threads = replace(HERE, torch="2.0.0"), replace(HERE, units=HERE.units + 7)
    files = [path.with_name(f"{number}.json") for number in range(2)]
    TimingCache([record_of(TALL, 16), record_of(REFERENCE, 500, older)], files[0]).save()
    TimingCache(
        [
            record_of(REFERENCE, 16, effort="thorough"),
            record_of(REFERENCE, 64),
            record_of(TALL, 500, threads),
            record_of(TALL, 1000, older),
        ],
        files[1],
    ).save()
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(map(str, files)))
    choosing.refresh()
    net = model()
    counts = (8, 16, 20, 60, 64, 128, 300, 600, 1500, 9000)
    free = [ran(net, tokens) for tokens in counts]
    assert {reason for _, reason, _ in free} == {
        "exact", "interpolated", "nearest", "other-environment", "miss",
    }  # fmt: skip
    autolora.freeze(net)
    for file in files:
        file.unlink()
    frozen = [ran(net, tokens) for tokens in counts]
    assert frozen == [
        (graph, reason, f"{detail}; frozen" if detail else "frozen")
        for graph, reason, detail in free
    ]


def test_freezing_forgets_what_was_chosen_before_and_reads_the_files_as_they_are(tuned, path):
    assert ran(tuned)[0] == TALL
    TimingCache([record_of(REFERENCE, effort="thorough")], path).save()
    assert ran(tuned)[0] == TALL  # files are read once
    autolora.freeze(tuned)
    assert ran(tuned)[0] == REFERENCE
    TimingCache([record_of(TALL, effort="thorough", objectives=("memory", "time"))], path).save()
    autolora.freeze(tuned)
    assert ran(tuned)[0] == TALL


def test_unfreezing_goes_back_to_the_files(tuned, path):
    autolora.freeze(tuned)
    TimingCache([record_of(REFERENCE, effort="thorough")], path).save()
    autolora.unfreeze(tuned)
    choosing.refresh()
    assert ran(tuned) == (REFERENCE, "exact", "")
    autolora.unfreeze(tuned)


def test_a_miss_is_a_miss_as_ever_and_stays_one(path):
    net = model()
    autolora.freeze(net)
    TimingCache([record_of(REFERENCE)], path).save()
    choosing.refresh(net)
    graph = analytic_graph(LAYER.at(8)).name
    assert ran(net) == (graph, "miss", "not tuned; chosen by FLOPs and bytes; frozen")


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))]
)
def test_a_copy_is_not_frozen(tuned, copied):
    autolora.freeze(tuned)
    state = copied(tuned[0]._autolora)
    assert (state.policy.snapshots, state.choices) == (None, {})
    assert tuned[0]._autolora.policy.snapshots is not None


def test_a_copy_of_a_frozen_model_trains(tuned, path):
    autolora.freeze(tuned)
    path.unlink()
    choosing.refresh()
    for net in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert ran(net)[1] == "miss"
    assert ran(tuned)[1] == "exact"


def test_tuning_a_frozen_model_says_when_it_will_count(warnings):
    net = model()
    autolora.freeze(net)
    autolora.tune(net, tokens=8, effort="quick")
    (warning,) = warnings()
    assert "once autolora.freeze(model) is called again" in warning
    assert ran(net)[1] == "miss"
    autolora.freeze(net)
    assert ran(net)[1] == "exact"


def test_the_objective_is_frozen_unless_a_layer_was_told(path, monkeypatch):
    TimingCache([lean(record_of(TALL))], path).save()
    plain, told = model(), model(objective="memory")
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "accuracy")
    reports = [autolora.freeze(net).objectives for net in (plain, told)]
    monkeypatch.delenv("AUTOLORA_OBJECTIVE")
    assert reports == [(Objective("accuracy"),), (Objective("memory"),)]
    assert plain[0]._autolora.policy.wanted == Objective("accuracy")
    assert told[0]._autolora.policy.wanted == Objective("memory")
    assert ran(told)[0] == REFERENCE


def test_the_report_says_what_the_model_is_frozen_on(path, monkeypatch):
    other = path.with_name("other.json")
    TimingCache([record_of(TALL), record_of(TALL, 9, replace(HERE, torch="2.0.0"))], path).save()
    TimingCache([replace(record_of(TALL), problem=replace(LAYER, in_features=8))], other).save()
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(map(str, (path, other))))
    report = autolora.freeze(model())
    assert (report.layers, report.records, report.fitting) == (1, 2, 1)
    assert (report.environments, report.objectives) == ((HERE,), (TIME,))
    assert (report.files, report.origin) == ((str(path),), "frozen")
    shown = str(report)
    assert "1 LoRA layers frozen for time" in shown
    assert "2 records for their sizes, 1 of them measured in this environment" in shown
    assert HERE.device_name in shown
    assert f"from {path}" in shown
    path.unlink()
    assert "0 records" in str(autolora.freeze(model()))
    assert str(autolora.freeze(model())).endswith("from no file")


def peft_model():
    config = peft.LoraConfig(r=4, target_modules=["0"])
    return peft.get_peft_model(nn.Sequential(nn.Linear(24, 16)), config)


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), peft_model])
def test_a_model_without_such_layers_is_refused(make):
    with pytest.raises(autolora.AutoloraError, match=r"no layer to freeze; call autolora.accele"):
        autolora.freeze(make())


def test_what_a_layer_becomes_later_is_in_the_plan_too(path):
    net = peft_model()
    net.add_adapter("small", peft.LoraConfig(r=2, target_modules=["0"]))
    autolora.accelerate(net)
    small = replace(LAYER, rank=2, tokens=8)
    TimingCache([record_of(TALL), replace(record_of(REFERENCE), problem=small)], path).save()
    with net.disable_adapter():
        autolora.freeze(net)
    path.unlink()
    for adapter, rank, graph in [("default", 4, TALL), ("small", 2, REFERENCE)]:
        net.set_adapter(adapter)
        net(torch.randn(8, 24)).sum().backward()
        (layer,) = [e for e in autolora.explain(net).layers if e.problem.rank == rank]
        assert (layer.graph, layer.reason, layer.detail) == (graph, "exact", "frozen")


def test_accelerating_anew_and_restoring_thaw(path):
    net = peft_model()
    autolora.accelerate(net)
    whole = replace(LAYER, gradients=("X", "A", "B"), tokens=8)  # what explain asks about ahead
    TimingCache([replace(record_of(REFERENCE), problem=whole)], path).save()
    autolora.freeze(net)
    assert autolora.explain(net, tokens=8).counts == {"exact": 1}
    assert "frozen" in str(autolora.explain(net, tokens=8))
    path.unlink()
    choosing.refresh()
    assert autolora.accelerate(net).frozen is None
    assert autolora.explain(net, tokens=8).counts == {"miss": 1}
    autolora.freeze(net)
    autolora.restore(net)
    with pytest.raises(autolora.AutoloraError, match="no layer to freeze"):
        autolora.freeze(net)
