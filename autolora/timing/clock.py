"""Timing one call on a device, warming the device up, and peak memory.

A *measure* is ``measure(run) -> nanoseconds``: it runs a function once and returns the time taken.
It is an argument everywhere, so that tests need no real clock.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import TypeVar

import torch

Run = Callable[[], object]
Measure = Callable[[Run], float]
K = TypeVar("K", bound=Hashable)

_LEAST_L2 = 1 << 22  # bytes, for a GPU that does not say how large its cache is
_HOLD = 1 << 20  # cycles that a GPU is held back: in half a millisecond most layers are queued
_LONGEST_HOLD = 1 << 23
_CLOSE = 1.15  # times the shortest: what took longer is not timed again
_ALWAYS = 2  # times that each run is timed
_AGREE = 0.02  # two windows closer than this are warm
_OUT_OF_MEMORY = (  # what plain RuntimeErrors say
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "BLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@dataclass(frozen=True, slots=True)
class Warmth:
    """Result of a warm-up.

    Args:
        settled: whether the last two windows agreed.
        seconds: that it took.
    """

    settled: bool
    seconds: float


def cpu_measure(run: Run) -> float:
    """Wall time of one call on the CPU."""
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


def cuda_measure(device: torch.device) -> Measure:
    """GPU time of one call between two events, with the L2 cache flushed before.

    In training the CPU queues kernels ahead and the GPU runs them back to back; a single layer
    would show the gaps between launches instead. So the GPU spins until the CPU has queued the
    call. The gain of fewer launches in a model too small to keep the GPU busy is not measured.

    A call that is queued too late, as the first ones are, is timed with its gaps; the next spins
    for twice as long, and later ones for a little less each time.
    """
    size = 2 * max(torch.cuda.get_device_properties(device).L2_cache_size, _LEAST_L2)
    flush = torch.empty(size, dtype=torch.int8, device=device)
    hold = _HOLD

    def measure(run: Run) -> float:
        nonlocal hold
        with torch.cuda.device(device):  # whose current stream the events and the run are queued on
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(hold)  # type: ignore[no-untyped-call]
            flush.zero_()
            start.record()
            run()
            end.record()
            late = start.query()  # type: ignore[no-untyped-call]
            end.synchronize()
        hold = min(2 * hold, _LONGEST_HOLD) if late else max(hold - hold // 64, _HOLD)
        return start.elapsed_time(end) * 1e6  # type: ignore[no-any-return]

    return measure


def measure_for(device: torch.device) -> Measure:
    """The measure of a device."""
    return cuda_measure(device) if device.type == "cuda" else cpu_measure


def least_times(
    runs: Mapping[K, Run],
    measure: Measure,
    rng: random.Random,
    *,
    passes: int,
    between: Callable[[], None] = lambda: None,
    least: float = inf,
) -> dict[K, float]:
    """The least nanoseconds of each run, infinite where the memory is too small for it.

    All are timed twice, in random order, since a first call may be slow; after that only those that
    took at most 1.15 times as long as the fastest.

    Args:
        runs: what is timed, by any key.
        measure: times one call.
        rng: shuffles the order.
        passes: over all of them.
        between: called before each timing, outside of it.
        least: the shortest time of others that are compared with these.
    """
    times = dict.fromkeys(runs, inf)
    for number in range(passes):
        close = _CLOSE * min(least, *times.values()) if times else 0.0
        for key in rng.sample(list(runs), len(runs)):
            if number < _ALWAYS or times[key] <= close:
                between()
                try:
                    times[key] = min(measure(runs[key]), times[key])
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
    return times


def warm_up(
    run: Run,
    measure: Measure,
    *,
    between: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    window_s: float = 0.05,
    most_s: float = 1.0,
) -> Warmth:
    """Runs a function until the medians of two consecutive windows of time agree within 2 %.

    Rising clocks and filling caches make the first calls slower, for a time rather than for a
    number of calls.

    Args:
        run: what is run.
        measure: times one call.
        between: called before each timing, outside of it.
        clock: seconds.
        window_s: length of a window, which holds one call at least.
        most_s: past which no further call is begun.
    """
    start = clock()
    earlier: float | None = None
    while True:
        end = min(clock() + window_s, start + most_s)
        times: list[float] = []
        while not times or clock() < end:
            between()
            times.append(measure(run))
        later, spent = median(times), clock() - start
        settled = earlier is not None and abs(later - earlier) <= _AGREE * earlier
        if settled or spent >= most_s:
            return Warmth(settled, spent)
        earlier = later


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Bytes allocated on a GPU at the peak of one call, beyond what was allocated before it.

    None on the CPU, where torch does not count. It should not be the first call, in which libraries
    allocate workspaces that they keep.
    """
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, Python or a library is about running out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def released(device: torch.device) -> None:
    """Frees the memory left by a call that ran out of memory.

    No reference to its error may be left: its traceback holds the tensors of its frames.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
