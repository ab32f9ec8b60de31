"""The device that a problem is measured on: finding it, settling it, taking turns on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir

import torch
from filelock import FileLock, Timeout

from autolora.errors import AutoloraError
from autolora.problem import BaseProblem
from autolora.timing.clock import measure_for

_LOOK_SECONDS = 2.0  # between two looks whether another lock is to be waited for
_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())  # by this thread
_waiting: list[str] = []
_passed: dict[str, int] = {}  # how many locks of a device are not waited for any more


def device_for(problem: BaseProblem, device: torch.device | str | None = None) -> torch.device:
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


@contextmanager
def turn_on(device: torch.device, give_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Two tuners on one device would time each other; they take turns instead.

    Whoever has the turn already has it again at once.

    Args:
        device: on which.
        give_up: asked now and then while waiting; if it says so, there is no turn, and no waiting.
    """
    key = device_key(device)
    if key in (held := _held.get()):
        yield
        return
    lock = _locked(key, give_up)
    token = _held.set(held | {key})
    try:
        yield
    finally:
        _held.reset(token)
        if lock is not None:
            lock.release()


def device_key(device: torch.device) -> str:
    """The device's name among all processes of this host, whichever devices they can see."""
    if device.type != "cuda":
        return device.type
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # not in torch 2.6
    return f"cuda-{device.index or 0}" if uuid is None else re.sub(r"[^\w-]", "-", f"cuda-{uuid}")


def is_waiting() -> bool:
    """Whether this process waits for its turn."""
    return bool(_waiting)


def pass_over(key: str) -> None:
    """From now on takes turns on a device by another lock: who holds this one will not let go."""
    _passed[key] = _passed.get(key, 0) + 1


def _locked(key: str, give_up: Callable[[], bool]) -> FileLock | None:
    user = os.getuid() if hasattr(os, "getuid") else 0
    _waiting.append(key)
    try:
        while not give_up():
            number = _passed.get(key, 0)
            name = f"autolora-{user}-{key}{f'-{number}' if number else ''}.lock"
            lock = FileLock(Path(gettempdir()) / name)
            try:
                lock.acquire(timeout=_LOOK_SECONDS)
            except Timeout:
                continue  # perhaps it is another lock by now
            return lock
        return None
    finally:
        _waiting.remove(key)


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
