"""All benchmarks by one command: real tools with tiny sizes, and made-up clocks and loads."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from made_up_clock import Clock

TOOLS = Path(__file__).parents[1] / "tools"
GOOD = "adapter_gain.py --shape 8 16 16 --rank 2 --draws 1 --size 0.1"
BAD = "adapter_gain.py --rank none"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_all")


def idle():
    return False


def test_a_benchmark_that_fails_is_named_and_the_rest_goes_on(tool, tmp_path, capsys, monkeypatch):
    two = [tool.Benchmark("bad", BAD, 1), tool.Benchmark("good", GOOD, 1)]
    missing = tool.run_all(two, tmp_path, 1000, busy=idle)
    assert list(missing) == ["bad"]
    assert missing["bad"].startswith("it ended with 2\n")
    assert "invalid int value: 'none'" in missing["bad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.log", "good.json"]
    found = json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))
    assert found["command"] == f"python tools/{GOOD}"
    assert found["environment"]["OMP_WAIT_POLICY"] == "passive"
    assert len(found["rows"]) == 4
    bad, good = capsys.readouterr().out.splitlines()
    assert bad.startswith("bad: about 1 min … failed after ")
    assert good.startswith("good: about 1 min … done after ")

    found["versions"]["commit"] = "abc"
    (tmp_path / "good.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(tool, "commit", lambda: "abc")
    assert list(tool.run_all(two, tmp_path, 1000, busy=idle)) == ["bad"]
    assert capsys.readouterr().out.splitlines()[1] == "good: done already"


@pytest.mark.parametrize(
    ("measured", "now", "words", "done"),
    [
        ("abc", "abc", "x.py", True),
        ("abc", "abd", "x.py", False),
        ("abc", "abc", "x.py --rank 8", False),
        ("abc+changes", "abc+changes", "x.py", False),
    ],
)
def test_results_count_for_their_command_and_commit(
    tool, tmp_path, monkeypatch, measured, now, words, done
):
    found = {
        "command": "python tools/x.py",
        "versions": {"commit": measured},
        "environment": {"torch": tool.torch.__version__},
    }
    (tmp_path / "x.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(tool, "commit", lambda: now)
    assert tool.is_done(tool.Benchmark("x", words, 1), tmp_path) == done


def made_up(tool, monkeypatch, taking):
    """Benchmarks that only move the clock; returns it, and the names of those that ran."""
    clock, ran = Clock(0.0), []

    def run(each, folder):
        ran.append(each.name)
        clock.pause(taking)
        return ""

    monkeypatch.setattr(tool, "run", run)
    return clock, ran, [tool.Benchmark(name, "x.py", 1) for name in "abcd"]


def test_nothing_starts_that_the_budget_does_not_hold(tool, tmp_path, monkeypatch, capsys):
    clock, ran, four = made_up(tool, monkeypatch, taking=40)
    four[1] = four[1]._replace(minutes=3)
    missing = tool.run_all(four, tmp_path, 130, busy=idle, clock=clock, sleep=clock.pause)
    assert ran == ["a", "c"]  # at 0 and 40; at 80 there are 50 s left
    assert missing == {
        "b": "the budget does not hold its 3 min",
        "d": "the budget does not hold its 1 min",
    }
    assert "b: the budget does not hold its 3 min" in capsys.readouterr().out


def test_nothing_starts_on_a_busy_machine(tool, tmp_path, monkeypatch):
    clock, ran, four = made_up(tool, monkeypatch, taking=40)
    with pytest.raises(SystemExit, match="other processes use much of the processors"):
        tool.run_all(four, tmp_path, 1000, busy=lambda: True, clock=clock, sleep=clock.pause)
    assert ran == []


def test_it_waits_for_other_work_between_benchmarks(tool, tmp_path, monkeypatch, capsys):
    clock, ran, four = made_up(tool, monkeypatch, taking=40)
    loads = iter([False, False, True, True, False])  # at first, before a, then before b
    busy = lambda: next(loads, True)  # noqa: E731
    missing = tool.run_all(four, tmp_path, 400, busy=busy, clock=clock, sleep=clock.pause)
    assert ran == ["a", "b"]
    assert list(missing) == ["c", "d"]
    assert clock.now == 380  # two minutes before b, three before the budget no longer holds c
    assert "b: other work, waiting … other work, waiting … about 1 min" in capsys.readouterr().out


def test_an_interrupt_keeps_what_is_finished(tool, tmp_path, monkeypatch):
    four = [tool.Benchmark(name, "x.py", 1) for name in "abcd"]

    def run(each, folder):
        if each.name == "b":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(tool, "run", run)
    missing = tool.run_all(four, tmp_path, 1000, busy=idle)
    assert missing == {"b": "interrupted", "c": "not reached", "d": "not reached"}


def test_a_machine_is_busy_as_it_is_disturbed_for_the_tuner(tool, monkeypatch):
    slept, shares = [], iter([0.1, 0.9])
    monkeypatch.setattr(tool.time, "sleep", slept.append)
    monkeypatch.setattr(tool.conditions, "shares", lambda start, end: (next(shares), 0.0))
    monkeypatch.setattr(tool.conditions, "disturbed", lambda found, _: found["others_busy"] > 0.2)
    assert [tool.busy(), tool.busy()] == [False, True]
    assert slept == [tool.LOOK, tool.LOOK]


def test_every_table_has_its_benchmarks(tool):
    tables = importlib.import_module("common.tables").TABLES
    names = [each.name for each in tool.BENCHMARKS]
    assert sorted(set(names)) == sorted(names)
    assert {name for _, *shown in tables.values() for name in shown} == set(names)


def test_every_command_is_understood(tool, monkeypatch, capsys):
    for each in tool.BENCHMARKS:
        path, *options = tool.script_of(each)
        monkeypatch.setattr(sys, "argv", [path, *options, "--help"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(Path(path).stem).main()
        assert ended.value.code == 0, each.name
    capsys.readouterr()
