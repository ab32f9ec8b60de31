"""``autolora cache export``, and environments by the first digits of their ids."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from cache_files import better_of, held, keep, on_gpu
from records import CPU, H100, XEON, make_record

from autolora.cache.records.document import parse
from autolora.cli.cache import environments


def test_export_to_standard_output_is_a_cache_file(autolora, machine):
    keep("a.json", make_record(1), make_record(2, environment=XEON), on_gpu())
    keep("b.json", better_of(make_record(1)), make_record(3))
    completed = autolora("export", "a.json", "b.json", "--environment", CPU.id[:5], "--json")
    table = parse(completed.out.encode())
    table.check_all()
    assert set(table.lines.values()) == {better_of(make_record(1)).line, make_record(3).line}
    assert set(table.environments) == {CPU.id}
    completed = autolora("export", "-", "--environment", "this", stdin=Path("a.json").read_bytes())
    assert set(parse(completed.out.encode()).environments) == {CPU.id, H100.id}


def test_export_of_the_search_path_to_a_file(autolora, machine, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("a.json", "b.json", "none.json")))
    keep("a.json", make_record(1), make_record(2, environment=XEON))
    keep("b.json", make_record(3))
    completed = autolora("export", "--environment", "this", "-o", "out.json")
    assert completed.code == 0
    assert held("out.json") == [make_record(1), make_record(3)]
    assert completed.out == (
        f"2 records of {CPU.id}  AMD EPYC 9B14, 2 threads, AVX512, torch 2.13.0+cpu, "
        "mkl 2024.2\nout.json: 2 records\n"
    )
    document = autolora("export", "--environment", XEON.id, "-o", "out.json", "--json").json
    assert (document["exported"], document["records"]) == (1, 3)
    assert set(document["environments"]) == {XEON.id}


def test_export_without_a_record_says_of_what_there_are_some(autolora, machine):
    keep("a.json", make_record(1, environment=XEON))
    completed = autolora("export", "a.json", "--environment", "this", "-o", "out.json")
    assert completed.code == 2
    assert "no records of AMD EPYC 9B14, 2 threads" in completed.err
    assert f"there are records of:\n  {XEON.id}  Intel Xeon, 8 threads" in completed.err
    assert not Path("out.json").exists()


def test_an_id_that_begins_several_environments_is_refused(machine):
    twins = {f"abcd{n:08d}": replace(CPU, units=n + 1) for n in range(2)}
    assert environments.select(["abcd00000001"], twins) == [replace(CPU, units=2)]
    with pytest.raises(Exception, match="'abcd' begins several ids; give more digits:\n  abcd"):
        environments.select(["abcd"], twins)
    with pytest.raises(Exception, match="no environment whose id begins with '00000001'"):
        environments.select(["00000001"], twins)
