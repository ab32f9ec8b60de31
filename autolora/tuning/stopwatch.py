"""Timing that holds on a noisy machine: interleaved rounds, paired differences, robust statistics.

A *measure* is ``measure(run) -> nanoseconds``: it runs a function once and says how long it took.
It is an argument everywhere, so that tests race without a real clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Run = Callable[[], object]
Measure = Callable[[Run], float]
Samples = dict[str, list[float]]  # per candidate, one time in nanoseconds per round it took part in

EVEN = 0.01  # two candidates closer than this are taken as equal
_HOPELESS = 1.25  # beaten by this much after one round, a candidate is not tried again
_ENOUGH = 3  # rounds of confirmation, where there is time for them
_CLOSE = 1.05  # the second is not confirmed when it is slower than the first by this much


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a race may last.

    Args:
        rounds: at least and at most so many before the confirmation.
        confirmation: likewise, of fresh data for the last few.
        seconds: for each of the two, past which only the least number of rounds is run; twice as
            long for a confirmation that has not decided anything yet.
    """

    rounds: tuple[int, int]
    confirmation: tuple[int, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a race.

    Args:
        winner: the fastest, or the baseline where nothing beats it by more than the noise.
        samples: every time that was taken, in order.
        confirmed: the times of the confirmation, for those that took part.
    """

    winner: str
    samples: Samples
    confirmed: Samples


def cpu_measure(run: Run) -> float:
    """Wall time of one call on the CPU."""
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


def cuda_measure(device: torch.device) -> Measure:
    """Time between two events around one call on a GPU, with its L2 cache flushed before."""
    properties = torch.cuda.get_device_properties(device)
    flush = torch.empty(2 * max(properties.L2_cache_size, 1 << 22), dtype=torch.int8, device=device)

    def measure(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e6  # type: ignore[no-any-return]

    return measure


def measure_for(device: torch.device) -> Measure:
    """The measure of a device."""
    return cuda_measure(device) if device.type == "cuda" else cpu_measure


def race(
    runs: Mapping[str, Run],
    measure: Measure,
    pace: Pace,
    rng: random.Random,
    *,
    baseline: str,
    kept: Collection[str] = (),
    observed: Collection[str] = (),
    pools: Sequence[Collection[str]] = (),
    between: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Finds the fastest of several functions.

    Every candidate runs once per round, in an order drawn anew, so that drift hits all alike. Those
    clearly beaten are dropped. It ends when the first two are separated or within 1 %, or when the
    pace says so. Then the first two run again, beside the baseline and what is observed; only those
    fresh times decide which is first, and it must beat the baseline over all rounds by more than
    the standard error, or the baseline wins.

    Args:
        runs: the candidates by name, and what is observed.
        measure: times one call.
        pace: how long it may last.
        rng: draws the order.
        baseline: the candidate that wins unless it is beaten by more than the noise.
        kept: candidates that take part in the confirmation even when beaten.
        observed: those of ``runs`` that are only timed, in the confirmation, and cannot win.
        pools: groups of candidates whose own fastest is wanted as well, by its time: none of a pool
            is dropped before it has three rounds, and then only when its pool's fastest beats it.
            That one takes part in the confirmation, where it can win only if it came close.
        between: called before each timing, outside of it.
        clock: seconds, for the limit of the pace.
    """
    between()
    runs[baseline]()  # warms the allocator and the threads
    samples: Samples = {name: [] for name in runs}
    running = [name for name in runs if name not in observed]
    groups = [group for pool in pools if (group := _still(pool, running))]
    least = max(pace.rounds[0], _ENOUGH) if groups else pace.rounds[0]
    end = clock() + pace.seconds
    for number in range(1, pace.rounds[1] + 1):
        _round(running, runs, measure, between, rng, samples)
        leader = fastest(samples, running)
        stay = _unbeaten(running, samples, number)
        for group in groups:
            still = _still(group, running)
            stay.update(still if number < _ENOUGH else _unbeaten(still, samples, number))
        running = [name for name in running if name in stay]
        if number >= least and (clock() >= end or _settled(samples, running, leader)):
            break
    running.sort(key=lambda name: median(samples[name]))
    first = median(samples[running[0]])
    close = [name for name in running[:2] if median(samples[name]) <= _CLOSE * first]
    wanted = [fastest(samples, _still(group, running)) for group in groups]
    close += [name for name in wanted if median(samples[name]) <= _CLOSE * first]
    able = list(dict.fromkeys([*close, baseline, *kept]))  # to win
    finalists = list(dict.fromkeys([*able, *wanted, *observed]))
    confirmed: Samples = {name: [] for name in finalists}
    end = clock() + pace.seconds
    for number in range(1, pace.confirmation[1] + 1):
        _round(finalists, runs, measure, between, rng, confirmed)
        winner = fastest(confirmed, [name for name in able if name not in observed])
        ratio, noise = paired(*_both(samples, confirmed, winner, baseline))
        decided = winner == baseline or abs(ratio - 1) > 2 * noise
        limit = end if decided else end + pace.seconds
        if number >= pace.confirmation[0] and (clock() >= limit or (decided and number >= _ENOUGH)):
            break
    if not ratio + noise < 1:
        winner = baseline
    return Result(
        winner, {name: samples[name] + confirmed.get(name, []) for name in runs}, confirmed
    )


def fastest(samples: Samples, names: Sequence[str]) -> str:
    """The name with the least median."""
    return min(names, key=lambda name: median(samples[name]))


def spread(times: Sequence[float]) -> float:
    """The interquartile range; the full range of fewer than four."""
    ordered = sorted(times)
    if len(ordered) < 4:
        return ordered[-1] - ordered[0]
    return _quantile(ordered, 0.75) - _quantile(ordered, 0.25)


def paired(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Median of the round-by-round ratios ``times / others``, and its standard error.

    The standard error of a median is about 1.25 σ/√n; σ is taken from the interquartile range as
    IQR / 1.35, so that spikes do not count.
    """
    ratios = [a / b for a, b in zip(times, others, strict=False)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    return median(ratios), 1.25 * spread(ratios) / 1.35 / len(ratios) ** 0.5


def _round(
    names: list[str],
    runs: Mapping[str, Run],
    measure: Measure,
    between: Callable[[], None],
    rng: random.Random,
    into: Samples,
) -> None:
    for name in rng.sample(names, len(names)):
        between()
        into[name].append(measure(runs[name]))


def _still(pool: Collection[str], running: Sequence[str]) -> list[str]:
    """Those of a pool that are still in the race, as its fastest always is."""
    return [name for name in running if name in pool]


def _both(
    samples: Samples, confirmed: Samples, first: str, second: str
) -> tuple[list[float], list[float]]:
    """All times of two candidates from the rounds that both took part in."""
    shared = min(len(samples[first]), len(samples[second]))
    return (
        samples[first][:shared] + confirmed[first],
        samples[second][:shared] + confirmed[second],
    )


def _unbeaten(names: Sequence[str], samples: Samples, rounds: int) -> set[str]:
    """The fastest of some candidates, and those that it does not beat."""
    leader = fastest(samples, names)
    return {leader} | {n for n in names if not _beaten(samples[n], samples[leader], rounds)}


def _beaten(times: list[float], leader: list[float], rounds: int) -> bool:
    ratio, noise = paired(times, leader)
    if rounds < 3:
        return ratio > _HOPELESS
    return ratio - 2 * noise > 1 + EVEN


def _settled(samples: Samples, running: list[str], leader: str) -> bool:
    """Whether each of the others is slower than the leader by more than noise, or surely even."""
    for name in running:
        if name != leader:
            ratio, noise = paired(samples[name], samples[leader])
            separated = ratio - 2 * noise >= 1
            even = abs(ratio - 1) + 2 * noise <= EVEN
            if not separated and not even:
                return False
    return True


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
