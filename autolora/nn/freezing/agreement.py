"""Sends rank 0's plan to all ranks of a process group, so that they run the same graphs.

The plan is sent through the group's store, not by a collective: rank 0 does not wait, and the
others wait for a limited time. A model that only some of the ranks accelerate therefore never hangs
a run, no device is used, and every backend works. On an error the rank logs a warning and keeps its
own plan. Keys in the store contain the sizes of the model's layers and a count, so that ranks may
freeze several models in different orders.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import distributed

from autolora.environment import Environment
from autolora.nn.freezing.snapshot import Sizes, Snapshot, Snapshots, read_message, write_message

LIMIT_SECONDS = 300.0  # to wait for rank 0, if the timeout of the group is not shorter
GRACE_SECONDS = 20.0  # to wait once rank 0 has frozen as many models as this rank

RANK_0 = "rank 0's plan"

_PREFIX = "autolora/plan"
_PIECE = 2**20  # characters in one value; some stores refuse more than 8 MiB
_POLL_SECONDS = (0.005, 0.5)  # the first and the longest pause

logger = logging.getLogger("autolora")


def in_group() -> bool:
    """Whether this process is one of several of a process group."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def trains_on_cuda() -> bool:
    """Whether the process group is for CUDA devices only."""
    return bool(distributed.get_backend() == "nccl")


def agree(own: Snapshot, here: Mapping[str, Environment], sizes: Sizes) -> Snapshots:
    """The plan of this rank: rank 0's for device types whose environment is the same there.

    A device type that rank 0 does not report counts as the same. Never raises.

    Args:
        own: the plan that this rank has read.
        here: environments of this rank, by device type.
        sizes: of the layers of the model.
    """
    rank = distributed.get_rank()
    try:
        store = _store()
        place, number = _place(store, sizes, rank)
        if rank == 0:
            _send(store, place, write_message(own, here))
            return Snapshots(replace(own, origin=RANK_0))
        agreed, there = read_message(_receive(store, place, number), RANK_0)
    # Stores raise exceptions of many types, none of which may stop the training.
    except Exception as error:
        cause = str(error).split("\n", 1)[0][:200] or type(error).__name__
        _warn(rank, f"did not get rank 0's plan ({cause}) and keeps its own")
        return Snapshots(own)
    return _snapshots(rank, own, agreed, here, there)


def fingerprint(sizes: Sizes) -> str:
    """Twelve hexadecimal digits that depend on the sizes of a model's layers."""
    return hashlib.sha256(repr(sorted(sizes)).encode()).hexdigest()[:12]


def _snapshots(
    rank: int,
    own: Snapshot,
    agreed: Snapshot,
    here: Mapping[str, Environment],
    there: Mapping[str, Environment],
) -> Snapshots:
    """Rank 0's plan for the device types whose environments are equal, and a warning for others."""
    shared = [kind for kind in here if kind in there]
    if not shared:
        words = f"{', '.join(here)} here, {', '.join(there)} on rank 0"
        _warn(rank, f"keeps its own plan, since its environment is another one: device ({words})")
        return Snapshots(own)
    kept = [kind for kind in shared if here[kind] != there[kind]]
    for kind in kept:
        words = ", ".join(_differences(here[kind], there[kind]))
        _warn(rank, f"keeps its own plan, since its environment is another one: {words}")
    if len(kept) == len(shared):
        return Snapshots(own)
    return Snapshots(own, agreed, frozenset(kept)) if kept else Snapshots(agreed)


def _differences(here: Environment, there: Environment) -> list[str]:
    theirs = there.to_json()
    return [
        f"{name} ({value} here, {theirs[name]} on rank 0)"
        for name, value in here.to_json().items()
        if value != theirs[name]
    ]


def _store() -> Any:
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore(_PREFIX, _get_default_store())


def _place(store: Any, sizes: Sizes, rank: int) -> tuple[str, int]:
    """The key of the plan of this call, and the number of calls that this rank has made."""
    prefix = fingerprint(sizes)
    nth = store.add(f"{prefix}/calls/{rank}", 1)
    return f"{prefix}/{nth}", store.add(f"calls/{rank}", 1)


def _send(store: Any, place: str, message: str) -> None:
    pieces = [message[start : start + _PIECE] for start in range(0, len(message), _PIECE)]
    for number, piece in enumerate(pieces):
        store.set(f"{place}/{number}", piece)
    store.set(place, str(len(pieces)))  # last, so that all pieces are there when it is
    store.add("sent", 1)


def _receive(store: Any, place: str, number: int) -> str:
    """Waits for the message with key ``place``, the ``number``-th that this rank waits for.

    Raises:
        TimeoutError: it does not arrive.
    """
    limit = min(LIMIT_SECONDS, store.timeout.total_seconds())
    end, reason = time.monotonic() + limit, f"none came within {limit:g} s"
    pause, longest = _POLL_SECONDS
    overtaken = False
    while not store.check([place]):  # Ctrl-C would not interrupt store.wait()
        if not overtaken and store.add("sent", 0) >= number:
            overtaken = True
            if (soon := time.monotonic() + GRACE_SECONDS) < end:
                end, reason = soon, "rank 0 froze other layers"
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError(reason)
        time.sleep(min(pause, left))
        pause = min(2 * pause, longest)
    pieces = int(store.get(place))
    return "".join(store.get(f"{place}/{piece}").decode("ascii") for piece in range(pieces))


def _warn(rank: int, what: str) -> None:
    logger.warning("autolora: rank %d %s", rank, what)
