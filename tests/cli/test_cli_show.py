"""``autolora show``."""

from dataclasses import replace

from commands import QUICK

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache


def test_show_an_empty_cache(autolora):
    completed = autolora("show")
    assert completed.code == 0
    assert "Nothing measured yet" in completed.out


def test_show(autolora):
    autolora("tune", "model.py", *QUICK)
    path = search_path()[0]
    (record, *_) = TimingCache.load(path).records
    completed = autolora("show")
    assert completed.code == 0
    assert f"{path}: 2 records" in completed.out
    assert record.environment.device_name in completed.out
    assert record.winner in completed.out
    assert "accurate" not in completed.out
    verbose = autolora("show", "--verbose").out
    assert all(candidate.graph in verbose for candidate in record.candidates)
    assert "wins time" in verbose
    assert "FLOPs choice" in verbose
    assert "the layer without its adapter" in verbose
    (file, *_) = autolora("show", "--json").json["files"]
    assert file["path"] == str(path)
    assert [entry["winner"] for entry in file["records"]] == [
        record.winner for record in TimingCache.load(path).records
    ]


def test_show_by_machine_and_by_section(autolora):
    autolora("tune", "model.py", *QUICK)
    path = search_path()[0]
    cache = TimingCache.load(path)
    for record in cache.records:
        other = replace(record.environment, device_name="[bold]Other[/bold]")
        cache.publish(replace(record, environment=other))
        cache.publish(replace(record, problem=replace(record.problem, rank=4)))
    completed = autolora("show", "--cache", str(path)).out
    assert "6 records" in completed
    assert "[bold]Other[/bold]" in completed
    assert completed.count("rank 2, float32") == 2  # once for each machine
    assert completed.count("rank 4, float32") == 1
