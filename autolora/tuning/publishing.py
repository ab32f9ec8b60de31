"""Publishing records: into the cache file, and in a cluster through rank 0, which writes it.

The other ranks send each record to rank 0 at once, and start from the records that it has read
from the file; if it is lost, each writes its own records into the same file.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.record import Record
from autolora.cluster.liveness import FINISHED, INTERRUPTED
from autolora.cluster.messages import Message
from autolora.cluster.ranks import GRACE_SECONDS, Cluster
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.base import BaseGraph
from autolora.graphs.kinds import unmeasured_graph
from autolora.nn.choosing import ask
from autolora.objective import TIME
from autolora.problem import BaseProblem
from autolora.tuning.result import TuneResult

logger = logging.getLogger("autolora")


class Publisher:
    """The records of a run, known and new.

    Args:
        path: the cache file.
        problems: of the run.
        cluster: the ranks that share them, None in a run of one process.
        on_message: called with each message of another rank of this environment, and with the
            failures of all others.

    Raises:
        AutoloraError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        problems: Sequence[BaseProblem],
        cluster: Cluster | None,
        on_message: Callable[[Message], None],
    ) -> None:
        self.path, self.cluster, self.on_message = path, cluster, on_message
        self.writes = cluster is None or cluster.rank == 0
        self._pending: Record | None = None  # measured, but perhaps not kept yet
        self._unsaved = False  # whether there are records that the file did not take
        if cluster is not None and not self.writes and (known := cluster.known()) is not None:
            self.store = TimingCache(known, path)
            return
        self.store = TimingCache.load(path)
        if self.writes:
            self.store.save()
        if cluster is not None and self.writes:
            cluster.publish_known(_of_families(self.store, problems))

    def keep(self, record: Record) -> None:
        """Keeps a new record; where the file does not take it, it is in memory until the end."""
        self._pending = record
        self._join([record])
        if self.cluster is not None:
            self.cluster.send(record.problem, record)
        self._pending = None

    def fail(self, problem: BaseProblem, reason: str) -> None:
        """Tells the others that a problem cannot be measured."""
        self._pending = None
        if self.cluster is not None:
            self.cluster.send(problem, None, reason)

    def winners_near(self, problem: BaseProblem, environment: Environment) -> frozenset[str]:
        """The winners at a problem's token count and those next to it, and in the other modes.

        They are measured too: look-up interpolates between the times of graphs that two records
        have in common, and what wins eager often wins compiled.
        """
        counts = self.store.token_counts(problem).get(environment, [])
        place = bisect_left(counts, problem.tokens)
        alike = [problem.at(count) for count in counts[max(place - 1, 0) : place + 2]]
        alike += [problem.in_mode(mode) for mode in problem.modes if mode != problem.mode]
        records = (self.store.find(each, environment) for each in alike)
        return frozenset(record.winner for record in records if record is not None)

    def graph_of(self, problem: BaseProblem, environment: Environment) -> BaseGraph:
        """The graph that a problem has by the records so far, or without any."""
        return graph_by(self.store, problem, environment)

    def receive(self) -> None:
        """Keeps the records that other ranks have sent, and calls ``on_message``."""
        if self.cluster is None:
            return
        messages = self.cluster.receive()
        self._join([message.record for message in messages if message.record is not None])
        if messages and not self._unsaved:
            self.cluster.acknowledge()
        for message in messages:
            if self.cluster.is_same_environment(message.rank) or message.record is None:
                self.on_message(message)

    def wait(self, over: Callable[[], bool], most: float = float("inf")) -> None:
        """Waits for other ranks, and receives what they send."""
        if self.cluster is None:
            return

        def is_over() -> bool:
            there = over()
            self.receive()  # also what was sent just before that
            return there

        self.cluster.wait(is_over, most)

    def is_cut_off(self) -> bool:
        """Whether there are other ranks, and none can be reached any more."""
        return self.cluster is not None and self.cluster.is_cut_off()

    def wait_for_same_environment(self) -> None:
        """Waits until no other rank of this environment measures any more."""
        if self.cluster is not None:
            self.wait(partial(self.cluster.others_are_done, same_environment=True))

    def finish(self) -> None:
        """Rank 0 waits until all have ended, the others until it has what they measured."""
        if self.cluster is None:
            return
        if self.writes:
            self.wait(self.cluster.others_are_done)
        else:
            self.cluster.end(FINISHED)
            self.cluster.wait_until_saved()

    def close(self, result: TuneResult) -> None:
        """Writes all that was measured into the file; an interrupted run waits only seconds.

        Args:
            result: of the run; gets the shares of the ranks.

        Raises:
            AutoloraError: the file cannot be written.
        """
        cluster, record = self.cluster, self._pending
        if record is not None:
            self.keep(record)
            result.records.append(record)
        if cluster is None:
            self._save()
            return
        most = GRACE_SECONDS if result.interrupted else float("inf")
        if self.writes:
            if result.interrupted:
                cluster.receive_again()
            self.wait(cluster.others_are_done, most)
            self._save()
            cluster.acknowledge()
            cluster.end(INTERRUPTED if result.interrupted else FINISHED)
            result.shares = cluster.shares()
            return
        cluster.end(INTERRUPTED)  # unless it has finished
        if not cluster.wait_until_saved(most) and result.records:
            result.parted = True
            TimingCache(result.records).save(self.path)
            logger.warning("autolora: rank 0 is lost; what this rank measured is in %s", self.path)

    def _join(self, records: Sequence[Record]) -> None:
        """Puts records into this rank's cache, and from there into the file if it writes that."""
        if not self.writes:
            self.store = self.store.merge(TimingCache(records))
        elif records:
            try:
                self.store.publish(*records)
                self._unsaved = False
            except AutoloraError as error:  # which says where the records are instead
                self._unsaved = True
                logger.warning("autolora: %s", error)

    def _save(self) -> None:
        """Writes again what the file did not take, or lost to a host that ignores its lock."""
        self.store.save()
        self._unsaved = False


def graph_by(store: TimingCache, problem: BaseProblem, environment: Environment) -> BaseGraph:
    """The graph that a layer would take from a cache alone, or without any record."""
    found, _ = ask(Lookup.of(store), problem, environment, TIME, strict=True)
    return found or unmeasured_graph(problem, TIME)[0]


def _of_families(store: TimingCache, problems: Iterable[BaseProblem]) -> list[Record]:
    """The records of the problems, and of these at other token counts."""
    families = dict.fromkeys(problem.at(1) for problem in problems)
    return [
        record
        for family in families
        for environment in store.token_counts(family)
        for record in store.same_but_tokens(family, environment).values()
    ]
