"""Strict mode: a miss in training is an error, and says all that is needed to mend it."""

import copy
import os
from dataclasses import replace

import pytest
import torch
from one_layer import LAYER, TALL, model, ran, record_of
from records import REFERENCE

import autolora
from autolora.cache.files.store import TimingCache
from autolora.cli import main
from autolora.environment import Environment
from autolora.graphs.space import reference_graph
from autolora.nn import choosing
from autolora.nn.strict import is_strict

HERE = Environment.of("cpu")
THREADS = replace(HERE, units=HERE.units + 7)


def saved(path, *records):
    TimingCache(records, path).save()
    choosing.refresh()


def choices(net):
    return list(net[0]._autolora.choices.values())


# ---- the switch


@pytest.mark.parametrize(
    ("value", "meaning", "warns"),
    [
        *((value, True, 0) for value in ("1", "true", "YES", " True ", "on")),
        *((value, False, 0) for value in ("", " ", "0", "false", "No", "OFF")),
        *((value, False, 1) for value in ("2", "strict", "-1", "\x1b[2J" * 999)),
    ],
)
def test_the_variable(monkeypatch, warnings, value, meaning, warns):
    monkeypatch.setenv("AUTOLORA_STRICT", value)
    assert [is_strict() for _ in range(3)] == [meaning] * 3
    assert len(warnings()) == warns
    for warning in warnings():
        assert "AUTOLORA_STRICT must be 1, true or yes, or 0, false or no, not" in warning
        assert len(warning) < 600
        assert "\x1b" not in warning


def test_without_the_variable_it_is_off():
    assert not is_strict()


def test_the_call_overrules_the_variable(monkeypatch):
    monkeypatch.setenv("AUTOLORA_STRICT", "1")
    autolora.strict(False)
    assert not is_strict()
    monkeypatch.setenv("AUTOLORA_STRICT", "0")
    autolora.strict()
    assert is_strict()


def test_a_block_puts_back_what_held_before(monkeypatch):
    with autolora.strict():
        assert is_strict()
        with autolora.strict(False):
            assert not is_strict()
        assert is_strict()
    assert not is_strict()
    monkeypatch.setenv("AUTOLORA_STRICT", "1")
    assert is_strict()  # the variable decides again
    with pytest.raises(KeyError), autolora.strict(False):
        raise KeyError
    assert is_strict()


@pytest.mark.parametrize("given", ["no", 1, None])
def test_what_is_neither_on_nor_off_is_refused(given):
    with pytest.raises(autolora.AutoloraError, match="must be given True or False, not"):
        autolora.strict(given)
    assert not is_strict()


# ---- the error


def test_a_miss_in_training_is_an_error_until_it_is_tuned(warnings):
    net = model()
    with autolora.strict():
        for _ in range(2):
            with pytest.raises(autolora.MissError):
                net(torch.randn(8, 24))
            assert choices(net) == []
        autolora.tune(net, tokens=8, effort="quick")
        assert ran(net)[1] == "exact"
    assert issubclass(autolora.MissError, autolora.AutoloraError)
    assert warnings() == []  # the error says it all


def test_the_variable_does_the_same(monkeypatch):
    monkeypatch.setenv("AUTOLORA_STRICT", "yes")
    with pytest.raises(autolora.MissError):
        model()(torch.randn(8, 24))


def test_the_error_says_what_is_missing_what_is_closest_and_what_to_do(path, monkeypatch):
    other = path.with_name("other.json")
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(map(str, (path, other))))
    near = replace(LAYER, rank=8, gradients=("X", "A", "B"), tokens=8)
    far = replace(near, in_features=48, dropout=True)
    saved(path, replace(record_of(TALL), problem=far))
    saved(other, replace(record_of(TALL, environment=THREADS), problem=near))
    with autolora.strict(), pytest.raises(autolora.MissError) as caught:
        model(objective="memory", max_saved_bytes=4096)(torch.randn(8, 24))
    said = str(caught.value)
    for words in (
        f"no timings for memory within 4096 bytes for {LAYER.at(8)} on {HERE.device_name}",
        f"the closest record, {near}, differs in rank (wanted 4, found 8), "
        f"gradients (wanted A+B, found X+A+B), units (wanted {HERE.units}, found {THREADS.units})",
        f"asked: {path}, {other}",
        "autolora.tune(model, tokens=8)",
        "autolora tune MODEL --rank 4 --dtype float32 --device cpu --tokens 8 --objective memory "
        "--max-saved-bytes 4096",
        "autolora.strict(False)",
    ):
        assert words in said
    assert "\n" not in said


def test_the_error_without_any_record(path):
    with autolora.strict(), pytest.raises(autolora.MissError) as caught:
        model()(torch.randn(8, 24))
    assert "no records at all" in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_error_where_a_record_names_no_graph_that_can_be_used(path):
    unknown = record_of(TALL)
    text = unknown.line.replace(f':"{REFERENCE}"', ':"tomorrow"')
    text = text.replace(TALL, f"{TALL}/of=tomorrow")
    saved(path, record_of(TALL))
    path.write_text(path.read_text().replace(unknown.line, text))
    choosing.refresh()
    with autolora.strict(), pytest.raises(autolora.MissError) as caught:
        model()(torch.randn(8, 24))
    assert "there is a record of it, but no graph that it names can be used" in str(caught.value)


def test_the_error_of_a_frozen_model_names_its_plan(path):
    saved(path, record_of(TALL))
    net = model()
    autolora.freeze(net)
    path.unlink()
    with autolora.strict():
        assert ran(net)[1] == "exact"
        with pytest.raises(autolora.MissError) as caught:
            net(torch.randn(99, 24))
    assert f"asked: {path}, " in str(caught.value)
    assert " (frozen). To measure it" in str(caught.value)
    assert "autolora.tune(model, tokens=99) and autolora.freeze(model) again" in str(caught.value)
    assert "differs in tokens (wanted 99, found 8)" in str(caught.value)


# ---- other environments


def test_other_environments_do_not_answer(path):
    saved(path, record_of(TALL, environment=THREADS))
    net = model()
    assert ran(net)[1] == "other-environment"
    with autolora.strict(), pytest.raises(autolora.MissError) as caught:
        net(torch.randn(8, 24))
    assert f"differs in units (wanted {HERE.units}, found {THREADS.units})" in str(caught.value)
    assert ran(net)[:2] == (TALL, "other-environment")


@pytest.mark.parametrize(("tokens", "reason"), [(8, "exact"), (16, "interpolated"), (4, "nearest")])
def test_all_better_answers_do(path, tokens, reason):
    saved(path, record_of(TALL), record_of(TALL, 64))
    with autolora.strict():
        assert ran(model(), tokens)[:2] == (TALL, reason)


# ---- what never raises


def test_evaluation_does_not_raise(path):
    saved(path, record_of(TALL, environment=THREADS))
    net = model()
    with autolora.strict():
        with torch.no_grad():
            net(torch.randn(8, 24))
        with torch.inference_mode():
            net(torch.randn(8, 24))
        copy.deepcopy(net).requires_grad_(False)(torch.randn(8, 24))
        assert [(c.reason, "strict" in c.detail) for c in choices(net)] == [("miss", False)]


def test_calls_that_take_the_plain_path_do_not_raise():
    net = model()
    with autolora.strict():
        net(torch.randn(24)).sum().backward()
        net[0].base_layer.register_forward_hook(lambda *_: None)
        net(torch.randn(8, 24)).sum().backward()
    assert [(c.reason, c.detail) for c in choices(net)] == [("left", "input of one axis")]


def test_pinned_layers_do_not_raise():
    net = model()
    choosing.pin(net, reference_graph)
    with autolora.strict():
        assert ran(net)[:2] == (REFERENCE, "pinned")


# ---- switching while layers remember


def test_a_layer_that_was_called_before_raises_too(path):
    saved(path, record_of(TALL))
    net = model()
    for tokens in (8, 8, 999):
        net(torch.randn(tokens, 24))
    with autolora.strict():
        with pytest.raises(autolora.MissError):
            net(torch.randn(999, 24))
        net(torch.randn(8, 24))
    net(torch.randn(999, 24))
    assert {c.problem.tokens: c.calls for c in choices(net)} == {8: 3, 999: 1}


# ---- explain


def test_explain_says_it_and_does_not_raise(path):
    whole = replace(LAYER, gradients=("X", "A", "B"), tokens=8)  # what it is asked about ahead
    saved(path, replace(record_of(REFERENCE, environment=THREADS), problem=whole))
    net = model()
    assert autolora.explain(net, tokens=8).counts == {"other-environment": 1}
    with autolora.strict():
        (layer,) = autolora.explain(net, tokens=8).layers
        assert autolora.explain(net).layers == []
    assert layer.reason == "miss"
    assert layer.detail.startswith("not tuned; an error in strict mode, else chosen by FLOPs")


MODEL = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(24, 16))
def example_inputs(batch_size, seq_len):
    return torch.zeros(batch_size, seq_len, 24)
"""


@pytest.fixture
def explain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")

    def say(*options):
        words = ("model.py", "--rank", "4", "--batch-size", "2", "--seq-len", "4", *options)
        assert main(["explain", *words]) == 0
        return capsys.readouterr().out

    return say


def test_the_command_tells_of_other_environments(path, explain):
    saved(path, record_of(TALL, environment=THREADS))
    said = explain()
    kind = f"same device and torch minor: differs in units {THREADS.units}"
    assert f"other-environment, {kind}" in said
    assert "1 layer: 1 other-environment." in said
    assert "To tune them for this environment: autolora tune model.py --rank 4" in said
    assert '"counts": {\n    "other-environment": 1\n  }' in explain("--json")


def test_the_command_in_strict_mode(path, explain, monkeypatch):
    saved(path, record_of(TALL, environment=THREADS))
    monkeypatch.setenv("AUTOLORA_STRICT", "1")
    said = explain()
    assert "not tuned, an error in strict mode, else chosen by FLOPs and bytes" in said
    assert "1 layer: 1 not tuned." in said
    assert '"reason": "miss"' in explain("--json")
