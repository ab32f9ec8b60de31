"""``autolora tune``: estimates, ranges of tokens, budgets and noise, as a user sees them."""

import random
from pathlib import Path

import pytest
from commands import QUICK

from autolora import TimingCache
from autolora.cli import arguments
from autolora.timing import measurement
from autolora.tuning import result


def test_an_estimate_is_labelled_and_writes_nothing(autolora, path):
    completed = autolora(
        "tune", "model.py", "--rank", "2", "--effort", "estimate", "--tokens", "8:64"
    )
    assert completed.code == 0
    assert completed.out.startswith("Estimates: nothing was timed, and nothing is written")
    assert "8 problems that are in no cache" in " ".join(completed.out.split())
    assert max(map(len, completed.out.splitlines())) <= 80
    assert not path.exists()
    completed = autolora("tune", "model.py", "--rank", "2", "--effort", "estimate", "--json")
    (first, second) = completed.json["estimates"]
    assert completed.json["effort"] == "estimate"
    assert first["problem"]["in_features"] == 8
    assert first["layers"] == second["layers"] == 1
    assert not path.exists()


def test_a_range_of_tokens_shows_which_graph_runs_where(autolora, path):
    completed = autolora("tune", "model.py", *QUICK, "--tokens", "8:64")
    assert completed.code == 0
    assert {record.problem.tokens for record in TimingCache.load(path).records} >= {8, 16, 32, 64}
    assert "measured at 8, 16, 32, 64; used from 4 to 128" in completed.out
    assert "8 to 64 tokens" in completed.out
    shown = autolora("show", "--crossovers")
    assert "measured at 8, 16, 32, 64; used from 4 to 128" in shown.out
    explained = autolora("explain", "model.py", "--rank", "2", "--tokens", "23")
    assert "2 layers: 2 interpolated." in explained.out


def test_counts_added_between_are_part_of_the_document(autolora, monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(  # the winner is chance, so that counts are added everywhere
        measurement,
        "measure_for",
        lambda device: lambda run: (run(), 1e6 * rng.uniform(1, 1.001))[1],
    )
    completed = autolora("tune", "model.py", *QUICK, "--tokens", "8:4096", "--json")
    assert completed.code == 0
    tokens = {record["problem"]["tokens"] for record in completed.json["records"]}
    assert tokens >= {8, 16, 4096}
    assert all(record["layers"] == 1 for record in completed.json["records"])


@pytest.mark.parametrize(
    ("busy", "told", "again"),
    [
        (False, "of them undecided: the winner is within", "Run it again:"),
        (True, "of them while other processes kept the machine busy", "when the machine is quiet:"),
    ],
)
def test_noise_is_told(autolora, monkeypatch, busy, told, again):
    rng = random.Random(0)
    monkeypatch.setattr(
        measurement,
        "measure_for",
        lambda device: lambda run: (run(), 1e6 * rng.choice((1, 3, 9)) * rng.uniform(1, 3))[1],
    )
    monkeypatch.setattr(measurement.conditions, "disturbed", lambda found, device: busy)
    monkeypatch.setattr(result, "disturbed", lambda found, device: busy)
    completed = " ".join(autolora("tune", "model.py", *QUICK).out.split())
    assert "2 problems measured" in completed
    assert told in completed
    assert again in completed


def test_more_problems_than_anyone_meant_need_a_yes(autolora, path, monkeypatch):
    from autolora.cli import tune

    monkeypatch.setattr(tune, "MANY", 3)
    completed = autolora("tune", "model.py", *QUICK, "--tokens", "8,9")
    assert completed.code == 2
    assert "4 problems would take hours to measure" in completed.err
    assert not path.exists()
    assert autolora("tune", "model.py", *QUICK, "--tokens", "8,9", "--yes").code == 0
    assert len(TimingCache.load(path).records) == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("60s", 60), ("5m", 300), ("1h", 3600), ("1.5H", 5400), ("0.25", 0.25)],
)
def test_times_as_people_write_them(text, seconds):
    assert arguments.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "-5", "0", "0s", "5x", "m", "1e9", "inf", "nan", "1:30"])
def test_what_is_no_time(text):
    with pytest.raises(arguments.argparse.ArgumentTypeError, match="a time above 0, such as"):
        arguments.seconds(text)


def test_a_budget_in_words(autolora):
    completed = autolora("tune", "model.py", *QUICK, "--budget", "10m")
    assert completed.code == 0
    assert "2 problems measured" in completed.out
    assert Path("model.py").exists()
