"""What may go wrong while a file is written: no record is lost, or it is said where it is."""

import contextlib
import errno
import json
import logging
import os
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path

import filelock
import pytest
from accounts import as_user, needs_root, shared_folder
from hostile import run
from records import CPU, make_problem, make_record

from autolora.cache.files import atomic_update, disk, locking
from autolora.cache.files.store import TimingCache
from autolora.errors import AutoloraError


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """No test leaves records in the folders of who runs it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    locking._warn_no_locks.cache_clear()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tokens_in(path):
    return [record.problem.tokens for record in TimingCache.load(path).records]


def cannot_write(cache, *tokens):
    """The message of a cache that records are published to in vain."""
    for number in tokens:
        with pytest.raises(AutoloraError) as caught:
            cache.publish(make_record(number))
    return str(caught.value)


def named_in(message, path):
    """The file that a message says the records are in, where it also says how to merge it."""
    command = shlex.split(message.split("join them with: ")[1])
    assert command[:3] == ["autolora", "cache", "merge"]
    assert command[4:6] == ["-o", str(path)]
    kept = Path(command[3])
    assert str(kept) in message.split("join them with: ")[0]
    return kept


# --- where the records go ------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """Makes the disk full for the folders given; all files elsewhere can be written."""
    folders, real = [], os.fsync

    def fsync(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place.is_file() and place.parent in folders:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return folders


def test_records_that_cannot_be_written_go_beside(path, monkeypatch, warnings):
    TimingCache([make_record(1)], path).save()
    before = path.read_bytes()
    monkeypatch.setattr(locking, "_LOCK_SECONDS", 0.0)
    cache = TimingCache.load(path)
    with filelock.FileLock(f"{path}.lock"):
        message = cannot_write(cache, 2, 3)
        assert tokens_in(path) == [1]  # a reader does not wait
    assert "another program has held" in message
    assert "the 2 records measured are in" in message
    kept = named_in(message, path)
    assert kept.name == f"timings.v1.rescued-{os.getpid()}-1.json"
    assert kept.parent == path.parent
    assert tokens_in(kept) == [2, 3]  # not the first: that is in the file
    assert path.read_bytes() == before
    assert warnings() == []


def test_one_file_holds_them_all_and_goes_when_they_are_written(path, full):
    cache = TimingCache(path=path)
    full.append(path.parent)
    (path.parent / "user").mkdir()
    kept = {named_in(cannot_write(cache, number), path) for number in range(1, 6)}
    [only] = kept
    assert tokens_in(only) == [1, 2, 3, 4, 5]
    assert names(only.parent) == [only.name]
    full.clear()
    cache.publish(make_record(6))
    assert tokens_in(path) == [1, 2, 3, 4, 5, 6]
    assert names(only.parent) == []


def test_the_folders_are_tried_in_turn(path, tmp_path, full):
    user, temporary = tmp_path / "user", tmp_path / "temporary"
    cache = TimingCache(path=path)
    full.append(path.parent)
    first = named_in(cannot_write(cache, 1), path)
    full.append(user)
    second = named_in(cannot_write(cache, 2), path)
    full.append(temporary)
    message = cannot_write(cache, 3)
    assert (first.parent, second.parent) == (user, temporary)
    assert names(user) == []  # what the next one holds as well is not left behind
    assert tokens_in(second) == [1, 2]
    assert named_in(message, path) == second
    assert "of the 3 records measured 1 could be written nowhere" in message
    assert "; 2 are in" in message


def test_if_no_folder_takes_them_that_is_said(path, tmp_path, full):
    full.extend([path.parent, tmp_path / "user", tmp_path / "temporary"])
    cache = TimingCache([make_record(1)], path)
    with pytest.raises(AutoloraError, match="the 1 record measured could be written nowhere"):
        cache.save()
    assert [record.problem.tokens for record in cache.records] == [1]
    assert names(tmp_path / "temporary") == names(tmp_path / "user") == []
    full.clear()
    cache.save()
    assert tokens_in(path) == [1]


def test_nothing_is_kept_where_nothing_is_new(path, full):
    TimingCache([make_record(1)], path).save()
    before = path.read_bytes()
    full.append(path.parent)
    with pytest.raises(AutoloraError, match="No space left on device") as caught:
        TimingCache.load(path).save()
    assert "measured" not in str(caught.value)
    assert path.read_bytes() == before
    assert names(path.parent) == sorted(["temporary", path.name, f"{path.name}.lock"])


def test_a_replacement_that_cannot_be_written_is_kept(path, full):
    old, new = make_record(1), make_record(1, effort="quick")
    cache = TimingCache([old], path)
    cache.save()
    full.append(path.parent)
    with pytest.raises(AutoloraError) as caught:
        cache.replace(old, new)
    assert TimingCache.load(named_in(str(caught.value), path)).records == [new]


def test_what_is_merged_is_kept_too(path, full):
    full.append(path.parent)
    merged = TimingCache([make_record(1)], path).merge(TimingCache([make_record(2)]))
    with pytest.raises(AutoloraError) as caught:
        merged.save()
    assert tokens_in(named_in(str(caught.value), path)) == [1, 2]


def test_a_newer_file_keeps_its_place_and_the_records_go_beside(path):
    path.write_text('{"schema_version":2}')
    kept = named_in(cannot_write(TimingCache.load(path), 1), path)
    assert tokens_in(kept) == [1]
    assert path.read_text() == '{"schema_version":2}'


def test_no_symbolic_link_is_followed_and_nothing_overwritten(path, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    first, second = (
        path.with_name(f"timings.v1.rescued-{os.getpid()}-{number}.json") for number in (1, 2)
    )
    first.symlink_to(outside)
    second.write_text("another's")
    path.mkdir()  # which no file can replace
    kept = named_in(cannot_write(TimingCache.load(path), 1), path)
    assert kept.name.endswith("-3.json")
    assert not outside.exists()
    assert second.read_text() == "another's"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_they_have_the_permissions_that_the_umask_leaves(path, umask, mode):
    path.mkdir()
    before = os.umask(umask)
    try:
        kept = named_in(cannot_write(TimingCache.load(path), 1), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(kept.stat().st_mode) == mode


def test_a_child_leaves_its_parents_records_alone(path):
    path.mkdir()
    cache = TimingCache.load(path)
    kept = named_in(cannot_write(cache, 1), path)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            own = named_in(cannot_write(cache, 2), path)
            apart = tokens_in(own) == [1, 2]
            path.rmdir()
            cache.publish(make_record(3))
            os._exit(0 if apart and not own.exists() else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert tokens_in(kept) == [1]
    assert tokens_in(path) == [1, 2, 3]


@pytest.mark.parametrize("path", ["zero\0byte", "x" * 5000], ids=["zero", "long"])
def test_a_path_that_cannot_be_is_an_error_not_a_crash(tmp_path, path):
    message = cannot_write(TimingCache.load(tmp_path / path), 1)
    assert "cannot write the timing cache" in message
    assert tokens_in(Path(message.split(" is in ")[1].split(";")[0])) == [1]


# --- disks that are full or must not be written --------------------------------------------------


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own in a folder, where that is permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_the_records_go_elsewhere(tmp_path):
    folder = tmp_path / "small"
    with mounted(folder, "size=32k"):
        path = folder / "timings.v1.json"
        cache = TimingCache(path=path)
        with pytest.raises(AutoloraError, match="No space left on device") as caught:
            any(cache.publish(make_record(tokens)) is None for tokens in range(1, 1000))
        held = tokens_in(path)
        kept = named_in(str(caught.value), path)
        assert kept.parent in (folder, tmp_path / "user")
        assert held
        assert held + tokens_in(kept) == list(range(1, len(held) + 2))
        assert not [name for name in names(folder) if name.endswith(".tmp")]


def test_on_a_read_only_disk_the_records_go_elsewhere(tmp_path):
    folder = tmp_path / "fixed"
    with mounted(folder, "size=1m"):
        path = folder / "timings.v1.json"
        TimingCache([make_record(1)], path).save()
        before = path.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        message = cannot_write(TimingCache.load(path), 2)
        assert "Read-only file system" in message
        kept = named_in(message, path)
        assert kept.parent == tmp_path / "user"
        assert tokens_in(kept) == [2]
        assert path.read_bytes() == before


LIMITED = """
import resource, signal, sys
from autolora.cache.files.store import TimingCache
from records import make_record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = TimingCache.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    cache.publish(make_record(10**6))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_where_files_must_not_grow_the_records_go_to_a_smaller_one(path):
    TimingCache(map(make_record, range(1, 21)), path).save()
    before = path.read_bytes()
    message, _ = run(LIMITED, path, len(before)).communicate(timeout=60)
    assert message.startswith("AutoloraError cannot write the timing cache")
    assert "File too large" in message
    assert tokens_in(named_in(message, path)) == [10**6]
    assert path.read_bytes() == before


@needs_root
def test_in_a_folder_of_others_the_records_go_elsewhere(tmp_path):
    with shared_folder(0o755) as folder, shared_folder() as other:
        path = folder / "timings.v1.json"
        TimingCache([make_record(1)], path).save()
        with pytest.MonkeyPatch.context() as patch, as_user(1001):
            patch.setattr("platformdirs.user_cache_dir", lambda name: str(other))
            message = cannot_write(TimingCache.load(path), 2)
        assert "ermission" in message
        assert tokens_in(named_in(message, path)) == [2]
        assert named_in(message, path).parent == other


# --- locks ---------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from autolora.cache.files.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_lock_of_a_dead_process_is_no_lock(path, monkeypatch):
    holder = run(HOLD, path)
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(locking, "_LOCK_SECONDS", 0.05)
    with pytest.raises(AutoloraError, match="another program has held"):
        TimingCache(path=path).save()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    monkeypatch.undo()
    TimingCache([make_record(1)], path).save()
    assert tokens_in(path) == [1]


SLOW = """
import sys
from autolora.cache.files import atomic_update
from autolora.cache.files.store import TimingCache
from records import make_record
real = atomic_update.read
def read(target):
    data = real(target)
    print("read", flush=True)
    sys.stdin.readline()
    return data
atomic_update.read = read
TimingCache.load(sys.argv[1]).publish(make_record(int(sys.argv[2])))
"""


def test_a_lock_file_that_is_deleted_while_it_is_held_loses_nothing(path, warnings):
    TimingCache([make_record(1)], path).save()
    slow = run(SLOW, path, 2)
    assert slow.stdout.readline() == "read\n"
    Path(f"{path}.lock").unlink()
    TimingCache.load(path).publish(make_record(3))
    slow.communicate("\n" * 9, timeout=60)
    assert slow.returncode == 0
    assert tokens_in(path) == [1, 2, 3]
    assert warnings() == []


UNLOCKED = """
import contextlib, sys
from autolora.cache.files import atomic_update
from autolora.cache.files.store import TimingCache
from records import make_record
atomic_update.locked = lambda target: contextlib.nullcontext()
path, first, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = TimingCache.load(path)
print("ready", flush=True)
sys.stdin.readline()
for tokens in range(first, first + number):
    cache.publish(make_record(tokens))
"""


def test_processes_whose_locks_do_not_see_each_other_lose_nothing(path, warnings):
    processes = [run(UNLOCKED, path, 1 + 100 * number, 15) for number in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert tokens_in(path) == [1 + 100 * number + n for number in range(4) for n in range(15)]
    assert names(path.parent) == ["temporary", path.name]
    assert warnings() == []


def overwritten(path, monkeypatch, when):
    """Has another host put an older file in the place of ours; ``when``: how many times left."""
    old = path.read_bytes()
    real = atomic_update.replace_file

    def replace_file(new, target):
        real(new, target)
        if when:
            when.pop()
            target.with_name("theirs").write_bytes(old)
            target.with_name("theirs").replace(target)

    monkeypatch.setattr(atomic_update, "replace_file", replace_file)


def test_what_another_host_overwrites_is_written_again(path, monkeypatch):
    TimingCache([make_record(1)], path).save()
    overwritten(path, monkeypatch, [1, 2, 3])
    TimingCache.load(path).publish(make_record(2))
    assert tokens_in(path) == [1, 2]


def test_what_is_overwritten_all_the_time_is_kept_beside(path, monkeypatch):
    TimingCache([make_record(1)], path).save()
    overwritten(path, monkeypatch, [0] * 1000)
    message = cannot_write(TimingCache.load(path), 2)
    assert "without heeding its lock" in message
    assert tokens_in(named_in(message, path)) == [2]


def test_what_another_host_overwrites_later_comes_back_with_the_next_record(path):
    TimingCache([make_record(1)], path).save()
    old = path.read_bytes()
    cache = TimingCache.load(path)
    cache.publish(make_record(2))
    path.write_bytes(old)
    cache.publish(make_record(3))
    assert tokens_in(path) == [1, 2, 3]


def test_a_writer_waits_for_those_who_read_before_it_wrote(path, monkeypatch):
    """The other has read, and writes only when it sees that we have written."""
    TimingCache([make_record(1)], path).save()
    cache = TimingCache.load(path)
    other, old = path.with_name(f".{path.name}.other.tmp"), path.read_bytes()
    real, waits = time.sleep, []

    def sleep(seconds):  # the other host does its part while we wait
        waits.append(seconds)
        if len(waits) == 3:
            other.write_bytes(old)
            other.replace(path)
        else:
            real(0)

    monkeypatch.setattr(atomic_update, "locked", lambda target: contextlib.nullcontext())
    monkeypatch.setattr(atomic_update.time, "sleep", sleep)
    other.touch()
    monkeypatch.setattr(atomic_update, "_WAIT_SECONDS", 30.0)
    cache.publish(make_record(2))
    assert len(waits) >= 3
    assert tokens_in(path) == [1, 2]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_writers_go_on_without(path, monkeypatch, warnings, code):
    def acquire(self, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    cache = TimingCache.load(path)
    for number in (1, 2):
        cache.publish(make_record(number))
    assert tokens_in(path) == [1, 2]
    [warning] = warnings()  # one for each file, not for each record
    assert f"{path}.lock" in warning


# --- clocks --------------------------------------------------------------------------------------


def test_a_clock_that_is_set_changes_nothing(path, monkeypatch):
    young = path.with_name(f".{path.name}.young.tmp")
    young.touch()
    for moment in (10**10, 0.0, 10**10):  # in the year 2286, and in 1970
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: int(moment * 1e9))
        TimingCache([make_record(int(moment) + 1)], path).save()
        assert young.exists()
    assert tokens_in(path) == [1, 10**10 + 1]


def test_a_draft_from_the_future_holds_nobody_up_for_long(path):
    future = path.with_name(f".{path.name}.future.tmp")
    future.touch()
    os.utime(future, (2**32, 2**32))
    TimingCache([make_record(1)], path).save()
    assert tokens_in(path) == [1]


def test_records_that_are_measured_earlier_are_kept(path):
    cache = TimingCache(path=path)
    for number, moment in enumerate(("2026-01-01T00:00:00Z", "1970-01-01T00:00:00Z"), 1):
        cache.publish(make_record(number, measured_at=moment))
    assert tokens_in(path) == [1, 2]


# --- accounts that share a folder ----------------------------------------------------------------


@needs_root
def test_who_may_write_the_file_may_lock_it(path):
    with shared_folder() as folder:
        path = folder / "timings.v1.json"
        with as_user(1001):
            TimingCache([make_record(1)], path).save()
            path.chmod(0o666)
            TimingCache([make_record(2)], path).save()
        with as_user(1002):
            TimingCache([make_record(3)], path).save()
        with as_user(1001):
            TimingCache([make_record(4)], path).save()
        assert tokens_in(path) == [1, 2, 3, 4]


@needs_root
def test_a_lock_that_must_not_be_written_is_named(path):
    with shared_folder() as folder:
        path = folder / "timings.v1.json"
        with as_user(1001):
            TimingCache([make_record(1)], path).save()
        with as_user(1002):
            message = cannot_write(TimingCache.load(path), 2)
        assert f"no permission to write {path}.lock" in message
        assert tokens_in(named_in(message, path)) == [2]


def test_nothing_is_made_more_open_through_a_symbolic_link(path, tmp_path):
    TimingCache([make_record(1)], path).save()
    secret = tmp_path / "secret"
    secret.touch(0o600)
    lock = Path(f"{path}.lock")
    lock.unlink()
    lock.symlink_to(secret)
    with contextlib.suppress(AutoloraError):
        TimingCache.load(path).publish(make_record(2))
    locking._copy_permissions(lock, path)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_bytes() == b""


# --- what is said --------------------------------------------------------------------------------


def test_a_draft_is_not_left_behind_and_the_old_file_is_whole(path, monkeypatch):
    TimingCache([make_record(1)], path).save()
    before = path.read_bytes()

    def refuse(self, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", refuse)
    message = cannot_write(TimingCache.load(path), 2)
    assert "Input/output error" in message
    assert "could be written nowhere" in message
    assert path.read_bytes() == before
    assert not [name for name in names(path.parent) if "tmp" in name or "rescued" in name]


def test_without_links_a_damaged_file_loses_no_good_record(path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    TimingCache(map(make_record, (1, 2, 3)), path).save()
    text = path.read_text().replace('"effort":"normal"', '"effort":"heroic"', 1)
    path.write_text(text)

    def refuse(*args, **options):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    TimingCache.load(path).publish(make_record(4))
    assert tokens_in(path) == [2, 3, 4]
    assert path.with_name(f"{path.name}.corrupt-1").read_text() == text
    assert json.loads(path.read_text())["schema_version"] == 1
    assert TimingCache.load(path).find(make_problem(1), CPU) is None
    assert disk.read(path) is not None
