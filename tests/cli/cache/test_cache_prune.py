"""``autolora cache prune``."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cache_files import held, keep, on_gpu
from records import CPU, H100, XEON, make_record

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.records.document import parse


@pytest.fixture
def mixed():
    """A file of three environments, with an old and a new record of the first."""
    path = search_path()[0]
    now = datetime.now(UTC)
    moments = [(now - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (100, 10)]
    old, new = (replace(make_record(n + 1), measured_at=at) for n, at in enumerate(moments))
    xeon = replace(make_record(1, environment=XEON), measured_at=moments[1])
    gpu = replace(on_gpu(), measured_at=moments[1])
    keep(path, old, new, xeon, gpu)
    return path, {"old": old, "new": new, "xeon": xeon, "gpu": gpu}


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        (["--older-than", "90d"], {"new", "xeon", "gpu"}),
        (["--older-than", "15w"], {"old", "new", "xeon", "gpu"}),
        (["--older-than", "2500h"], {"old", "new", "xeon", "gpu"}),
        (["--keep-environment", CPU.id], {"old", "new"}),
        (["--keep-environment", XEON.id[:4].upper()], {"xeon"}),
        (["--keep-environment", "this"], {"old", "new", "gpu"}),
        (["--keep-environment", XEON.id, "--keep-environment", H100.id], {"xeon", "gpu"}),
        (["--keep-environment", "this", "--older-than", "90d"], {"new", "gpu"}),
    ],
)
def test_prune_keeps_what_it_should(autolora, machine, mixed, words, stay):
    path, records = mixed
    before = path.read_bytes()
    dry = autolora("prune", *words, "--dry-run")
    assert dry.code == 0
    assert path.read_bytes() == before
    completed = autolora("prune", *words)
    assert completed.code == 0
    assert {record.line for record in held(path)} == {records[name].line for name in stay}
    assert completed.out.endswith(
        "1 record stays\n" if len(stay) == 1 else f"{len(stay)} records stay\n"
    )
    removed = len(records) - len(stay)
    assert (f"{removed} removed, " if removed else "nothing to remove, ") in completed.out


def test_prune_says_what_went_by_environment(autolora, machine, mixed):
    path, _ = mixed
    completed = autolora("prune", "--keep-environment", XEON.id, "--json")
    document = completed.json
    assert document["removed_by_environment"] == {CPU.id: 2, H100.id: 1}
    assert (document["kept"], document["removed"], document["file"]) == (1, 3, str(path))
    assert set(document["environments"]) == {CPU.id, H100.id}


def test_prune_does_not_lose_what_others_publish_meanwhile(autolora, machine, mixed, monkeypatch):
    path, records = mixed
    late = make_record(77, environment=XEON)
    rewrite = TimingCache.rewrite

    def interrupted(place, keep):
        TimingCache([late], place).save()
        return rewrite(place, keep)

    monkeypatch.setattr(TimingCache, "rewrite", interrupted)
    assert autolora("prune", "--keep-environment", XEON.id).code == 0
    assert {r.line for r in held(path)} == {records["xeon"].line, late.line}


def test_prune_never_removes_all_without_a_yes(autolora, mixed):
    path, _ = mixed
    before = path.read_bytes()
    completed = autolora("prune", "--older-than", "1h")
    assert completed.code == 2
    assert "no record would be left of 4 records" in completed.err
    assert path.read_bytes() == before
    assert autolora("prune", "--older-than", "1h", "--yes").code == 0
    assert held(path) == []


def test_prune_standard_input_to_standard_output_or_a_file(autolora, mixed):
    path, records = mixed
    data = path.read_bytes()
    completed = autolora("prune", "-", "--keep-environment", XEON.id, stdin=data)
    (kept,) = parse(completed.out.encode()).lines.values()
    assert kept == records["xeon"].line
    assert "standard output: 3 removed, 1 record stays" in completed.err
    keep("out.json", records["gpu"])
    completed = autolora("prune", "-", "--keep-environment", XEON.id, "-o", "out.json", stdin=data)
    assert {r.line for r in held("out.json")} == {records["xeon"].line, records["gpu"].line}
    assert completed.out.endswith("out.json: 3 removed, 1 record stays\n")
    assert path.read_bytes() == data


def test_the_oldest_age_removes_nothing(autolora, mixed):
    assert "nothing to remove" in autolora("prune", "--older-than", "99999w").out
