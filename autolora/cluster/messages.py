"""Records sent from rank to rank: each as the text of a cache file, validated on arrival."""

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
from autolora.errors import one_line
from autolora.problem import BaseProblem
from autolora.problem.kinds import problem_from_json

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger("autolora")

_CHUNK = 100  # records; a store of torch takes no more than 8 MiB at once
_FAILURE = b'{"failed":'


@dataclass(frozen=True, slots=True)
class Message:
    """The result of one problem: its record, or the reason why there is none."""

    rank: int
    problem: BaseProblem
    record: Record | None = None
    reason: str = ""


class Mailbox:
    """The messages of the ranks, in the order in which each rank sent them.

    Args:
        connection: to the store.
        store: that holds them.
        size: number of ranks.
    """

    def __init__(self, connection: StoreConnection, store: Store, size: int) -> None:
        self.connection, self.store = connection, store
        self.read = [0] * size  # number of messages read of each rank
        self.seconds: list[list[float]] = [[] for _ in range(size)]  # that each record took

    def publish(self, records: Iterable[Record]) -> None:
        """Offers the known records to all ranks."""
        listed = list(records)
        chunks = [listed[start : start + _CHUNK] for start in range(0, len(listed), _CHUNK)]
        for number, chunk in enumerate(chunks):
            self.connection.ask(partial(self.store.set, f"known/{number}", text_of(chunk)))
        self.connection.ask(partial(self.store.set, "known", str(len(chunks))))

    def published(self) -> list[Record] | None:
        """The records of :meth:`publish`, None if the store is lost.

        Raises:
            ValueError: what the store holds is something else.
        """
        found: list[Record] = []
        for number in range(int(self._get("known") or 0)):
            chunk = self._get(f"known/{number}")
            found += [] if chunk is None else _records_of(chunk)
        return None if self.connection.lost else found

    def send(self, number: int, message: Message) -> None:
        """Sends a rank's message of that number."""
        if message.record is None:
            reason = one_line(message.reason) or "no reason"
            content = dumps({"failed": message.problem.to_json(), "reason": reason})
        else:
            self.seconds[message.rank].append(message.record.seconds)
            content = text_of([message.record])
        self.connection.ask(partial(self.store.set, f"message/{message.rank}/{number}", content))

    def unread(self, rank: int, sent: int) -> Iterator[Message]:
        """Reads the new ones of the messages that a rank has sent.

        Args:
            rank: the sender.
            sent: number of its messages so far.
        """
        for number in range(self.read[rank], sent):
            content = self._get(f"message/{rank}/{number}")
            if content is None:
                return
            self.read[rank] = number + 1
            try:
                message = _parsed(rank, content)
            except ValueError as error:
                logger.warning("autolora: what rank %d sent is not used: %s", rank, error)
                continue
            if message.record is not None:
                self.seconds[rank].append(message.record.seconds)
            yield message

    def mark_unread(self, own: int) -> None:
        """Lets all messages be read again, but those of this rank's own number."""
        self.read = [0] * len(self.read)
        self.seconds = [each if rank == own else [] for rank, each in enumerate(self.seconds)]

    def _get(self, key: str) -> bytes | None:
        return self.connection.ask(lambda: self.store.get(key) if self.store.check([key]) else None)


def _records_of(content: bytes) -> list[Record]:
    """The valid records of a document.

    Raises:
        ValueError: it is no document at all.
    """
    try:
        table = parse(content)
    except NewerSchema as error:
        raise ValueError(str(error)) from error
    return [record for key in list(table.lines) if (record := table.record(key)) is not None]


def _parsed(rank: int, content: bytes) -> Message:
    if content.startswith(_FAILURE):
        value = members("a message", loads(content.decode("ascii")), ("failed", "reason"))
        if not isinstance(value["failed"], Mapping):
            raise ValueError("failed must be a problem")
        reason = text("reason", value["reason"])
        return Message(rank, problem_from_json(value["failed"]), reason=reason)
    records = _records_of(content)
    if len(records) != 1:
        raise ValueError("a message must hold one record")
    return Message(rank, records[0].problem, records[0])
