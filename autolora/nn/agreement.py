"""One plan for all ranks of a process group, rank 0's, so that they run the same graphs.

It goes through the group's store, not through a collective: rank 0 leaves it there and waits for
nobody, the others wait for it, but not for ever. So a model that only some of the ranks accelerate
never hangs a run, no device is touched, and any backend will do. What goes wrong is a warning, and
the rank keeps its own plan. Plans are kept apart by the sizes of the layers that they are for and
counted by the store itself, so that ranks which freeze several models in different order do not mix
them, and a new group begins anew.
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
from autolora.nn.snapshot import Sizes, Snapshot, Snapshots, read_message, write_message

LIMIT_SECONDS = 300.0  # to wait for rank 0; less where the group's own limit is less
GRACE_SECONDS = 20.0  # once rank 0 has frozen as many models as this rank, all of them others

RANK_0 = "rank 0's plan"

_PREFIX = "autolora/plan"
_PIECE = 2**20  # characters in one value of the store: some stores refuse more than 8 MiB
_POLL_SECONDS = (0.005, 0.5)  # from, to

logger = logging.getLogger("autolora")


class _NoPlan(Exception):
    """Why there is no plan of rank 0's."""


def in_group() -> bool:
    """Whether this process is one of several of a process group."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def trains_on_cuda() -> bool:
    """Whether the process group is one for CUDA devices alone."""
    return bool(distributed.get_backend() == "nccl")


def agree(own: Snapshot, here: Mapping[str, Environment], sizes: Sizes) -> Snapshots:
    """The plan that this rank holds: rank 0's where the environments are the same.

    A device type that rank 0 says nothing of counts as the same. Never raises.

    Args:
        own: read by this rank.
        here: the environments of this rank, by device type.
        sizes: of the layers that the plan is for.
    """
    rank = distributed.get_rank()
    try:
        store = _store()
        place, number = _place(store, sizes, rank)
        if rank == 0:
            _send(store, place, write_message(own, here))
            return Snapshots(replace(own, origin=RANK_0))
        agreed, there = read_message(_receive(store, place, number), RANK_0)
    # A store is foreign code that fails in foreign ways, and a training must not end for that.
    except Exception as error:
        cause = str(error).split("\n", 1)[0][:200] or type(error).__name__
        _warn(rank, f"did not get rank 0's plan ({cause}) and keeps its own")
        return Snapshots(own)
    return _snapshots(rank, own, agreed, here, there)


def fingerprint(sizes: Sizes) -> str:
    """Twelve hexadecimal digits that tell models with layers of other sizes apart."""
    return hashlib.sha256(repr(sorted(sizes)).encode()).hexdigest()[:12]


def _snapshots(
    rank: int,
    own: Snapshot,
    agreed: Snapshot,
    here: Mapping[str, Environment],
    there: Mapping[str, Environment],
) -> Snapshots:
    """Rank 0's plan for the device types whose environments do not differ from rank 0's."""
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
    """Where the plan of this call stands, and how many calls this rank has made, this included."""
    kind = fingerprint(sizes)
    nth = store.add(f"{kind}/calls/{rank}", 1)
    return f"{kind}/{nth}", store.add(f"calls/{rank}", 1)


def _send(store: Any, place: str, message: str) -> None:
    pieces = [message[start : start + _PIECE] for start in range(0, len(message), _PIECE)]
    for number, piece in enumerate(pieces):
        store.set(f"{place}/{number}", piece)
    store.set(place, str(len(pieces)))  # last, so that whoever sees it finds all pieces
    store.add("sent", 1)


def _receive(store: Any, place: str, number: int) -> str:
    """The message of a place.

    Args:
        store: of the group.
        place: where it is, or will be.
        number: how many messages this rank has waited for, with this one.

    Raises:
        _NoPlan: it does not come.
    """
    _await(store, place, number)
    pieces = int(store.get(place))
    return "".join(store.get(f"{place}/{piece}").decode("ascii") for piece in range(pieces))


def _await(store: Any, place: str, number: int) -> None:
    # Not with the store's own wait, which Ctrl-C does not interrupt.
    limit = min(LIMIT_SECONDS, store.timeout.total_seconds())
    end, reason = time.monotonic() + limit, f"none came within {limit:g} s"
    pause, longest = _POLL_SECONDS
    passed_by = False
    while not store.check([place]):
        if not passed_by and store.add("sent", 0) >= number:
            passed_by = True
            if (soon := time.monotonic() + GRACE_SECONDS) < end:
                end, reason = soon, "rank 0 froze other layers"
        if (left := end - time.monotonic()) <= 0:
            raise _NoPlan(reason)
        time.sleep(min(pause, left))
        pause = min(2 * pause, longest)


def _warn(rank: int, what: str) -> None:
    logger.warning("autolora: rank %d %s", rank, what)
