"""The line from a rank to the store that all ranks of a run share.

One thread talks to the store and says every few seconds that the rank is alive, so that the others
know it while the rank measures, and so that a store that does not answer stops nobody for good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from autolora.cluster import liveness

logger = logging.getLogger("autolora")

T = TypeVar("T")

_SILENT = "the store does not answer"
_Asked = tuple[Callable[[], Any], Future[Any]]


class StoreConnection:
    """Asks the store; until :meth:`start` without a thread."""

    def __init__(self) -> None:
        self.cut_off = ""  # why the store is not to be had any more
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._since: float | None = None  # when the operation began that the thread is at
        self._thread: threading.Thread | None = None

    def start(self, beat: Callable[[], None]) -> None:
        """From now on a thread asks, and calls ``beat`` whenever nothing was asked for a while."""
        self._thread = threading.Thread(target=self._work, args=(beat,), daemon=True)
        self._thread.start()

    def ask(self, operation: Callable[[], T]) -> T | None:
        """What an operation on the store gives; None, now and ever after, once it is lost."""
        if self.cut_off:
            return None
        try:
            return operation() if self._thread is None else self._answer(operation)
        except RuntimeError as error:  # of which torch's own errors of the network are kinds
            self._cut(str(error).partition("\n")[0])
            return None

    def answers(self) -> bool:
        """Whether the store still answers, as far as can be seen without asking."""
        since = self._since
        if since is not None and time.monotonic() - since > liveness.SILENT_SECONDS:
            self._cut(_SILENT)
        return not self.cut_off

    def close(self) -> None:
        """Ends the thread, unless it waits for an answer that does not come."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=1.0)

    def _answer(self, operation: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._queue.put((operation, future))
        try:
            return future.result(timeout=liveness.SILENT_SECONDS)
        except TimeoutError:
            raise RuntimeError(_SILENT) from None

    def _cut(self, reason: str) -> None:
        if not self.cut_off:
            self.cut_off = liveness.one_line(reason)[:200] or "no reason"
            logger.warning("autolora: the other ranks cannot be reached any more: %s", self.cut_off)

    def _work(self, beat: Callable[[], None]) -> None:
        while not self.cut_off:
            try:
                asked = self._queue.get(timeout=liveness.BEAT_SECONDS)
            except Empty:
                asked = beat, Future()
            if asked is None:
                return
            operation, future = asked
            self._since = time.monotonic()
            try:
                future.set_result(operation())
            except BaseException as error:
                future.set_exception(error)
                if operation == beat and isinstance(error, RuntimeError):
                    self._cut(str(error).partition("\n")[0])
            self._since = None
