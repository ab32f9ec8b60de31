"""The device that a problem is measured on: selecting, preparing and locking it."""

from __future__ import annotations

import logging
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

logger = logging.getLogger("autolora")

_LOOK_SECONDS = 2.0  # to wait for a lock before checking whether another one is used
_LOOKS = 5  # until a waiting user is told
# keys of the devices that this context has locked
_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())
_waiting: list[str] = []
_passed: dict[str, int] = {}  # number of locks of a device that are given up


def device_for(problem: BaseProblem, device: torch.device | str | None = None) -> torch.device:
    """The device to measure a problem on.

    Raises:
        AutoloraError: there is no such device, or its type is not the problem's.
    """
    place = torch.device(device or problem.device)
    if place.type != problem.device:
        raise AutoloraError(f"{problem} is for {problem.device}, not for {place}")
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise AutoloraError(f"no device {place}; this machine has {count} CUDA devices")
        return torch.device("cuda", torch.cuda.current_device()) if place.index is None else place
    return place


def settle_allocator(device: torch.device) -> None:
    """Brings the CPU allocator into the state that it has in a training process.

    glibc maps new pages for every block above a threshold, which takes as long as a thin product.
    It raises the threshold, up to 32 MiB, to the size of the largest such block freed so far.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)


@lru_cache(maxsize=64)
def flops_per_ns(device: torch.device, dtype: str) -> float:
    """Approximate speed of a device: a product of two 512 × 512 matrices."""
    measure = measure_for(device)
    size = 512
    with plain_torch(device):
        one = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
        return 2 * size**3 / min(measure(lambda: one @ one) for _ in range(5))


@contextmanager
def turn_on(device: torch.device, give_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Locks a device, so that processes that measure on it do not disturb each other.

    The lock is reentrant.

    Args:
        device: to be locked.
        give_up: called repeatedly while waiting; if it returns True, the device is not locked.
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
    """A name of the device that does not depend on which devices a process can see."""
    if device.type != "cuda":
        return device.type
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # not in torch 2.6
    return f"cuda-{device.index or 0}" if uuid is None else re.sub(r"[^\w-]", "-", f"cuda-{uuid}")


def is_waiting() -> bool:
    """Whether this process waits for the lock of a device."""
    return bool(_waiting)


def pass_over(key: str) -> None:
    """Gives up the lock of a device, whose holder does not respond, and uses another one."""
    _passed[key] = _passed.get(key, 0) + 1


def _locked(key: str, give_up: Callable[[], bool]) -> FileLock | None:
    user = os.getuid() if hasattr(os, "getuid") else 0
    _waiting.append(key)
    looks = 0
    try:
        while not give_up():
            number = _passed.get(key, 0)
            name = f"autolora-{user}-{key}{f'-{number}' if number else ''}.lock"
            lock = FileLock(Path(gettempdir()) / name)
            try:
                lock.acquire(timeout=_LOOK_SECONDS)
            except Timeout:
                looks += 1
                if looks == _LOOKS:
                    logger.warning("autolora: waiting while another process measures on %s", key)
                continue  # another lock may be used by now
            return lock
        return None
    finally:
        _waiting.remove(key)


@contextmanager
def plain_torch(device: torch.device) -> Iterator[None]:
    """Sets autograd and autocast as in training, whatever the caller's modes are.

    The state of the random number generators is restored afterwards.
    """
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.set_detect_anomaly(False),
    ):
        yield
