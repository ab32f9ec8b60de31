import os
import stat
from pathlib import Path

import pytest
from filelock import FileLock
from publishing import let_go, start_publishing
from records import make_record

from autolora.cache.files import disk, locking
from autolora.cache.files.store import TimingCache
from autolora.errors import AutoloraError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- things that are no readable, writable file ------------------------------------------------


def is_refused(path, warnings, word):
    cache = TimingCache.load(path)
    assert cache.records == []
    [warning] = warnings()
    assert str(path) in warning
    assert word in warning
    with pytest.raises(AutoloraError, match=word) as caught:
        cache.publish(make_record())
    assert str(path) in str(caught.value)
    assert "AUTOLORA_CACHE" in str(caught.value)


def test_a_folder_is_refused(tmp_path, warnings):
    is_refused(tmp_path, warnings, "folder")


def test_a_pipe_is_refused_without_waiting(path, warnings):
    os.mkfifo(path)
    is_refused(path, warnings, "pipe")
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert not Path(f"{path}.lock").exists()


def test_a_device_is_refused(path, warnings):
    path.symlink_to("/dev/zero")
    is_refused(path, warnings, "device")
    assert not Path("/dev/zero.lock").exists()  # nothing is written there, nor anywhere near
    assert not list(Path("/dev").glob("*rescued*"))


def test_a_file_in_the_place_of_its_folder_is_refused(tmp_path, warnings):
    (tmp_path / "file").write_text("x")
    cache = TimingCache.load(tmp_path / "file" / "timings.v1.json")
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        cache.publish(make_record())


def test_a_huge_file_is_refused_unread(path, warnings):
    with path.open("wb") as file:
        file.truncate(disk.LIMIT + 1)
    is_refused(path, warnings, "larger than 256 MB")
    assert path.stat().st_size == disk.LIMIT + 1


def test_a_cycle_of_links_is_refused(path, warnings):
    path.symlink_to(path)
    assert TimingCache.load(path).records == []
    assert len(warnings()) == 1
    with pytest.raises(AutoloraError):
        TimingCache.load(path).save()


@pytest.mark.parametrize("strange", ["zero\0byte", "x" * 5000, "\udcff"])
def test_a_strange_path_is_no_error_to_a_reader(tmp_path, strange):
    assert TimingCache.load(tmp_path / strange).records == []


@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_a_file_without_permission_is_refused(path, warnings, mode):
    path.touch(mode)
    if os.access(path, os.R_OK):
        pytest.skip("nothing is unreadable to this user")
    is_refused(path, warnings, "denied")


def test_a_read_only_file_is_not_replaced(path, monkeypatch):
    TimingCache([make_record()], path).save()
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(AutoloraError, match="read-only"):
        TimingCache.load(path).publish(make_record(64))
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(path, monkeypatch):
    TimingCache([make_record()], path).save()
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    cache = TimingCache.load(path)
    with pytest.raises(AutoloraError, match="No space left on device"):
        cache.publish(make_record(64))
    assert path.read_bytes() == before
    assert [name for name in names(path.parent) if "tmp" in name] == []
    monkeypatch.undo()
    cache.save()
    assert len(TimingCache.load(path).records) == 2


def test_a_writer_does_not_wait_for_ever_and_a_reader_not_at_all(path, monkeypatch):
    TimingCache([make_record()], path).save()
    monkeypatch.setattr(locking, "_LOCK_SECONDS", 0.0)
    with FileLock(f"{path}.lock"):
        assert TimingCache.load(path).records == [make_record()]
        with pytest.raises(AutoloraError, match="another program"):
            TimingCache.load(path).publish(make_record(64))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(path, umask, mode):
    before = os.umask(umask)
    try:
        TimingCache([make_record()], path).save()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


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
