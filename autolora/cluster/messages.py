"""Records sent from rank to rank: each as the text of a cache file, checked again on arrival."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from autolora.cache.records.checks import dumps, loads, members, text
from autolora.cache.records.document import NewerSchema, parse, text_of
from autolora.cache.records.record import Record
from autolora.cluster.connection import StoreConnection
from autolora.cluster.liveness import one_line
from autolora.problem import Problem

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger("autolora")

_PART = 100  # records; a store of torch takes no more than 8 MiB at once
_FAILURE = b'{"failed":'


@dataclass(frozen=True, slots=True)
class Message:
    """What a rank has to say of one problem: its record, or why it has none."""

    rank: int
    problem: Problem
    record: Record | None = None
    reason: str = ""


class Mailbox:
    """What the ranks have sent each other, in the order in which each did.

    Args:
        connection: to the store.
        store: that holds them.
        size: how many ranks there are.
    """

    def __init__(self, connection: StoreConnection, store: Store, size: int) -> None:
        self.connection, self.store = connection, store
        self.read = [0] * size  # of each rank so many
        self.seconds: list[list[float]] = [[] for _ in range(size)]  # that each record took

    def publish(self, records: Iterable[Record]) -> None:
        """Lays out what is known already, for whomever reads it."""
        held = list(records)
        parts = [held[start : start + _PART] for start in range(0, len(held), _PART)]
        for number, part in enumerate(parts):
            self.connection.ask(partial(self.store.set, f"known/{number}", text_of(part)))
        self.connection.ask(partial(self.store.set, "known", str(len(parts))))

    def published(self) -> list[Record] | None:
        """What was laid out, None where that cannot be had.

        Raises:
            ValueError: it is something else.
        """
        found: list[Record] = []
        for number in range(int(self.connection.ask(partial(self._get, "known")) or 0)):
            said = self.connection.ask(partial(self._get, f"known/{number}"))
            found += [] if said is None else records_of(said)
        return None if self.connection.cut_off else found

    def write(self, number: int, message: Message) -> None:
        """Sends a rank's letter of that number."""
        if message.record is None:
            said = dumps({"failed": message.problem.to_json(), "reason": _short(message.reason)})
        else:
            self.seconds[message.rank].append(message.record.seconds)
            said = text_of([message.record])
        self.connection.ask(partial(self.store.set, f"message/{message.rank}/{number}", said))

    def new(self, rank: int, sent: int) -> Iterator[Message]:
        """The letters of a rank that were not read yet, of so many that it has sent."""
        for number in range(self.read[rank], sent):
            said = self.connection.ask(partial(self._get, f"message/{rank}/{number}"))
            if said is None:
                return
            self.read[rank] = number + 1
            try:
                message = _opened(rank, said)
            except ValueError as error:
                logger.warning("autolora: what rank %d sent is not used: %s", rank, error)
                continue
            if message.record is not None:
                self.seconds[rank].append(message.record.seconds)
            yield message

    def start_again(self, own: int) -> None:
        """Takes all letters of the ranks other than this own one for new."""
        self.read = [0] * len(self.read)
        self.seconds = [held if rank == own else [] for rank, held in enumerate(self.seconds)]

    def _get(self, key: str) -> bytes | None:
        return self.store.get(key) if self.store.check([key]) else None


def records_of(said: bytes) -> list[Record]:
    """The records of a document; those that are none are left out.

    Raises:
        ValueError: it is no document at all.
    """
    try:
        table = parse(said)
    except NewerSchema as error:
        raise ValueError(str(error)) from error
    return [record for key in list(table.lines) if (record := table.record(key)) is not None]


def _opened(rank: int, said: bytes) -> Message:
    if said.startswith(_FAILURE):
        value = members("a letter", loads(said.decode("ascii")), ("failed", "reason"))
        if not isinstance(value["failed"], Mapping):
            raise ValueError("failed must be a problem")
        reason = text("reason", value["reason"])
        return Message(rank, Problem.from_json(value["failed"]), reason=reason)
    records = records_of(said)
    if len(records) != 1:
        raise ValueError("a letter must hold one record")
    return Message(rank, records[0].problem, records[0])


def _short(reason: str) -> str:
    return one_line(reason)[:200] or "no reason"
