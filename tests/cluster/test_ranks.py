"""Ranks that share a store: liveness and claims on a made-up clock, messages, turns."""

import pickle
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock, Timeout
from made_up_clock import Clock
from made_up_ranks import made_up_clock, until
from rank_clusters import ranks
from records import CPU, H100, OLDER, make_problem, make_record

from autolora import Problem, TimingCache
from autolora.cache.records.checks import dumps
from autolora.cluster import liveness
from autolora.cluster.liveness import BETWEEN, DEAD, FAILED, FINISHED, STUCK, Peer, RankState
from autolora.cluster.ranks import Cluster
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.timing import device
from autolora.timing.device import device_key, pass_over, turn_on
from autolora.timing.effort import EFFORTS
from autolora.tuning.budget import Budget
from autolora.tuning.claims import Claims, Job
from autolora.tuning.publishing import Publisher
from autolora.tuning.result import TuneResult
from autolora.tuning.tuner import tune_problems

PLACE = torch.device("cpu")
HERE = Environment.of(PLACE)
SMALL = Problem(24, 16, 32, 4, "float32", "cpu")


def set_devices(clusters, *environments):
    for cluster, environment in zip(clusters, environments, strict=True):
        cluster.set_device(PLACE, environment)
    for cluster in clusters:  # now that all have said it
        cluster.receive()


# ---- liveness

BUSY = RankState(phase="working", started=1, busy=True)


def watch(*spans):
    """What a peer counts as after each span: its seconds, and the state meanwhile."""
    peer, heartbeat, found = Peer(BUSY, heard=True), 0, []
    for seconds, changes in spans:
        for _ in range(seconds):
            heartbeat += changes.get("beats", True)
            fields = {name: value for name, value in changes.items() if name != "beats"}
            peer.update(replace(peer.state, heartbeat=heartbeat, **fields), 1.0)
        found.append(peer.lost)
    return found


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([(500, {})], [""]),
        ([(19, {"beats": False}), (2, {"beats": False})], ["", DEAD]),
        ([(30, {"beats": False}), (1, {})], [DEAD, ""]),  # it was only asleep
        ([(598, {}), (5, {})], ["", STUCK]),
        ([(598, {}), (1, {"started": 2}), (598, {})], ["", "", ""]),
        ([(598, {}), (1, {"busy": False}), (598, {})], ["", "", ""]),
        ([(5000, {"waiting": True})], [""]),
        ([(5000, {"waiting": True}), (602, {"waiting": False})], ["", STUCK]),
        ([(5000, {"patience": 1e4}), (6000, {})], ["", STUCK]),
        ([(700, {}), (1, {"started": 2})], [STUCK, ""]),
        ([(5000, {"phase": FINISHED})], [""]),
        ([(50, {"phase": FINISHED, "beats": False})], [DEAD]),
        ([(1, {"exited": True}), (5000, {"exited": True, "beats": False})], ["", ""]),
    ],
)
def test_when_a_rank_counts_as_dead_or_stuck(spans, found):
    assert watch(*spans) == found


def test_an_observer_that_was_stopped_does_not_take_others_for_dead():
    peer = Peer(BUSY, heard=True)
    peer.update(BUSY, 3600.0)
    assert peer.lost == ""
    for _ in range(4):
        peer.update(BUSY, 3600.0)
    assert peer.lost == DEAD


def test_the_first_state_of_a_rank_may_take_longer():
    peer = Peer()
    for _ in range(299):
        peer.update(None, 1.0)
    assert (peer.lost, peer.done) == ("", False)
    peer.update(None, 2.0)
    assert (peer.lost, peer.done) == (DEAD, True)


def test_a_state_survives_its_text():
    state = RankState(
        "host", "cuda:1", "cuda-1", H100, BETWEEN, 3, True, True, 2.5, 4, (1, 2), "no"
    )
    assert RankState.from_text(state.text) == state
    assert RankState.from_text(RankState().text) == RankState()


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        RankState().text.replace("starting", "sleeping"),
        RankState().text.replace('"heartbeat":0', '"heartbeat":-1'),
        RankState().text.replace('"heartbeat":0', '"more":0'),
        RankState().text.replace('"host":""', '"host":"\\u001b[2J"'),
        RankState().text.replace('"saved":[]', '"saved":7'),
        RankState().text.replace('"environment":null', '"environment":{}'),
        RankState().text.replace('"patience":0.0', '"patience":NaN'),
    ],
)
def test_an_invalid_state_is_an_error(said):
    with pytest.raises(ValueError, match=r"."):
        RankState.from_text(said)


def test_an_invalid_state_counts_as_silence():
    clock = Clock()
    first, second = ranks(2, clock)
    second.receive()
    first.receive()
    first._store.set("state/1", pickle.dumps(print).decode("latin-1"))
    first.wait(lambda: first.others_are_done())
    assert first.peers[1].lost == DEAD
    assert 120 < clock.now < 130


# ---- claims


def job(tokens, *, environment=CPU, weight=1, step=0.0):
    problem = make_problem(tokens)
    return Job(problem, PLACE, environment, "normal", (), None, frozenset(), step, weight)


def listed(cluster, *jobs, budget=None):
    claims = Claims(budget, cluster)
    for each in jobs:
        claims.add(each)
    claims.sort()
    return claims


def drawn(claims):
    found = claims.next(PLACE)
    return None if found is None else found.problem.tokens


JOBS = [job(tokens) for tokens in (64, 512, 16, 128, 256)]


def test_each_problem_is_claimed_once_the_most_expensive_first():
    lists = [listed(cluster, *JOBS) for cluster in ranks(2)]
    assert [drawn(lists[turn]) for turn in (0, 0, 1, 0, 1, 1, 0)] == [
        512, 256, 128, 64, 16, None, None,
    ]  # fmt: skip
    assert [claims.place for claims in lists] == [None, None]


def test_a_lost_rank_loses_only_its_current_problem():
    first, second = (listed(cluster, *JOBS) for cluster in ranks(2))
    assert drawn(second) == 512  # and it is never heard of again
    assert [drawn(first) for _ in range(5)] == [256, 128, 64, 16, None]


def test_one_process_keeps_its_order_and_each_environment_its_problems():
    claims = listed(None, *JOBS)
    assert [drawn(claims) for _ in range(6)] == [64, 512, 16, 128, 256, None]
    assert claims.family(CPU, make_problem(1))
    first, second = ranks(2)
    assert drawn(listed(first, job(64))) == drawn(listed(second, job(64, environment=OLDER))) == 64
    assert [cluster.claim("x") for cluster in (first, second, first)] == [True, False, False]


def test_the_claim_on_a_family_is_not_one_on_a_problem():
    first, second = (listed(cluster, job(1)) for cluster in ranks(2))
    assert [claims.family(CPU, make_problem(1)) for claims in (second, first)] == [True, False]
    assert drawn(first) == 1


def test_another_device_waits_for_its_own_turn():
    claims = listed(None, job(64), replace(job(16), place=torch.device("meta")))
    assert claims.next(torch.device("meta")) is None
    assert drawn(claims) == 64
    assert drawn(claims) is None
    assert claims.place == torch.device("meta")


@pytest.mark.parametrize(
    ("environments", "effort"), [((CPU, H100), "quick"), ((CPU, CPU), "normal")]
)
def test_a_budget_is_shared_over_the_devices(environments, effort):
    """Two equal problems, and time for one normal measurement: on two devices that is two."""
    step = 5e6
    clusters = ranks(2)
    set_devices(clusters, *environments)
    clusters[1].state = replace(clusters[1].state, host="another")
    set_devices(clusters, *environments)
    jobs = [job(tokens, step=step) for tokens in (16, 64)]
    claims = listed(clusters[0], *jobs, budget=Budget(1.5 * EFFORTS["normal"].expected(step)))
    assert claims.next(PLACE).effort == effort


def test_with_a_budget_the_largest_gain_comes_first():
    jobs = [job(16, weight=9, step=5e6), job(64, step=5e6), job(32, weight=2, step=5e6)]
    claims = listed(ranks(2)[0], *jobs, budget=Budget(1e6))
    assert [drawn(claims) for _ in jobs] == [16, 32, 64]
    assert not claims.late
    claims = listed(ranks(2)[0], *jobs, budget=Budget(1e-6))
    assert (drawn(claims), claims.late) == (None, True)


def test_ranks_on_one_device_count_as_one_device():
    clusters = ranks(4)
    set_devices(clusters, CPU, CPU, CPU, OLDER)
    assert clusters[0].device_count == 1
    clusters[1].state = replace(clusters[1].state, host="another")
    set_devices(clusters, CPU, CPU, CPU, OLDER)
    assert (clusters[0].device_count, clusters[3].device_count) == (2, 1)
    clusters[1].end(FINISHED)
    clusters[0].receive()
    assert clusters[0].device_count == 1


# ---- messages


def test_records_arrive_as_they_were_sent():
    first, second, third = clusters = ranks(3)
    set_devices(clusters, CPU, CPU, OLDER)
    record = make_record(64)
    second.send(record.problem, record)
    second.send(make_problem(16), None, "out of memory\nor\x1b worse")
    third.send(make_problem(8), make_record(8, environment=OLDER))
    messages = first.receive()
    assert [(message.rank, message.problem.tokens) for message in messages] == [
        (1, 64),
        (1, 16),
        (2, 8),
    ]
    assert messages[0].record == record
    assert (messages[1].record, messages[1].reason) == (None, "out of memory or? worse")
    assert first.receive() == []
    assert [message.rank for message in third.receive()] == []  # another environment
    assert [share.measured for share in first.shares()] == [0, 1, 1]


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize(
    "said",
    [
        pickle.dumps(Bomb(), protocol=0).decode("ascii"),
        "",
        "{}",
        '{"failed":7,"reason":"x"}',
        '{"failed":{},"reason":"x"}',
        '{"schema_version":2}',
        '{"schema_version":1,\n"environments":{},\n"records":[]}\n',
    ],
)
def test_a_message_is_checked_on_arrival(said, warnings):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    second.send(make_problem(64), make_record(64))
    first._store.set("message/1/0", said)
    second.send(make_problem(32), make_record(32))
    assert [message.problem.tokens for message in first.receive()] == [32]
    (warning,) = warnings()
    assert warning.startswith("autolora: what rank 1 sent is not used: ")


class Broken:
    """A store whose host is down."""

    def __getattr__(self, name):
        def fail(*_):
            raise RuntimeError("Broken pipe\nand a long trace")

        return fail


def test_a_rank_without_the_store_goes_on_alone(warnings):
    (cluster, *_) = ranks(2, store=Broken())
    cluster.set_device(PLACE, CPU)
    assert not cluster.claim("x")
    assert cluster.receive() == []
    cluster.send(make_problem(64), make_record(64))
    cluster.wait(lambda: False)
    assert warnings() == ["autolora: the other ranks cannot be reached any more: Broken pipe"]


def test_a_store_that_does_not_answer_blocks_no_rank(monkeypatch, warnings):
    release = threading.Event()
    monkeypatch.setattr(liveness, "SILENT_SECONDS", 0.05)
    cluster = Cluster(SimpleNamespace(set=lambda *_: release.wait(60), add=print), 0, 1)
    cluster.start()
    assert not cluster.claim("x")
    assert warnings() == [
        "autolora: the other ranks cannot be reached any more: the store does not answer"
    ]
    release.set()
    cluster.leave()


# ---- rank 0 writes


def test_all_ranks_start_from_the_records_of_rank_0(path):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    elsewhere = make_record(64, environment=H100, problem=make_problem(64, device="cuda"))
    known, other = make_record(64), make_record(64, problem=make_problem(64, rank=4))
    publisher = Publisher(path, [make_problem(16)], None, print)
    for record in (known, other, elsewhere):
        publisher.keep(record)
    Publisher(path, [make_problem(16)], first, print)
    theirs = Publisher(path, [make_problem(16)], second, print)
    assert theirs.store.records == [known]  # of these problems, at whatever counts
    theirs.keep(make_record(8))
    assert theirs.winners_near(make_problem(16), CPU) == {known.winner}
    assert len(Publisher(path, [], None, print).store.records) == 3  # it does not write


def test_known_records_of_any_size_are_published():
    """The store that torchrun has takes no more than 8 MiB at once."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
    first, second = clusters = ranks(2, store=store)
    set_devices(clusters, CPU, CPU)
    long = {f"note {number}": "x" * 200 for number in range(60)}
    records = [make_record(tokens, conditions=long) for tokens in range(1, 801)]
    first.publish_known(records)
    assert second.known() == records


def test_rank_0_writes_and_acknowledges(path):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    heard = []
    writer = Publisher(path, [], first, heard.append)
    sender = Publisher(path, [], second, print)
    sender.keep(make_record(8))
    result = TuneResult(path)
    second.end(FINISHED)
    writer.finish()
    writer.close(result)
    assert [message.record for message in heard] == [make_record(8)]
    assert Publisher(path, [], None, print).store.records == [make_record(8)]
    assert second.wait_until_saved()
    theirs = TuneResult(path, records=[make_record(8)])
    sender.close(theirs)
    assert not theirs.parted


def test_a_file_that_is_unwritable_for_a_while_gets_all_records(path, monkeypatch, warnings):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    writer = Publisher(path, [], first, lambda message: None)
    save = TimingCache.save

    def full(cache):
        raise AutoloraError("cannot write the timing cache: disk full")

    monkeypatch.setattr(TimingCache, "save", full)
    writer.keep(make_record(8))
    for tokens in (16, 32, 64):
        second.send(make_problem(tokens), make_record(tokens))
    writer.receive()
    second.receive()
    assert not second.wait_until_saved(1.0)
    assert warnings() == ["autolora: cannot write the timing cache: disk full"] * 2
    monkeypatch.setattr(TimingCache, "save", save)
    second.send(make_problem(128), make_record(128))
    second.end(FINISHED)
    writer.close(TuneResult(path))
    found = Publisher(path, [], None, print).store.records
    assert found == [make_record(tokens) for tokens in (8, 16, 32, 64, 128)]
    assert second.wait_until_saved()


def test_a_file_that_stays_unwritable_is_an_error(path):
    publisher = Publisher(path, [], None, print)
    path.unlink()
    path.mkdir()
    publisher.keep(make_record(8))
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        publisher.close(TuneResult(path))


def test_messages_lost_by_an_interrupt_are_received_again(path, monkeypatch):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    heard = []
    writer = Publisher(path, [], first, heard.append)
    for tokens in (8, 16):
        second.send(make_problem(tokens), make_record(tokens))

    def interrupt(records):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.receive()
    result = TuneResult(path, interrupted=True)
    writer.close(result)
    assert Publisher(path, [], None, print).store.records == [make_record(8), make_record(16)]
    assert [(share.state, share.measured) for share in result.shares] == [
        ("interrupted", 0),
        ("starting", 2),  # it was not waited for to the end
    ]
    assert result.shares[1].lost


@pytest.mark.parametrize("own", [True, False])
def test_a_record_that_is_not_written_at_an_interrupt_is_written_at_the_end(path, monkeypatch, own):
    clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    writer = Publisher(path, [], clusters[0], print)
    publisher = writer if own else Publisher(path, [], clusters[1], print)

    def interrupt(problem, record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publisher.cluster, "send", interrupt)
        with pytest.raises(KeyboardInterrupt):
            publisher.keep(make_record(8))
    result = TuneResult(path, interrupted=True)
    publisher.close(result)
    assert result.records == [make_record(8)]
    assert result.parted is not own  # rank 0 does not answer here
    assert Publisher(path, [], None, print).store.records == [make_record(8)]


def test_counts_are_added_when_no_rank_measures_the_models_own():
    first, second, third = clusters = ranks(3)
    set_devices(clusters, CPU, CPU, OLDER)
    assert not first.others_are_between()
    assert third.others_are_between()
    second.start_between()
    first.receive()
    assert first.others_are_between()
    assert not first.others_are_done(same_environment=True)
    second.end(FINISHED)
    first.receive()
    assert first.others_are_done(same_environment=True)
    assert not first.others_are_done()


def test_a_rank_writes_its_records_itself_if_rank_0_failed(path, warnings):
    first, second = clusters = ranks(2)
    set_devices(clusters, CPU, CPU)
    first.publish_known([])
    sender = Publisher(path, [], second, print)
    sender.keep(make_record(8))
    first.end(FAILED, "disk full")
    result = TuneResult(path, records=[make_record(8)])
    sender.close(result)
    assert result.parted
    assert Publisher(path, [], None, print).store.records == [make_record(8)]
    assert f"rank 0 is lost; what this rank measured is in {path}" in warnings()[-1]


def test_a_rank_reports_why_rank_0_cannot_start():
    first, second = ranks(2)
    first.end(FAILED, "cannot write\nthe timing cache")
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        second.known()
    assert second.is_reported("cannot write the timing cache")


# ---- turns


@pytest.fixture
def turns(tmp_path, monkeypatch):
    """The lock of the CPU, in a folder of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(device, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(device, "_passed", Counter())
    with turn_on(PLACE):
        (path,) = tmp_path.glob("autolora-*-cpu.lock")
    return path


def is_free(path):
    code = "import sys, filelock; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    return run.returncode == 0


def test_a_turn_excludes_other_processes_and_is_reentrant(turns):
    assert is_free(turns)
    with turn_on(PLACE):
        with turn_on(PLACE):
            assert not is_free(turns)
        assert not is_free(turns)
    assert is_free(turns)


def test_a_long_wait_is_said_once(turns, caplog):
    looks = iter([False] * 3 * device._LOOKS)
    with FileLock(turns), turn_on(PLACE, lambda: next(looks, True)):
        pass
    assert caplog.text.count("waiting while another process measures on cpu") == 1


def waiting_thread():
    """A thread that waits for its turn, and what is set once it has that."""
    entered = threading.Event()

    def enter():
        with turn_on(PLACE):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    until(device.is_waiting)
    return thread, entered


def test_another_thread_of_the_same_process_waits_as_well(turns):
    with turn_on(PLACE):
        thread, entered = waiting_thread()
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()
    assert not device.is_waiting()


def test_a_lock_that_is_never_released_is_passed_over(turns):
    held = FileLock(turns)
    held.acquire()
    _, entered = waiting_thread()
    pass_over("cpu")
    assert entered.wait(60)
    with pytest.raises(Timeout):
        FileLock(turns).acquire(timeout=0)  # it still has it


def test_a_rank_that_waits_for_its_turn_notices_a_lost_store(monkeypatch, turns):
    """The store may have been on the rank that has the turn."""
    release = threading.Event()
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "SILENT_SECONDS", 0.2)
    with FileLock(turns):
        for answer in (release.wait, Broken().get):
            cluster = Cluster(SimpleNamespace(set=lambda *_: None), 0, 1)
            cluster.start()
            cluster._store.set = lambda *_, answer=answer: answer(60)
            with turn_on(PLACE, cluster.is_cut_off):
                assert cluster.is_cut_off()
            release.set()
            cluster.leave()


def test_a_rank_yields_the_device_to_one_that_waits():
    clock = Clock()
    first, second, third = clusters = ranks(3, clock)
    third.state = replace(third.state, host="another")
    set_devices(clusters, CPU, CPU, CPU)

    def waits():
        before = clock.now
        first.receive()
        first.yield_device()
        return clock.now > before

    assert not waits()  # the second has not begun
    first.publish_known([])
    assert second.known() == []
    assert third.known() == []
    assert waits()
    second.start_problem(0.0)
    assert not waits()
    second.send(make_problem(8), make_record(8))
    assert waits()
    second.end(FINISHED)
    assert not waits()


def test_only_a_lost_rank_is_passed_over_and_only_once(monkeypatch):
    passed = []
    monkeypatch.setattr("autolora.cluster.ranks.pass_over", passed.append)
    clock = Clock()
    first, second, third = clusters = ranks(3, clock)
    set_devices(clusters, CPU, CPU, CPU)
    second.start_problem(0.0)
    third.start_problem(0.0)

    def listen(seconds, *speakers):
        for _ in range(seconds):
            clock.now += 1.0
            for cluster in (*speakers, first):
                cluster.receive()

    listen(30, third)
    assert first.peers[1].lost == DEAD
    monkeypatch.setattr("autolora.cluster.ranks.is_waiting", lambda: True)
    first.receive()
    assert passed == []  # the third has the lock by now
    third.send(make_problem(8), make_record(8))
    passed.clear()
    first.receive()
    first.receive()
    assert passed == ["cpu"]


@pytest.mark.parametrize(
    ("name", "found", "key"),
    [
        ("cpu", None, "cpu"),
        ("cuda:1", SimpleNamespace(), "cuda-1"),
        ("cuda:0", SimpleNamespace(uuid="12ab-34/cd"), "cuda-12ab-34-cd"),
    ],
)
def test_a_device_has_one_name_for_all_processes(monkeypatch, name, found, key):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert device_key(torch.device(name)) == key


# ---- a rank of a run


def claimed(cluster, problem, kind=""):
    """Makes a rank claim a problem, or a family of them."""
    return cluster.claim(f"{HERE.id}/{kind}{dumps(problem.to_json())}")


def test_nothing_is_counted_twice_in_an_interrupted_run(path):
    first, second = clusters = ranks(2)
    set_devices(clusters, HERE, HERE)
    mine, theirs = SMALL, SMALL.at(8)
    assert claimed(second, theirs)
    record = make_record(8, environment=HERE, problem=theirs)
    second.send(theirs, record)

    def interrupt(progress):
        if progress.stage == "race":
            raise KeyboardInterrupt

    result = tune_problems([mine, theirs], cache=path, cluster=first, on_progress=interrupt)
    assert result.interrupted
    assert (result.records, result.unfinished) == ([record], [mine])
    assert [share.measured for share in result.shares] == [0, 1]


def test_the_family_that_a_lost_rank_has_claimed_is_finished(path, tmp_path, monkeypatch):
    """The counts between two of a family: those that it had not claimed yet."""
    made_up_clock(monkeypatch.setattr)
    problems = [SMALL.at(tokens) for tokens in (50, 200)]
    alone = tune_problems(problems, cache=tmp_path / "alone.json", between=True)
    assert len(alone.records) > 2
    first, second = clusters = ranks(2)
    set_devices(clusters, HERE, HERE)
    assert claimed(second, SMALL.at(1), "family/")
    second.start_problem(0.0)  # and it is never heard of again
    result = tune_problems(problems, cache=path, between=True, cluster=first)
    assert {r.problem: r.winner for r in result.records} == {
        r.problem: r.winner for r in alone.records
    }
    assert result.unfinished == []
    assert [share.state for share in result.shares] == [FINISHED, DEAD]


def test_failures_of_other_ranks_name_the_rank(path, monkeypatch):
    made_up_clock(monkeypatch.setattr)
    first, second, third = clusters = ranks(3)
    set_devices(clusters, HERE, HERE, OLDER)
    theirs = SMALL.at(8)
    assert claimed(second, theirs)
    second.send(theirs, None, "out of memory")
    third.send(SMALL, None, "out of memory")
    for cluster in (second, third):
        cluster.end(FINISHED)
        cluster.leave()
    result = tune_problems([SMALL, theirs], cache=path, cluster=first)
    assert sorted(result.failed, key=str) == [
        (SMALL, "out of memory (rank 2)"),
        (theirs, "out of memory (rank 1)"),
    ]
    assert [record.problem for record in result.records] == [SMALL]
    assert result.unfinished == []
