import os
import stat
from pathlib import Path

import pytest
from publishing import let_go, start_publishing
from records import make_record

from autolora.cache.files.store import TimingCache
from autolora.errors import AutoloraError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- one writer --------------------------------------------------------------------------------


def test_a_file_in_the_place_of_its_folder_is_refused(tmp_path, warnings):
    (tmp_path / "file").write_text("x")
    cache = TimingCache.load(tmp_path / "file" / "timings.v1.json")
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        cache.publish(make_record())


@pytest.mark.parametrize("strange", ["zero\0byte", "x" * 5000, "\udcff"])
def test_a_strange_path_is_no_error_to_a_reader(tmp_path, strange):
    assert TimingCache.load(tmp_path / strange).records == []


def test_a_read_only_file_is_not_replaced(path, monkeypatch):
    TimingCache([make_record()], path).save()
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(AutoloraError, match="read-only"):
        TimingCache.load(path).publish(make_record(64))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_file_and_its_lock_have_the_permissions_that_the_umask_leaves(path, umask, mode):
    before = os.umask(umask)
    try:
        TimingCache([make_record()], path).save()
    finally:
        os.umask(before)
    for each in (path, Path(f"{path}.lock")):
        assert stat.S_IMODE(each.stat().st_mode) == mode


def test_a_replaced_file_keeps_its_permissions(path):
    TimingCache([make_record()], path).save()
    path.chmod(0o660)
    TimingCache([make_record(64)], path).save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_symbolic_link_stays_one(path, tmp_path):
    real = tmp_path / "shared" / "real.json"
    real.parent.mkdir()
    path.symlink_to(real)
    TimingCache([make_record()], path).save()
    TimingCache([make_record(64)], path).save()
    assert path.is_symlink()
    assert len(TimingCache.load(real).records) == 2
    assert names(real.parent) == ["real.json", "real.json.lock"]


def test_what_killed_writers_left_is_removed_when_it_is_old(path):
    old, new = (path.with_name(f".{path.name}.{name}.tmp") for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    TimingCache([make_record()], path).save()
    assert names(path.parent) == sorted([new.name, path.name, f"{path.name}.lock"])


# --- several processes -------------------------------------------------------------------------


def test_processes_that_publish_at_once_lose_nothing(path, warnings):
    processes = [start_publishing(path, 1 + 100 * number, 25) for number in range(4)]
    for process in processes:
        let_go(process)
    seen = 0
    while any(process.poll() is None for process in processes):
        before, seen = seen, len(TimingCache.load(path).records)
        assert seen >= before  # readers see the old file or the new one, never a part
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    published = [1 + 100 * number + n for number in range(4) for n in range(25)]
    assert [record.problem.tokens for record in TimingCache.load(path).records] == published
    assert warnings() == []
    assert names(path.parent) == [path.name, f"{path.name}.lock"]


def test_a_writer_that_is_killed_leaves_a_whole_file(path, warnings):
    for attempt in range(5):
        process = start_publishing(path, 1 + 1000 * attempt, 0)
        let_go(process)
        for _ in range(3 + attempt):
            last = process.stdout.readline()
        process.kill()
        process.communicate()
        found = {record.problem.tokens for record in TimingCache.load(path).records}
        assert found >= set(range(1 + 1000 * attempt, int(last) + 1))
    TimingCache.load(path).publish(make_record(10**6))
    assert warnings() == []
