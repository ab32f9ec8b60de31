"""Which graph a layer takes, how often it asks, and what it says about it."""

import copy
import json
import logging
import pickle
from dataclasses import replace

import peft
import pytest
import torch
from one_layer import TALL, record_of
from torch import nn

import autolora
from autolora import Problem
from autolora.cache.files.store import TimingCache
from autolora.environment import Environment
from autolora.graphs.space import converted_products, reference_graph, valid_graphs
from autolora.graphs.unmeasured import analytic_graph, flops_graph, unmeasured_graph
from autolora.nn import choosing, layer_state
from autolora.nn.choosing import pin
from autolora.objective import Objective


def model(**options):
    return autolora.add_lora(nn.Sequential(nn.Linear(24, 16)), rank=4, **options)


def test_explain_tells_what_ran_and_why():
    net = model()
    autolora.tune(net, tokens=32, effort="quick")
    assert autolora.explain(net).layers == []
    for _ in range(3):
        net(torch.randn(2, 16, 24))
    (layer,) = autolora.explain(net).layers
    assert (layer.name, layer.reason, layer.calls) == ("0", "exact", 3)
    assert layer.problem.gradients == ("A", "B")
    (ahead,) = autolora.explain(net, tokens=40).layers
    assert (ahead.reason, ahead.detail, ahead.calls) == ("nearest", "measured at 32 tokens", 0)
    assert "0: " in str(autolora.explain(net))
    assert str(autolora.explain(net)).endswith("\nin all: 1 exact")
    plain = json.loads(json.dumps(autolora.explain(net).to_json()))
    assert plain["layers"][0]["problem"]["tokens"] == 32
    assert plain["counts"] == {"exact": 1}


def test_explain_counts_the_reasons(path):
    here = Environment.of("cpu")
    elsewhere = replace(here, units=here.units + 7)
    TimingCache(
        [record_of(TALL), *(record_of(TALL, tokens, elsewhere) for tokens in (100, 400))], path
    ).save()
    net = model()
    for tokens in (100, 400, 8, 99, 12, 10**5, 7, 1):
        net(torch.randn(tokens, 24))
    net(torch.randn(24))
    told = autolora.explain(net)
    assert told.counts == {"other-environment": 3, "nearest": 2, "miss": 2, "exact": 1}
    assert next(iter(told.counts)) == "other-environment"
    assert str(told).endswith(
        "\nin all: 3 other-environment, 2 nearest, 2 miss, 1 exact, 1 its own path"
    )
    assert told.to_json()["counts"] == told.counts
    kind = f"same device and torch minor: differs in units {elsewhere.units}"
    assert [layer.detail for layer in told.layers][:2] == [kind, kind]


def test_explain_lists_what_is_left_with_the_reason():
    config = peft.LoraConfig(target_modules=["0"])
    two = peft.get_peft_model(nn.Sequential(nn.Linear(24, 16)), config)
    two.add_adapter("other", config)
    two.base_model.set_adapter(["default", "other"])
    autolora.accelerate(two)
    assert autolora.explain(two, tokens=8).left == [
        ("base_model.model.0", "several active adapters")
    ]
    dropped = model(dropout=0.1)
    (layer,) = autolora.explain(dropped, tokens=8).layers
    assert layer.problem.dropout
    (layer,) = autolora.explain(dropped.eval(), tokens=8).layers
    assert not layer.problem.dropout
    assert str(autolora.explain(nn.Linear(2, 2))) == "no LoRA layers"


def test_a_miss_takes_the_analytic_graph_and_is_reported_once(caplog):
    net = model()
    with caplog.at_level(logging.WARNING, "autolora"):
        for tokens in (8, 9, 10):
            net(torch.randn(tokens, 24))
    for choice in net[0]._autolora.choices.values():
        assert (choice.reason, choice.graph) == ("miss", analytic_graph(choice.problem))
    (record,) = caplog.records
    assert "autolora tune MODEL --rank 4 --dtype float32 --device cpu --tokens 8" in record.message


def test_evaluation_says_nothing_of_misses(caplog):
    net = model()
    with caplog.at_level(logging.WARNING, "autolora"), torch.no_grad():
        net(torch.randn(8, 24))
    assert caplog.records == []


def test_a_layer_asks_once_for_each_token_count(monkeypatch):
    net = model()
    asked = []
    original = choosing.decide

    def decide(problem, *others):
        asked.append(problem.tokens)
        return original(problem, *others)

    monkeypatch.setattr(choosing, "decide", decide)
    for tokens in (8, 9, 8, 9, 8):
        net(torch.randn(tokens, 24))
    assert asked == [8, 9]


def test_memory_stays_bounded_over_many_token_counts(monkeypatch):
    monkeypatch.setattr(layer_state, "MOST_CHOICES", 5)
    net = model()
    for tokens in range(1, 20):
        net(torch.randn(tokens, 24))
    assert len(net[0]._autolora.choices) <= 5


@pytest.mark.parametrize("chooser", [reference_graph, flops_graph])
def test_pinned_layers_take_what_they_are_told(chooser):
    net = model()
    pin(net, chooser)
    net(torch.randn(8, 24))
    (choice,) = net[0]._autolora.choices.values()
    assert (choice.reason, choice.graph) == ("pinned", chooser(choice.problem))
    pin(net, None)
    net(torch.randn(8, 24))
    assert [choice.reason for choice in net[0]._autolora.choices.values()] == ["miss"]


def test_a_damaged_cache_is_a_warning_and_a_miss(tmp_path, monkeypatch, caplog):
    path = tmp_path / "damaged.json"
    path.write_text('{"schema_version": 1, ')
    monkeypatch.setenv("AUTOLORA_CACHE", str(path))
    choosing.refresh()
    net = model()
    with caplog.at_level(logging.WARNING, "autolora"):
        net(torch.randn(8, 24)).sum().backward()
    assert str(path) in caplog.text
    assert [choice.reason for choice in net[0]._autolora.choices.values()] == ["miss"]
    assert path.read_text() == '{"schema_version": 1, '


def test_a_graph_that_is_not_known_is_a_miss():
    net = model()
    (record, *_) = autolora.tune(net, tokens=8, effort="quick").records
    path = choosing._lookup().layers[0].path
    text = path.read_text()
    for candidate in record.candidates:
        text = text.replace(f'"{candidate.graph}"', f'"{candidate.graph}/of=tomorrow"')
    path.write_text(text)
    choosing.refresh(net)
    net(torch.randn(8, 24))
    assert [choice.reason for choice in net[0]._autolora.choices.values()] == ["miss"]


# ---- objectives


BOTH = Problem(24, 16, 32, 4, "float32", "cpu")
DORA = replace(BOTH, variant="dora", gradients=("X", "A", "B", "M"))
ALONE = replace(BOTH, gradients=("B",))
MIXED = replace(BOTH, dtype="bfloat16", gradients=("B",))


@pytest.mark.parametrize(
    "problem", [BOTH, DORA, ALONE, MIXED], ids=["plain", "dora", "only B", "mixed"]
)
def test_a_miss_under_memory_takes_a_graph_that_keeps_least(problem):
    graph, how = unmeasured_graph(problem, Objective("memory"))
    graphs = valid_graphs(problem).values()
    assert graph.saved_bytes(problem) == min(g.saved_bytes(problem) for g in graphs)
    assert how == "chosen by FLOPs of those that keep least"
    usual = analytic_graph(problem)
    usual = replace(usual, onednn=converted_products(usual, problem))
    if problem is MIXED:
        assert (graph.forward, graph.dx) == (usual.forward, usual.dx)
    for objective in (Objective(), Objective("accuracy"), Objective("time", 10**6)):
        assert unmeasured_graph(problem, objective) == (usual, "chosen by FLOPs and bytes")
    least = graph.saved_bytes(problem)
    if usual.saved_bytes(problem) > least:
        assert unmeasured_graph(problem, Objective("time", least))[0] == graph
    detail = unmeasured_graph(problem, Objective("memory", least - 1))[1]
    assert f"none keeps at most {least - 1} bytes; the leanest keeps {least}" in detail


def test_layers_choose_for_their_objective(caplog):
    net = model(objective="memory")
    with caplog.at_level(logging.WARNING, "autolora"):
        net(torch.randn(8, 24)).sum().backward()
    (choice,) = net[0]._autolora.choices.values()
    assert choice.graph == unmeasured_graph(choice.problem, Objective("memory"))[0]
    assert "--tokens 8 --objective memory" in caplog.text
    (layer,) = autolora.explain(net).layers
    assert layer.objective == Objective("memory")
    assert "(for memory, miss, not tuned; chosen by FLOPs of those that keep least)" in str(
        autolora.explain(net)
    )
    plain = autolora.explain(net).to_json()["layers"][0]
    assert (plain["objective"], plain["max_saved_bytes"]) == ("memory", None)
    assert "objective" not in str(autolora.explain(model(), tokens=8))
    assert "for time" not in str(autolora.explain(model(), tokens=8))


def test_timings_that_lack_an_objective_are_used_and_reported_once(caplog):
    net = model()
    autolora.tune(net, tokens=8, effort="quick")
    lean = model(objective="accuracy", max_saved_bytes=10**6)
    with caplog.at_level(logging.WARNING, "autolora"):
        for _ in range(2):
            lean(torch.randn(8, 24))
    assert [choice.reason for choice in lean[0]._autolora.choices.values()] == ["exact"]
    (record,) = caplog.records
    assert "are not tuned for accuracy and memory. To measure instead:" in record.message
    assert record.message.endswith("--objective accuracy --max-saved-bytes 1000000")


def test_the_environment_names_the_default(monkeypatch, caplog):
    net, told = model(), model(objective="time")
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "memory")
    monkeypatch.setenv("AUTOLORA_MAX_SAVED_BYTES", "20M")
    assert net[0]._autolora.policy.wanted == Objective("memory", 20 * 2**20)
    assert told[0]._autolora.policy.wanted == Objective("time")
    assert model(max_saved_bytes=5)[0]._autolora.policy.wanted == Objective("memory", 5)
    assert model(objective="accuracy")[0]._autolora.policy.wanted == Objective(
        "accuracy", 20 * 2**20
    )
    assert caplog.records == []
    (layer,) = autolora.explain(net, tokens=8).layers
    assert layer.objective == Objective("memory", 20 * 2**20)


@pytest.mark.parametrize(
    ("variable", "value", "message", "wanted"),
    [
        (
            "AUTOLORA_OBJECTIVE",
            "speed",
            "AUTOLORA_OBJECTIVE: objective must be one of time, memory, accuracy, not 'speed'; "
            "taken as time",
            Objective("time", 7),
        ),
        (
            "AUTOLORA_MAX_SAVED_BYTES",
            "much",
            "AUTOLORA_MAX_SAVED_BYTES must be a whole number of bytes such as 1500000, 512K, 20M "
            "or 1G, not 'much'; taken as no limit",
            Objective("memory"),
        ),
    ],
)
def test_a_wrong_default_is_one_warning(monkeypatch, caplog, variable, value, message, wanted):
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "memory")
    monkeypatch.setenv("AUTOLORA_MAX_SAVED_BYTES", "7")
    monkeypatch.setenv(variable, value)
    assert [model()[0]._autolora.policy.wanted for _ in range(3)] == [wanted] * 3
    assert [record.getMessage() for record in caplog.records] == [f"autolora: {message}"]


def test_an_objective_travels_with_its_layer():
    net = model(objective="memory", max_saved_bytes=9)
    assert copy.deepcopy(net)[0]._autolora.policy.objective == Objective("memory", 9)
    there = pickle.loads(pickle.dumps(net))
    assert there[0]._autolora.policy.objective == Objective("memory", 9)
    layer = autolora.LoRALinear(8, 8, 2, alpha=2, objective="accuracy")
    assert layer._autolora.policy.wanted == Objective("accuracy")


def test_a_wrong_objective_changes_no_model():
    net = nn.Sequential(nn.Linear(24, 16))
    with pytest.raises(autolora.AutoloraError, match="objective must be one of"):
        autolora.add_lora(net, rank=4, objective="speed")
    assert type(net[0]) is nn.Linear
    assert net[0].weight.requires_grad


@pytest.mark.parametrize("objective", ["time", "memory", "accuracy"])
def test_gradients_do_not_depend_on_the_objective(objective):
    net = model(objective=objective, max_saved_bytes=1)
    nn.init.normal_(net[0].lora_B.weight)
    autolora.tune(net, tokens=8, effort="quick")
    pinned = copy.deepcopy(net)
    pin(pinned, reference_graph)
    x = torch.randn(8, 24)
    for each in (net, pinned):
        each(x).square().sum().backward()
    for mine, theirs in zip(net.parameters(), pinned.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
