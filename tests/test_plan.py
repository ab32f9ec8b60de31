"""Which graph a layer takes, how often it asks, and what it says about it."""

import json
import logging

import peft
import pytest
import torch
from torch import nn

import autolora
from autolora.graphs.space import analytic_graph, flops_graph, reference_graph
from autolora.nn import plan
from autolora.nn.plan import pin


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
    plain = json.loads(json.dumps(autolora.explain(net).to_json()))
    assert plain["layers"][0]["problem"]["tokens"] == 32


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
    original = plan.decide

    def decide(problem, *others):
        asked.append(problem.tokens)
        return original(problem, *others)

    monkeypatch.setattr(plan, "decide", decide)
    for tokens in (8, 9, 8, 9, 8):
        net(torch.randn(tokens, 24))
    assert asked == [8, 9]


def test_memory_stays_bounded_over_many_token_counts(monkeypatch):
    monkeypatch.setattr(plan, "_MEMO_SIZE", 5)
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
    plan.refresh()
    net = model()
    with caplog.at_level(logging.WARNING, "autolora"):
        net(torch.randn(8, 24)).sum().backward()
    assert str(path) in caplog.text
    assert [choice.reason for choice in net[0]._autolora.choices.values()] == ["miss"]
    assert path.read_text() == '{"schema_version": 1, '


def test_a_graph_that_is_not_known_is_a_miss():
    net = model()
    (record, *_) = autolora.tune(net, tokens=8, effort="quick").records
    path = plan._lookup().layers[0].path
    text = path.read_text()
    for candidate in record.candidates:
        text = text.replace(f'"{candidate.graph}"', f'"{candidate.graph}/of=tomorrow"')
    path.write_text(text)
    plan.refresh(net)
    net(torch.randn(8, 24))
    assert [choice.reason for choice in net[0]._autolora.choices.values()] == ["miss"]
