"""The ranks of one run: their states, their claims on problems, and waiting for each other.

All of it goes through the *store* of the process group, and never through a collective: a rank that
died or hangs would make a collective fail or hang on all the others.
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
    ERROR_LENGTH,
    FAILED,
    INTERRUPTED,
    STARTING,
    WORKING,
    Peer,
    RankState,
)
from autolora.cluster.messages import Mailbox, Message
from autolora.cluster.share import Share
from autolora.environment import Environment
from autolora.errors import AutoloraError, one_line
from autolora.problem import BaseProblem
from autolora.timing.device import device_key, is_waiting, pass_over

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.2
TURN_SECONDS = 0.1  # longer than between two looks of a rank that waits for its turn
GRACE_SECONDS = 5.0  # that an interrupted run waits for other ranks
READING_SECONDS = 3600.0  # that a model may take to be read

_FOR_EVER = float("inf")


class Cluster:
    """This rank among the others.

    Args:
        store: of all ranks of this run, and of nothing else.
        rank: of this process.
        size: number of ranks.
        local: number of this process on its host.
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
        self.state = RankState(host=one_line(platform.node()), patience=READING_SECONDS)
        self.peers = {number: Peer() for number in range(size) if number != rank}
        self._store, self._clock, self._pause = store, clock, pause
        self._connection = StoreConnection()
        self._mailbox = Mailbox(self._connection, store, size)
        self._is_idle = False  # waits for other ranks
        self._heartbeat, self._updated = 0, clock()
        self._passed: set[int] = set()  # lost ranks whose lock is not waited for any more

    def start(self) -> None:
        """Starts the heartbeat of this rank."""
        self._connection.start(self._exchange)
        self._publish()

    def set_device(self, device: torch.device, environment: Environment) -> None:
        """Publishes what this rank measures on."""
        self._publish(device=str(device), device_key=device_key(device), environment=environment)

    def publish_known(self, records: Iterable[Record]) -> None:
        """On rank 0: publishes the records of the cache file, for which the others wait."""
        self._mailbox.publish(records)
        self._publish(phase=WORKING, patience=0.0)

    def known(self) -> list[Record] | None:
        """The records of rank 0's cache file, None if rank 0 is lost.

        Raises:
            AutoloraError: rank 0 failed before it published them; the message is its error.
            KeyboardInterrupt: it was interrupted before.
        """
        first = self.peers[0]
        self.wait(lambda: first.done or first.state.phase != STARTING)
        if first.state.phase == FAILED:
            raise AutoloraError(first.state.error)
        if first.state.phase == INTERRUPTED:
            raise KeyboardInterrupt
        self._publish(phase=WORKING, patience=0.0)
        try:
            return None if first.state.phase == STARTING else self._mailbox.published()
        except ValueError as error:
            raise AutoloraError(f"what rank 0 knows cannot be read: {error}") from error

    def claim(self, key: str) -> bool:
        """Claims a key; whether no rank had claimed it before."""
        return self._connection.ask(partial(self._store.add, f"claim/{key}", 1)) == 1

    def start_problem(self, patience: float) -> None:
        """Publishes that this rank starts to measure a problem.

        Args:
            patience: seconds after which the others may take it for stuck, if those are many.
        """
        self._publish(started=self.state.started + 1, busy=True, patience=patience)

    def yield_device(self) -> None:
        """Pauses while another rank waits for this device, which looks only now and then."""
        same = self._on_same_device().values()
        if any(not p.done and p.state.phase == WORKING and not p.state.busy for p in same):
            self._pause(TURN_SECONDS)

    def send(self, problem: BaseProblem, record: Record | None, reason: str = "") -> None:
        """Sends the result of the current problem: a record, or why there is none."""
        self._mailbox.send(self.state.sent, Message(self.rank, problem, record, reason))
        self._publish(sent=self.state.sent + 1, busy=False)

    def receive(self) -> list[Message]:
        """The messages since the last call: on rank 0 all, else those of the same environment."""
        self._publish()
        return [
            message
            for rank, peer in self.peers.items()
            if self.rank == 0 or self.is_same_environment(rank)
            for message in self._mailbox.unread(rank, peer.state.sent)
        ]

    def receive_again(self) -> None:
        """Lets :meth:`receive` give every message again; an interrupt may have lost some."""
        self._mailbox.mark_unread(self.rank)

    def acknowledge(self) -> None:
        """On rank 0: publishes that all messages received so far are in the file."""
        self._publish(saved=tuple(self._mailbox.read))

    @property
    def device_count(self) -> int:
        """Number of devices on which problems of this environment are being measured."""
        same = self._in_same_environment()
        states = [self.state, *(peer.state for peer in same if not peer.done)]
        return len({(state.host, state.device_key) for state in states})

    def is_same_environment(self, rank: int) -> bool:
        """Whether another rank measures in the same environment."""
        peer = self.peers[rank]
        return peer.heard and peer.state.environment == self.state.environment

    def wait(self, over: Callable[[], bool], most: float = _FOR_EVER) -> None:
        """Waits until ``over()``, the store is lost, or ``most`` seconds have passed."""
        end = self._clock() + most
        self._is_idle = True
        try:
            while not over() and not self.is_cut_off() and self._clock() < end:
                self._pause(POLL_SECONDS)
                self._publish()
        finally:
            self._is_idle = False

    def is_cut_off(self) -> bool:
        """Whether the store is lost, so that nothing can be claimed any more."""
        return not self._connection.answers()

    def start_between(self) -> None:
        """Publishes that this rank has no more of the model's own problems to measure."""
        self._publish(phase=BETWEEN)

    def others_are_between(self) -> bool:
        """Whether no other rank of this environment still measures the model's own problems."""
        return all(p.done or p.state.phase == BETWEEN for p in self._in_same_environment())

    def others_are_done(self, same_environment: bool = False) -> bool:
        """Whether the other ranks, or those of this environment, have ended or are lost."""
        peers = self._in_same_environment() if same_environment else self.peers.values()
        return all(peer.done for peer in peers)

    def end(self, phase: str, error: str = "") -> None:
        """Publishes how this rank ended; only the first call counts."""
        if not self.state.ended:
            self._publish(phase=phase, error=one_line(error, ERROR_LENGTH), busy=False)

    def wait_until_saved(self, most: float = _FOR_EVER) -> bool:
        """Waits until rank 0 has written all records of this rank, or is lost; whether it has.

        Args:
            most: seconds.
        """
        first = self.peers[0]

        def is_saved() -> bool:
            return sum(first.state.saved[self.rank : self.rank + 1]) >= self.state.sent

        self.wait(lambda: is_saved() or first.done, most)
        return is_saved()

    def is_reported(self, error: str) -> bool:
        """Fails with an error; whether rank 0 fails with the same one, and so reports it."""
        first = self.peers[0]
        self.end(FAILED, error)
        self.wait(lambda: first.done or first.state.exited or first.state.phase != STARTING)
        return first.state.error == one_line(error, ERROR_LENGTH)

    def wait_for_report(self) -> None:
        """Waits until rank 0 has printed its report.

        torchrun ends all ranks as soon as one has an exit code other than 0.
        """
        if self.rank:
            first = self.peers[0]
            self.wait(lambda: bool(first.lost) or first.state.exited)

    def leave(self) -> None:
        """Publishes the last state; rank 0, which may hold the store, waits for the others."""
        self._publish(exited=True)
        if self.rank == 0:
            others = self.peers.values()
            self.wait(lambda: all(p.lost or p.state.exited for p in others), GRACE_SECONDS)
        self._connection.close()

    def shares(self) -> list[Share]:
        """What each rank has done."""
        ranks = {rank: (peer.state, peer.lost) for rank, peer in self.peers.items()}
        ranks[self.rank] = self.state, ""
        return [
            Share(
                rank,
                last.host,
                last.device,
                last.environment,
                measured=len(self._mailbox.seconds[rank]),
                seconds=sum(self._mailbox.seconds[rank]),
                busy=last.busy,
                state=lost or last.phase,
                error=last.error,
            )
            for rank, (last, lost) in sorted(ranks.items())
        ]

    def _publish(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # names of fields
        self._connection.ask(self._exchange)

    def _exchange(self) -> None:
        """Publishes the state of this rank, and reads those of the others."""
        self._heartbeat += 1
        waiting = self._is_idle or is_waiting()
        state = replace(self.state, heartbeat=self._heartbeat, waiting=waiting)
        self._store.set(f"state/{self.rank}", state.text)
        texts = self._read_states()
        now = self._clock()
        for rank, peer in self.peers.items():
            published = peer.state if peer.heard else None
            with suppress(ValueError):  # of another version: as good as silent
                published = RankState.from_text(texts[rank].decode()) if rank in texts else None
            peer.update(published, now - self._updated)
        self._updated = now
        if is_waiting():
            self._pass_over()

    def _read_states(self) -> dict[int, bytes]:
        keys = {rank: f"state/{rank}" for rank in self.peers}
        there = [r for r in keys if self.peers[r].heard or self._store.check([keys[r]])]
        texts = self._store.multi_get([keys[rank] for rank in there]) if there else []
        return dict(zip(there, texts, strict=True))

    def _pass_over(self) -> None:
        """Waits no more for a lock that a lost rank holds, unless another one has it by now."""
        busy = {rank: peer for rank, peer in self._on_same_device().items() if peer.state.busy}
        lost = {rank for rank, peer in busy.items() if peer.lost} - self._passed
        if lost and all(peer.lost for peer in busy.values()):
            self._passed |= lost
            pass_over(self.state.device_key)

    def _on_same_device(self) -> dict[int, Peer]:
        own = self.state.host, self.state.device_key
        return {r: p for r, p in self.peers.items() if (p.state.host, p.state.device_key) == own}

    def _in_same_environment(self) -> list[Peer]:
        return [peer for rank, peer in self.peers.items() if self.is_same_environment(rank)]
