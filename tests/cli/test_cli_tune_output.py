"""``autolora tune``: what it prints, keeps and writes as JSON, interrupts, kinds of adapters."""

import re
from pathlib import Path

import pytest
from commands import MODEL, QUICK

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.records.record import Record
from autolora.tuning import tuner


def test_tune_measures_prints_and_keeps(autolora, tmp_path):
    completed = autolora("tune", "model.py", *QUICK)
    assert completed.code == 0
    assert "8 → 16 +b" in completed.out
    assert "16 → 8 +b" in completed.out
    assert re.search(r"\d\.\d\dx", completed.out)
    assert "these 2 layers take" in completed.out
    assert "2 problems measured" in completed.out
    assert f"Cache: {tmp_path / 'timings.v1.json'}" in completed.out
    assert "loading" in completed.err  # what the model file prints is no result
    assert "loading" not in completed.out
    assert "2/2  measured 16 → 8 +b" in completed.err
    assert "\x1b" not in completed.out + completed.err
    assert len(TimingCache.load(search_path()[0]).records) == 2

    again = autolora("tune", "model.py", *QUICK)
    assert "0 problems measured, 2 already in the cache" in again.out
    assert "8 → 16 +b" in again.out  # what is known is shown all the same
    forced = autolora("tune", "model.py", *QUICK, "--force")
    assert "2 problems measured" in forced.out


def test_tune_json_is_one_document(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--json")
    assert completed.code == 0
    first, second = completed.json["records"]
    assert first["problem"]["gradients"] == ["A", "B"]  # fed by a frozen embedding
    assert second["problem"]["gradients"] == ["X", "A", "B"]
    assert (first["layers"], first["measured_now"]) == (1, True)
    assert first["speedup"] > 0
    assert first["environment"] in completed.json["environments"]
    assert completed.json["cache"] == str(search_path()[0])
    assert not completed.json["interrupted"]
    assert (
        autolora("tune", "model.py", *QUICK, "--json").json["records"][0]["measured_now"] is False
    )


def test_tokens_are_told_apart(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--tokens", "8,16")
    assert "In one step of 8 tokens" in completed.out
    assert "In one step of 16 tokens" in completed.out
    assert "4 problems measured" in completed.out


def test_a_cache_elsewhere_is_named_for_training(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--cache", "other.json")
    assert f"  export AUTOLORA_CACHE={Path('other.json').resolve()}" in completed.out
    assert Path("other.json").is_file()


def test_an_interrupt_keeps_what_is_finished(autolora, monkeypatch):
    measure, calls = tuner.measure_problem, []

    def measured(*args, **kwargs) -> Record:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    monkeypatch.setattr(tuner, "measure_problem", measured)
    completed = autolora("tune", "model.py", *QUICK)
    assert completed.code == 130
    assert "Interrupted: 1 problem measured" in completed.out
    assert "8 → 16 +b" in completed.out
    assert len(TimingCache.load(search_path()[0]).records) == 1
    assert "Traceback" not in completed.err


def test_an_interrupt_anywhere_else_is_one_line(autolora, monkeypatch):
    Path("model.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    completed = autolora("tune", "model.py", *QUICK)
    assert (completed.code, completed.out, completed.err) == (130, "", "autolora: interrupted\n")


def test_a_spent_budget_says_how_to_go_on(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--budget", "0.000001s")
    assert completed.code == 0
    assert "The budget is spent" in completed.out
    assert "2 still to do" in completed.out


def test_what_was_assumed_is_told_once(autolora):
    Path("model.py").write_text(MODEL.partition("def example")[0], encoding="utf-8")
    completed = autolora("tune", "model.py", *QUICK)
    assert completed.err.count("has no example_inputs") == 1
    assert "these 2 layers take" in completed.out  # the first layer's two problems are one layer


def test_a_rank_that_is_too_large_is_a_warning(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--rank", "9")
    assert completed.code == 0
    assert "autolora: warning: rank 9 is larger than a layer of 8→16" in completed.err
    assert ".py" not in completed.err


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--dropout", "0.1"], {"dropout": True}),
        (["--dora"], {"variant": "dora", "gradients": ["X", "A", "B", "M"]}),
        (["--lora-bias"], {"adapter_bias": True, "gradients": ["X", "A", "B", "c"]}),
        (["--quantised", "nf4", "--dora"], {"layout": "nf4", "variant": "dora"}),
        (["--quantised", "int8", "--dropout", "0.5"], {"layout": "int8", "dropout": True}),
    ],
)
def test_tune_knows_the_kinds_of_adapters(autolora, options, fields):
    Path("plain.py").write_text(MODEL, encoding="utf-8")
    arguments = ["plain.py", "--rank", "2", "--tokens", "16", *options]
    completed = autolora("tune", *arguments, "--effort", "quick", "--json")
    assert completed.code == 0
    *_, last = completed.json["records"]
    assert {name: last["problem"][name] for name in fields} == fields
    title = autolora("show").out
    assert ("DoRA rank 2" in title) == ("--dora" in options)
    assert "exact" in autolora("explain", *arguments).out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--dropout", "1"], "argument --dropout: must be at least 0 and below 1, not '1'"),
        (["--dropout", "much"], "argument --dropout: must be at least 0 and below 1, not 'much'"),
        (["--dora", "--lora-bias"], "DoRA with a bias in lora_B has no graphs but PEFT's"),
        (["--dora", "--quantised", "int8"], "DoRA on int8 layers has no graphs but PEFT's"),
        (["--quantised", "fp4"], "argument --quantised: invalid choice: 'fp4'"),
    ],
)
def test_tune_refuses_what_does_not_go_together(autolora, options, complaint):
    Path("plain.py").write_text(MODEL, encoding="utf-8")
    completed = autolora("tune", "plain.py", "--rank", "2", *options)
    assert completed.code != 0
    assert complaint in completed.err
    assert "Traceback" not in completed.err
