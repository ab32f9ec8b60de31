"""``autolora show``."""

from dataclasses import replace

from commands import QUICK

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache


def test_show_an_empty_cache(say):
    said = say("show")
    assert said.code == 0
    assert "Nothing measured yet" in said.out


def test_show(say):
    say("tune", "model.py", *QUICK)
    path = search_path()[0]
    (record, *_) = TimingCache.load(path).records
    said = say("show")
    assert said.code == 0
    assert f"{path}: 2 records" in said.out
    assert record.environment.device_name in said.out
    assert record.winner in said.out
    assert "accurate" not in said.out
    verbose = say("show", "--verbose").out
    assert all(candidate.graph in verbose for candidate in record.candidates)
    assert "wins time" in verbose
    assert "FLOPs choice" in verbose
    assert "the layer without its adapter" in verbose
    (file, *_) = say("show", "--json").json["files"]
    assert file["path"] == str(path)
    assert [entry["winner"] for entry in file["records"]] == [
        record.winner for record in TimingCache.load(path).records
    ]


def test_show_by_machine_and_by_section(say):
    say("tune", "model.py", *QUICK)
    path = search_path()[0]
    cache = TimingCache.load(path)
    for record in cache.records:
        other = replace(record.environment, device_name="[bold]Other[/bold]")
        cache.publish(replace(record, environment=other))
        cache.publish(replace(record, problem=replace(record.problem, rank=4)))
    said = say("show", "--cache", str(path)).out
    assert "6 records" in said
    assert "[bold]Other[/bold]" in said
    assert said.count("rank 2, float32") == 2  # once for each machine
    assert said.count("rank 4, float32") == 1
