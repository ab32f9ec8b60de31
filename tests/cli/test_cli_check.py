"""What ``autolora check`` says of a cache, and with which exit code it ends."""

import json
import os
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from records import make_record

from autolora import AutoloraError, Problem, TimingCache
from autolora.cache.files.paths import search_path
from autolora.cli import check as room
from autolora.cli import main
from autolora.environment import Environment
from autolora.graphs.space import valid_graphs
from autolora.timing.data import Data
from autolora.tuning import check as checking

HERE = Environment.of(torch.device("cpu"))
SMALL = Problem(24, 16, 32, 4, "float32", "cpu")
REFERENCE, WON, RIVAL = list(valid_graphs(SMALL))[:3]
TIMES = {REFERENCE: 2000, WON: 1000, RIVAL: 1050}


def record_of(tokens=32, times=TIMES, **changes):
    return make_record(
        times=times, problem=replace(SMALL, tokens=tokens), environment=HERE, **changes
    )


@pytest.fixture
def say(capsys):
    """Runs ``autolora check``: its exit code, stdout in one line, and stderr."""

    def say(*words):
        code = main(("check", "--device", "cpu", *words))
        out, err = capsys.readouterr()
        return code, out if "--json" in words else " ".join(out.split()), err

    return say


@pytest.fixture
def clock(monkeypatch):
    """A clock on which the winners still win, unless ``slow`` names token counts and by how much;
    and what is tuned anew is won by the rival."""
    slow = {}

    def step(self, graph):
        times = {WON: 100.0 * slow.get(self.problem.tokens, 1.0), RIVAL: 100.0}
        return lambda: times.get(graph.name, 150.0)

    monkeypatch.setattr(Data, "step", step)
    monkeypatch.setattr(checking, "measure_for", lambda device: lambda run: run())
    monkeypatch.setattr(
        checking,
        "measure_problem",
        lambda problem, *_, **__: record_of(problem.tokens, {REFERENCE: 2000, RIVAL: 900}),
    )
    return slow


def keep(*records, path=None):
    TimingCache(records, path or search_path()[0]).save()


def test_winners_that_win(say, clock):
    keep(record_of(8), record_of(16))
    code, out, err = say()
    assert code == 0
    assert out.endswith("2 of 2 winners still win (within 5 % and the noise).")
    assert HERE.device_name in out
    assert "is now" not in out
    assert "2/2 measured 24 → 16, " in " ".join(err.split())
    assert "\x1b" not in out + err


def test_a_winner_that_has_drifted_is_told_with_what_beats_it(say, clock):
    keep(record_of(8), record_of(16), record_of(32), make_record())
    clock.update({16: 1.083, 32: 1.02})
    code, out, _ = say()
    assert code == 1
    told = "24 → 16, 16 tokens, dX, dA, dB, rank 4, float32"
    assert f"{told} {WON} is now 8.3 % ± 0.0 % slower than {RIVAL}" in out
    assert f"is now 2.0 % ± 0.0 % slower than {RIVAL} 2 of 3 winners" in out  # the worst come first
    assert out.endswith(
        "2 of 3 winners still win (within 5 % and the noise), 1 drifted by more than 5 %; 1 record "
        "of other machines or libraries was not timed. The same command with --fix tunes these "
        "anew."
    )


def test_fix_replaces_what_has_drifted_and_still_ends_with_1(say, clock):
    stays = record_of(8)
    keep(stays, record_of(16))
    clock[16] = 1.2
    code, out, _ = say("--fix")
    assert code == 1
    assert f"Tuned anew, the winner is {RIVAL}" in out
    assert out.endswith(f"1 record tuned anew and replaced in {search_path()[0]}.")
    kept = TimingCache.load(search_path()[0]).records
    assert [(record.problem.tokens, record.winner) for record in kept] == [(8, WON), (16, RIVAL)]
    assert kept[0] == stays
    clock.clear()
    assert say("--fix")[0] == 0


def test_a_winner_that_is_no_graph_has_drifted_too(say, clock):
    keep(record_of(times={REFERENCE: 2000, "no/such=graph": 1000}))
    code, out, _ = say()
    assert code == 1
    assert "no/such=graph is no valid graph of this version of autolora" in out
    assert "0 of 1 winner still win (within 5 % and the noise), 1 no longer valid." in out
    code, out, _ = say("--fix")
    assert code == 1
    assert f"Tuned anew, the winner is {RIVAL}" in out
    assert say()[0] == 0


def test_what_cannot_be_timed_is_an_error_of_its_own(say, clock, monkeypatch):
    make = Data.random

    def random_data(problem, *rest, **options):
        if problem.tokens == 8:
            raise AutoloraError("needs bitsandbytes")
        return make(problem, *rest, **options)

    monkeypatch.setattr(Data, "random", random_data)
    keep(record_of(8), record_of(16))
    code, out, err = say()
    assert code == 2
    assert "1 of 2 winners still wins (within 5 % and the noise), 1 could not be timed." in out
    assert "error: could not time 24→16 tokens 8 rank 4 float32 cpu XAB: needs bitsandbytes" in err
    clock[16] = 1.2
    assert say()[0] == 1


def test_a_sample_is_drawn(say, clock):
    keep(*map(record_of, range(1, 31)))
    code, out, _ = say()
    assert (code, "20 of 20 winners" in out, "10 more were not drawn" in out) == (0, True, True)
    drawn = [
        [each["record"]["problem"]["tokens"] for each in json.loads(out)["checked"]]
        for _, out, _ in (say("--sample", "3", "--json", *seed) for seed in ((), ("--seed", "2")))
    ]
    assert [len(tokens) for tokens in drawn] == [3, 3]
    assert drawn[0] != drawn[1]
    assert say("--sample", "3", "--json") == say("--sample", "3", "--json")


def test_a_spent_budget_and_ctrl_c_say_what_is_left(say, clock, monkeypatch):
    keep(record_of(8), record_of(16))
    clock.update({8: 1.2, 16: 1.2})
    with monkeypatch.context() as patched:
        ticking = partial(checking.check_records, clock=count().__next__)
        patched.setattr(room, "check_records", ticking)
        code, out, _ = say("--budget", "1")
    assert (code, "The budget is spent: 0 of 0 winners" in out) == (0, True)
    assert "2 still to check" in out

    check = checking._check
    seen = []

    def interrupted(*given):
        seen.append(given)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return check(*given)

    monkeypatch.setattr(checking, "_check", interrupted)
    code, out, err = say("--fix")
    assert code == 130
    assert out.count("is now 20.0 %") == 1  # what was checked is told
    assert "Interrupted: 0 of 1 winner" in out
    assert {record.winner for record in TimingCache.load(search_path()[0]).records} == {WON}
    assert "Traceback" not in err

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "measure_problem", stop)
    code, out, _ = say("--fix")
    assert code == 130
    path = search_path()[0]
    told = f"Interrupted: 0 records tuned anew and replaced in {path}, 2 still to do."
    assert out.endswith(told)


def test_what_cannot_be_fixed_is_told(say, clock, monkeypatch):
    def fail(*_, **__):
        raise AutoloraError("needs bitsandbytes")

    monkeypatch.setattr(checking, "measure_problem", fail)
    keep(record_of())
    clock[32] = 1.2
    code, out, err = say("--fix")
    assert code == 1
    assert "0 records tuned anew" in out
    assert "1 could not be." in out
    assert "could not measure 24→16 tokens 32 rank 4 float32 cpu XAB anew: needs" in err


def test_a_record_of_a_further_layer_is_fixed_in_the_first(say, clock, monkeypatch, tmp_path):
    first, shared = tmp_path / "own.json", tmp_path / "shared.json"
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(map(str, (first, shared))))
    shadowed = record_of(8, {REFERENCE: 2000, "no/such=graph": 1000})
    keep(record_of(8), path=first)
    keep(shadowed, record_of(16), path=shared)
    before = shared.read_bytes()
    clock[16] = 1.2
    code, out, _ = say("--fix")
    assert code == 1
    assert "1 of 2 winners still wins" in out  # of two for one problem the first layer's answers
    assert shared.read_bytes() == before
    assert {r.problem.tokens: r.winner for r in TimingCache.load(first).records} == {
        8: WON,
        16: RIVAL,
    }
    assert say()[0] == 0


def test_json_is_one_document(say, clock):
    keep(record_of(8), record_of(16), make_record())
    clock[16] = 1.2
    code, out, _ = say("--json", "--fix")
    found = json.loads(out)
    assert code == 1
    assert found["files"] == [str(path) for path in search_path()]
    by_tokens = {each["record"]["problem"]["tokens"]: each for each in found["checked"]}
    assert [by_tokens[8][name] for name in ("wins_now", "drift", "drifted")] == [WON, 0.0, False]
    assert [by_tokens[16][name] for name in ("wins_now", "drifted")] == [RIVAL, True]
    assert by_tokens[16]["drift"] == pytest.approx(0.2)
    assert by_tokens[8]["record"]["environment"] in found["environments"]
    assert (found["tolerance"], found["elsewhere"], found["undrawn"]) == (0.05, 1, 0)
    assert [record["winner"] for record in found["fixed"]["records"]] == [RIVAL]
    assert (found["failed"], found["unfinished"], found["interrupted"]) == ([], [], False)
    assert json.loads(say("--json")[1])["fixed"] is None


def test_nothing_to_check(say, tmp_path):
    code, out, _ = say("--fix")
    assert code == 0
    nothing = "Nothing to check: the search path has no records of this machine and its libraries"
    assert out == f"{nothing}."
    assert not search_path()[0].exists()
    other = tmp_path / "other.json"
    keep(make_record(8), make_record(16), path=other)
    code, out, _ = say("--cache", str(other))
    assert (code, out.endswith("and its libraries, but 2 records of others.")) == (0, True)
    assert json.loads(say("--json")[1])["checked"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cache", "missing.json"), "no such cache file: missing.json"),
        (("--cache", "broken.json"), "it is corrupt"),
        (("--sample", "0"), "whole number of at least 1, not '0'"),
        (("--budget", "soon"), "not 'soon'"),
        (("--device", "gpu"), "cpu, cuda or cuda:N, not 'gpu'"),
    ],
)
def test_bad_input_is_one_clear_error(say, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{", encoding="utf-8")
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("autolora: error: ") == 1


def test_an_unwritable_cache_is_found_out_before_anything_is_timed(say, monkeypatch):
    monkeypatch.setattr(room, "check_records", lambda *_, **__: pytest.fail("timed"))
    keep(record_of())
    monkeypatch.setattr("autolora.cache.files.writing.LIMIT", 0)
    code, _, err = say("--fix")
    assert code == 2
    assert "cannot write the timing cache" in err


def test_on_the_real_clock_it_runs(say):
    keep(record_of())
    code, out, _ = say()
    assert code in (0, 1)
    assert " of 1 winner still win" in out


def test_help_fits_a_small_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main(["check", "--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    assert shown.startswith("usage: autolora check [options]")
    assert max(map(len, shown.splitlines())) <= 80
