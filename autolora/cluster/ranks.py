"""The ranks of one run: what each is at, what it has claimed, and when all is done.

All of it goes through the *store* of the process group, and never through a collective: one rank
that has died or hangs would break a collective, or stop it, for all the others.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from autolora.cache.records.record import Record
from autolora.cluster.connection import StoreConnection
from autolora.cluster.liveness import (
    BETWEEN,
    FAILED,
    INTERRUPTED,
    STARTING,
    WORKING,
    Peer,
    RankState,
    one_line,
)
from autolora.cluster.messages import Mailbox, Message
from autolora.cluster.share import Share
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.problem import Problem
from autolora.timing.device import is_waiting, lane_of, pass_over

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.2
TURN_SECONDS = 0.1  # longer than between two looks of a rank that waits for its turn
GRACE_SECONDS = 5.0  # that others are waited for when there is hurry
READING_SECONDS = 3600.0  # that a model may take to be read

_FOR_EVER = float("inf")


class Cluster:
    """This rank among the others.

    Args:
        store: of all ranks of this run, and of nothing else.
        rank: this one's number.
        size: how many ranks there are.
        local: this one's number on its host.
        clock: seconds.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        local: int = 0,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rank, self.local = rank, local
        self.state = RankState(host=one_line(platform.node())[:200], patience=READING_SECONDS)
        self.peers = {number: Peer() for number in range(size) if number != rank}
        self._store, self._clock, self._pause = store, clock, pause
        self._connection = StoreConnection()
        self._mailbox = Mailbox(self._connection, store, size)
        self._resting = False
        self._beat, self._heard = 0, clock()
        self._passed: set[int] = set()  # lost ranks whose lock is not waited for any more

    def start(self) -> None:
        """From now on the others are told that this rank is alive."""
        self._connection.start(self._update)
        self._say()

    def introduce(self, device: torch.device, environment: Environment) -> None:
        """Says what this rank measures on."""
        self._say(device=str(device), lane=lane_of(device), environment=environment)

    def offer(self, records: Iterable[Record]) -> None:
        """Rank 0's word of what is known already, for which the others wait."""
        self._mailbox.publish(records)
        self._say(phase=WORKING, patience=0.0)

    def known(self) -> list[Record] | None:
        """What rank 0 knows already, None where it is lost.

        Raises:
            AutoloraError: rank 0 could not begin, and has said why.
            KeyboardInterrupt: it was interrupted.
        """
        first = self.peers[0]
        self.wait(lambda: first.done or first.phase != STARTING)
        if first.phase == FAILED:
            raise AutoloraError(first.error)
        if first.phase == INTERRUPTED:
            raise KeyboardInterrupt
        self._say(phase=WORKING, patience=0.0)
        try:
            return None if first.phase == STARTING else self._mailbox.published()
        except ValueError as error:
            raise AutoloraError(f"what rank 0 knows cannot be read: {error}") from error

    def claim(self, key: str) -> bool:
        """Whether nobody has claimed this before; then it falls to this rank."""
        return self._connection.ask(partial(self._store.add, f"claim/{key}", 1)) == 1

    def take(self, patience: float) -> None:
        """Says that this rank has a problem in hand.

        Args:
            patience: seconds after which the others may give it up for stuck, if those are many.
        """
        self._say(hand=self.state.hand + 1, busy=True, patience=patience)

    def make_way(self) -> None:
        """Lets a rank that waits for the same device have its turn: it looks only now and then."""
        if any(not p.done and p.phase == WORKING and not p.busy for p in self._mates().values()):
            self._pause(TURN_SECONDS)

    def send(self, problem: Problem, record: Record | None, reason: str = "") -> None:
        """Hands what was in hand to the others: a record, or the reason why there is none."""
        self._mailbox.write(self.state.sent, Message(self.rank, problem, record, reason))
        self._say(sent=self.state.sent + 1, busy=False)

    def arrived(self) -> list[Message]:
        """What others have sent since this was last called.

        Rank 0 gets everything, the others what is of their own environment.
        """
        self._say()
        return [
            message
            for rank, peer in self.peers.items()
            if peer.state is not None and (self.rank == 0 or self._alike(peer))
            for message in self._mailbox.new(rank, peer.state.sent)
        ]

    def listen_again(self) -> None:
        """Whatever has arrived will do so once more: an interrupt may have lost some of it."""
        self._mailbox.start_again(self.rank)

    def acknowledge(self) -> None:
        """Says that what has arrived is in the file."""
        self._say(taken=tuple(self._mailbox.read))

    @property
    def lanes(self) -> int:
        """On how many devices problems of this environment are being measured."""
        alive = [p.state for p in self.peers.values() if self._alike(p) and not p.done]
        return len({(s.host, s.lane) for s in (self.state, *alive) if s is not None})

    def is_alike(self, rank: int) -> bool:
        """Whether another rank measures in the same environment."""
        return self._alike(self.peers[rank])

    def wait(self, over: Callable[[], bool], most: float = _FOR_EVER) -> None:
        """Waits until something holds, the store is lost, or so many seconds are over."""
        end = self._clock() + most
        self._resting = True
        try:
            while not over() and not self.is_cut_off() and self._clock() < end:
                self._pause(POLL_SECONDS)
                self._say()
        finally:
            self._resting = False

    def is_cut_off(self) -> bool:
        """Whether the other ranks cannot be reached any more, so that nothing can be claimed."""
        return not self._connection.answers()

    def come_between(self) -> None:
        """Says that the model's own problems are done, as far as they fall to this rank."""
        self._say(phase=BETWEEN)

    def others_are_between(self) -> bool:
        """Whether no other rank of this environment still measures the model's own problems."""
        alike = filter(self._alike, self.peers.values())
        return all(peer.done or peer.phase == BETWEEN for peer in alike)

    def others_are_done(self, alike: bool = False) -> bool:
        """Whether the other ranks have ended or are lost.

        Args:
            alike: only those of this environment.
        """
        return all(p.done for p in self.peers.values() if not alike or self._alike(p))

    def end(self, phase: str, error: str = "") -> None:
        """Says how it ended for this rank; only the first time counts."""
        if not self.state.ended:
            self._say(phase=phase, error=one_line(error), busy=False)

    def hand_over(self, most: float = _FOR_EVER) -> bool:
        """Waits until rank 0 has all of this rank's letters, and their records in its file.

        Args:
            most: seconds.

        Returns:
            Whether it has; it has not where it is lost.
        """
        first = self.peers[0]

        def taken() -> bool:
            counts = () if first.state is None else first.state.taken
            return (counts[self.rank] if len(counts) > self.rank else 0) >= self.state.sent

        self.wait(lambda: taken() or first.done, most)
        return taken()

    def has_said(self, error: str) -> bool:
        """Whether rank 0 fails for the same reason as this rank, and so tells the user."""
        first = self.peers[0]
        self.end(FAILED, error)
        self.wait(lambda: first.done or first.gone or first.phase != STARTING)
        return first.error == one_line(error)

    def see_off(self) -> None:
        """Waits until rank 0 has told the user everything.

        torchrun ends all ranks as soon as one has an exit code other than 0.
        """
        if self.rank:
            first = self.peers[0]
            self.wait(lambda: bool(first.lost) or first.gone)

    def leave(self) -> None:
        """The last word of this rank; rank 0, which may hold the store, goes after the others."""
        self._say(gone=True)
        if self.rank == 0:
            others = self.peers.values()
            self.wait(lambda: all(peer.lost or peer.gone for peer in others), GRACE_SECONDS)
        self._connection.close()

    def shares(self) -> list[Share]:
        """What each rank has done."""
        ranks = {rank: (peer.state, peer.lost) for rank, peer in self.peers.items()}
        ranks[self.rank] = self.state, ""
        return [
            Share.of(rank, said or RankState(), lost, self._mailbox.seconds[rank])
            for rank, (said, lost) in sorted(ranks.items())
        ]

    def _say(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # names of fields
        self._connection.ask(self._update)

    def _update(self) -> None:
        """Says what this rank is at, and hears what the others are at."""
        self._beat += 1
        said = replace(self.state, beat=self._beat, waiting=self._resting or is_waiting())
        self._store.set(f"state/{self.rank}", said.text)
        heard = self._hear()
        now = self._clock()
        for rank, peer in self.peers.items():
            state = peer.state
            with suppress(ValueError):  # of another version: as good as silent
                state = RankState.from_text(heard[rank].decode()) if rank in heard else None
            peer.hear(state, now - self._heard)
        self._heard = now
        if is_waiting():
            self._pass_over()

    def _hear(self) -> dict[int, bytes]:
        keys = {rank: f"state/{rank}" for rank in self.peers}
        there = [r for r in keys if self.peers[r].state or self._store.check([keys[r]])]
        said = self._store.multi_get([keys[rank] for rank in there]) if there else []
        return dict(zip(there, said, strict=True))

    def _pass_over(self) -> None:
        """Waits no more for a lock that a lost rank holds, unless another one has it by now."""
        mates = {rank: peer for rank, peer in self._mates().items() if peer.busy}
        lost = {rank for rank, peer in mates.items() if peer.lost} - self._passed
        if lost and all(peer.lost for peer in mates.values()):
            self._passed |= lost
            pass_over(self.state.lane)

    def _mates(self) -> dict[int, Peer]:
        """The ranks that measure on the same device."""
        mine = self.state.host, self.state.lane
        return {
            rank: peer
            for rank, peer in self.peers.items()
            if (said := peer.state) is not None and (said.host, said.lane) == mine
        }

    def _alike(self, peer: Peer) -> bool:
        return peer.state is not None and peer.state.environment == self.state.environment
