"""Times functions in turn, so that what is compared meets the same machine."""

from __future__ import annotations

import multiprocessing
import random
import time
from contextlib import contextmanager
from statistics import median

import torch

from autolora.timing.clock import cpu_measure
from autolora.timing.statistics import paired


def interleaved(
    steps, rounds=60, *, warmup=1, seconds=None, prepare=lambda name: None, measure=cpu_measure
):
    """Times of each function in nanoseconds, by its name: one per round, in random order.

    Args:
        steps: name → function without arguments.
        rounds: that count, at most.
        warmup: rounds before, which do not count.
        seconds: after which no further round is begun once there are ten. None is no limit.
        prepare: called with the name before each call, outside of its time.
        measure: times one call.
    """
    times = {name: [] for name in steps}
    end = None if seconds is None else time.perf_counter() + seconds
    for number in range(warmup + rounds):
        for name in random.sample(list(steps), len(steps)):
            prepare(name)
            taken = measure(steps[name])
            if number >= warmup:
                times[name].append(taken)
        if end is not None and number >= warmup + 10 and time.perf_counter() > end:
            break
    return times


def against_peft(times):
    """Figures of ``"autolora"`` beside ``"peft"`` and the ``"floor"``, the model without adapters.

    Returns the speed-up over PEFT, the share of the LoRA overhead that is gone, and the median
    milliseconds of every name.
    """
    ms = {name: median(taken) / 1e6 for name, taken in times.items()}
    return {
        "speedup": paired(times["peft"], times["autolora"])[0],
        "overhead_removed": (ms["peft"] - ms["autolora"]) / (ms["peft"] - ms["floor"]),
        "ms": {name: round(taken, 3) for name, taken in ms.items()},
    }


@contextmanager
def a_busy_neighbour():
    """Keeps one processor busy with matrix products, in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
    process.start()
    time.sleep(3)  # until it has imported torch
    try:
        yield
    finally:
        process.terminate()
        process.join()


def busy():
    """Multiplies matrices forever."""
    torch.set_num_threads(1)
    one = torch.randn(512, 512)
    while True:
        one @ one
