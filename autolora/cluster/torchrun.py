"""Joining the ranks that ``torchrun`` has started, and leaving them in order."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from autolora.cluster.liveness import FAILED
from autolora.cluster.ranks import Cluster
from autolora.errors import AutoloraError, one_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

JOIN_SECONDS = 300.0  # for all ranks to be there

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_calls = itertools.count()


@contextmanager
def joined() -> Iterator[Cluster | None]:
    """This rank among the others if torchrun has started several, else None.

    Inside, SIGTERM, which torchrun sends to all ranks when one has died, acts as Ctrl-C: finished
    measurements are kept. Only the first signal counts; shutting down takes seconds.

    Raises:
        AutoloraError: the ranks do not find each other.
    """
    own = not (dist.is_available() and dist.is_initialized())
    if own and not _is_started_by_torchrun(os.environ):
        yield None
        return
    if own:
        _init_process_group()
    rank, size, local = dist.get_rank(), dist.get_world_size(), os.environ.get("LOCAL_RANK", "")
    try:
        if size < 2:
            yield None
            return
        cluster = Cluster(_store(), rank, size, local=int(local) if local.isdecimal() else rank)
        with _one_interrupt():
            try:
                cluster.start()
                yield cluster
            except BaseException as error:
                cluster.end(FAILED, f"{type(error).__name__}: {error}")
                raise
            finally:
                _set_handler(signal.SIG_IGN)
                cluster.leave()
    finally:
        if own:
            dist.destroy_process_group()


def _is_started_by_torchrun(variables: Mapping[str, str]) -> bool:
    size = variables.get("WORLD_SIZE", "")
    return all(map(variables.get, _VARIABLES)) and size.isdecimal() and int(size) > 1


def _init_process_group() -> None:
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=JOIN_SECONDS))
    except (RuntimeError, ValueError, AttributeError) as error:  # the last: a torch without gloo
        raise AutoloraError(
            f"the ranks of torchrun do not find each other: {one_line(error, 500)}; to tune "
            "in one process, unset RANK and WORLD_SIZE"
        ) from error


def _store() -> Store:
    """The group's store under a prefix of this run and this attempt of torchrun."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"autolora/tune/{attempt}/{next(_calls)}"
    return dist.distributed_c10d.PrefixStore(prefix, dist.distributed_c10d._get_default_store())


@contextmanager
def _one_interrupt() -> Iterator[None]:
    before = [signal.getsignal(each) for each in _SIGNALS]
    _set_handler(_interrupt)
    try:
        yield
    finally:
        for each, handler in zip(_SIGNALS, before, strict=True):
            _set_handler(handler, each)


def _interrupt(number: int, frame: object) -> None:
    _set_handler(signal.SIG_IGN)
    raise KeyboardInterrupt


def _set_handler(handler: Any, *signals: signal.Signals) -> None:
    """Sets the handler of signals, if this is the main thread."""
    if threading.current_thread() is threading.main_thread():
        for each in signals or _SIGNALS:
            signal.signal(each, handler)
