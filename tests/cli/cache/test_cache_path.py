"""``autolora cache path``."""

import os
from pathlib import Path

from cache_files import keep, on_gpu
from records import CPU, H100, OLDER, XEON, make_record

from autolora.cache.files.paths import search_path
from autolora.cli.cache import environments
from autolora.cli.cache.path import obstacle_to_writing
from autolora.environment import Environment


def test_path_write_is_the_path_alone(autolora, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("here.json", "/there.json")))
    assert autolora("path", "--write").out == "here.json\n"


def test_path_tells_of_each_layer(autolora, monkeypatch, machine, tmp_path):
    names = ("mine.json", "team.json", "broken.json", "none.json")
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(names))
    keep("mine.json", make_record(1), make_record(2), make_record(1, environment=OLDER), on_gpu())
    keep("team.json", make_record(1, environment=XEON))
    Path("broken.json").write_text("{", encoding="utf-8")
    completed = autolora("path")
    assert completed.code == 0
    shown = " ".join(completed.out.split())
    gpu = on_gpu().environment
    for told in (
        f"1. mine.json written; 4 records 2 of environment {CPU.id} (cpu), 1 of the same device in "
        f"others 1 of environment {gpu.id} (cuda) ",
        f"2. team.json read; 1 record 0 of environment {CPU.id} (cpu) 0 of environment {gpu.id} ",
        "3. broken.json read; 0 records damaged: it is corrupt",
        "4. none.json read; not there",
        f"5. {tmp_path / 'site' / 'timings.v1.json'} site folder; not there",
        f"{CPU.id} AMD EPYC 9B14, 2 threads, AVX512, torch 2.13.0+cpu",
        "The first can be written",
    ):
        assert told in shown


def test_path_json(autolora, monkeypatch, machine):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("mine.json", "none.json")))
    keep("mine.json", make_record(1), make_record(1, environment=OLDER), on_gpu())
    document = autolora("path", "--json").json
    assert document["path"] == "mine.json"
    assert document["reads"][:2] == ["mine.json", "none.json"]
    assert (document["writable"], document["obstacle"]) == (True, "")
    assert document["machine"] == {e.id: e.to_json() for e in (CPU, H100)}
    first, second, _ = document["layers"]
    assert [layer["role"] for layer in document["layers"]] == ["written", "read", "site folder"]
    assert (first["records"], first["exists"], second["exists"]) == (3, True, False)
    assert first["this_environment"] == {CPU.id: 1, H100.id: 1}
    assert first["same_device"] == {CPU.id: 1, H100.id: 0}


def test_path_counts_only_records_that_can_be_used(autolora, machine):
    path = keep(search_path()[0], make_record(1), make_record(2))
    path.write_bytes(path.read_bytes().replace(b'"seconds":1.5', b'"seconds":-1', 1))
    (layer, _) = autolora("path", "--json").json["layers"]
    assert layer["records"] == 1
    assert layer["damage"] == "1 entry cannot be used (seconds must not be negative)"


def test_what_stands_in_the_way_of_writing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "new.json")
    for name, obstacle in (
        ("new.json", ""),
        ("a/b/new.json", ""),
        ("file", ""),
        ("link.json", ""),
        (".", "it is a folder"),
        ("file/new.json", f"{tmp_path / 'file'} is no folder"),
    ):
        assert obstacle_to_writing(tmp_path / name) == obstacle
    if os.geteuid():  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert obstacle_to_writing(closed / "x") == f"the folder {closed} is read-only"
        (tmp_path / "file").chmod(0o400)
        assert obstacle_to_writing(tmp_path / "file") == "the file is read-only"


def test_this_machine_is_that_of_the_layers():
    assert Environment.of("cpu") in environments.local_environments()
