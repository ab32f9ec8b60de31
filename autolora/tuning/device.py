"""The device that a problem is measured on: finding it, settling it, taking turns on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir

import torch
from filelock import FileLock

from autolora.errors import AutoloraError
from autolora.problem import Problem
from autolora.tuning.clock import measure_for


def device_for(problem: Problem, device: torch.device | str | None = None) -> torch.device:
    """The device to measure a problem on.

    Raises:
        AutoloraError: it is not there, or of another type than the problem's.
    """
    place = torch.device(device or problem.device)
    if place.type != problem.device:
        raise AutoloraError(f"{problem} is for {problem.device}, not for {place}")
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise AutoloraError(f"no device {place}; this machine has {count} CUDA devices")
        return torch.device("cuda", place.index or 0)
    return place


def settle_allocator(device: torch.device) -> None:
    """Brings the CPU's allocator to where a training process has it.

    glibc maps fresh pages for every block above a threshold, which costs as much as a thin product,
    and raises the threshold, up to 32 MiB, to the largest such block that was ever freed.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)


@lru_cache(maxsize=64)
def flops_per_ns(device: torch.device, dtype: str) -> float:
    """How fast a device multiplies matrices of a dtype, roughly: 512 × 512 by 512 × 512."""
    measure = measure_for(device)
    size = 512
    with plain_torch(device):
        one = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
        return 2 * size**3 / min(measure(lambda: one @ one) for _ in range(5))


def turn_on(device: torch.device) -> FileLock:
    """Two tuners on one device would time each other; they take turns instead."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"autolora-{user}-{str(device).replace(':', '-')}.lock"
    return FileLock(Path(gettempdir()) / name)


@contextmanager
def plain_torch(device: torch.device) -> Iterator[None]:
    """Whatever mode the caller is in, a graph is timed as a layer in training runs it.

    Dropout draws its masks; the caller's random numbers stay what they were.
    """
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
