"""Clocks on a GPU that is made up, and on a real one where there is one."""

import random

import pytest
import torch
from made_up_gpu import GPU, Gpu

from autolora.timing import clock
from autolora.timing.clock import (
    Warmth,
    cpu_measure,
    cuda_measure,
    is_out_of_memory,
    least_times,
    measure_for,
    peak_memory,
    released,
    warm_up,
)

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    def make(**options):
        made = Gpu(**options)
        monkeypatch.setattr(clock, "torch", made)
        return made

    return make


# --- measures ----------------------------------------------------------------------------------


def test_the_span_holds_the_run_and_nothing_else(gpu):
    made = gpu()
    measure = cuda_measure(GPU)
    made.log.clear()
    assert measure(lambda: made.queue("run")) == 3e6
    assert made.log == [
        "made",
        "made",
        clock._HOLD,
        "flush",
        "event 0 recorded",
        "run",
        "event 1 recorded",
        "event 0 queried",
        "event 1 awaited",
        "event 0 to event 1",
    ]


@pytest.mark.parametrize("l2", [50 << 20, 0])
def test_more_than_the_cache_is_flushed(gpu, l2):
    made = gpu(l2=l2)
    cuda_measure(GPU)
    assert made.flushed >= max(2 * l2, 8 << 20)


def test_a_gpu_that_ran_ahead_of_the_queue_is_held_back_longer(gpu):
    made = gpu(late=True)
    measure = cuda_measure(GPU)
    for _ in range(9):
        measure(lambda: None)
    first, longest = clock._HOLD, clock._LONGEST_HOLD
    assert made.holds == [first, 2 * first, 4 * first, *[longest] * 6]
    made.late = False
    for _ in range(500):
        measure(lambda: None)
    falling = made.holds[9:]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == first


def test_a_run_that_fails_leaves_the_measure_and_the_device_as_they_were(gpu):
    made = gpu()
    measure = cuda_measure(GPU)

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure(fail)
    assert made.current is None
    assert measure(lambda: None) == 3e6


def test_each_device_has_its_measure(gpu):
    assert measure_for(CPU) is cpu_measure
    gpu()
    assert measure_for(GPU)(lambda: None) == 3e6


def test_the_cpu_clock_counts_nanoseconds():
    assert cpu_measure(lambda: sum(range(1000))) > 0


# --- warm-up -----------------------------------------------------------------------------------


class Room:
    """A clock that only runs while something is measured; ``times`` says how long that takes."""

    def __init__(self, times):
        self.times, self.now, self.calls = times, 0.0, 0

    def measure(self, run):
        run()
        taken = self.times(self.now)
        self.now += taken
        self.calls += 1
        return taken * 1e9

    def warm_up(self, **options):
        return warm_up(
            lambda: None,
            self.measure,
            clock=lambda: self.now,
            **{"window_s": 1.0, "most_s": 20.0, **options},
        )


def test_what_is_warm_needs_two_windows():
    room = Room(lambda now: 0.125)
    assert room.warm_up() == Warmth(settled=True, seconds=2.0)
    assert room.calls == 16


def test_a_rising_clock_is_waited_for():
    room = Room(lambda now: 0.1 / min(1.0, 0.5 + now / 10))  # full speed after 5 s
    found = room.warm_up()
    assert found.settled
    assert 5 < found.seconds < 9


def test_what_never_settles_ends_at_the_limit():
    room = Room(lambda now: 0.1 * 1.05**now)
    found = room.warm_up()
    assert not found.settled
    assert 20 <= found.seconds < 20.5


@pytest.mark.parametrize("taken", [3.0, 30.0])
def test_a_window_holds_one_call_however_slow(taken):
    room = Room(lambda now: taken)
    found = room.warm_up()
    assert (found.settled, room.calls) == ((True, 2) if taken == 3.0 else (False, 1))


def test_one_spike_in_a_window_does_not_count():
    room = Room(lambda now: 0.5 if 1.0 < now < 1.2 else 0.1)
    assert room.warm_up().seconds < 3


def test_between_is_called_before_every_timing_of_a_warm_up():
    log = []
    room = Room(lambda now: 0.5)
    warm_up(
        lambda: log.append("run"),
        room.measure,
        between=lambda: log.append("between"),
        clock=lambda: room.now,
        window_s=1.0,
    )
    assert log == ["between", "run"] * (len(log) // 2)
    assert log


# --- memory ------------------------------------------------------------------------------------


def test_the_peak_is_counted_from_what_was_there_before(gpu):
    made = gpu()
    made.allocated, made.peak = 100, 9000

    def run():
        made.peak = max(made.peak, made.allocated + 40)
        made.allocated += 10

    assert peak_memory(run, GPU) == 40


def test_the_cpu_counts_no_memory_and_nothing_runs_for_it():
    assert peak_memory(lambda: pytest.fail("it ran"), CPU) is None


def cpu_allocation_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.int8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        cpu_allocation_error(),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}",
)
def test_memory_that_ran_out_is_known_by_its_error(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        ValueError("CUBLAS_STATUS_ALLOC_FAILED"),
        KeyboardInterrupt("CUDA error: out of memory"),
    ],
    ids=repr,
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_released_empties_the_cache_of_a_gpu_only(gpu):
    made = gpu()
    released(CPU)
    assert made.log == []
    released(GPU)
    assert made.log == ["emptied"]


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.cuda
def test_of_two_calls_the_larger_takes_a_gpu_longer():
    device = torch.device("cuda", 0)
    measure, small = measure_for(device), torch.ones(1, device=device)

    def launches():
        for _ in range(20):
            small.add_(1)

    assert warm_up(launches, measure).seconds > 0
    large = torch.ones(1 << 28, device=device)  # 1 GiB, read and written
    assert 0 < measure(launches) < measure(lambda: large.add_(1))


@pytest.mark.cuda
def test_the_peak_of_a_gpu_is_what_a_call_allocates():
    device = torch.device("cuda", 0)
    kept = torch.ones(1 << 20, device=device)
    released(device)  # a cached block that is a little larger would count whole
    assert peak_memory(lambda: kept + 1, device) == 4 << 20
    assert peak_memory(lambda: (kept + 1) + (kept + 2), device) == 12 << 20
    assert peak_memory(lambda: None, device) == 0


@pytest.mark.cuda
def test_a_gpu_recovers_from_running_out_of_memory():
    device = torch.device("cuda", 0)
    measure = measure_for(device)
    with pytest.raises(RuntimeError) as caught:
        measure(lambda: torch.empty(1 << 50, dtype=torch.int8, device=device))
    assert is_out_of_memory(caught.value)
    del caught
    released(device)
    assert measure(lambda: torch.ones(4, device=device)) > 0


# --- least times -------------------------------------------------------------------------------


def test_slow_runs_are_timed_twice_and_close_ones_in_every_pass():
    counts = dict.fromkeys(("fast", "close", "slow"), 0)
    times = {"fast": 100.0, "close": 110.0, "slow": 130.0}

    def run(name):
        counts[name] += 1
        return name

    runs = {name: lambda name=name: run(name) for name in times}
    found = least_times(runs, lambda run: times[run()], random.Random(0), passes=4)
    assert found == times
    assert counts == {"fast": 4, "close": 4, "slow": 2}


def test_an_error_other_than_a_full_memory_is_raised():
    def broken():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        least_times({"a": broken}, lambda run: run(), random.Random(0), passes=2)
