"""A rank's connection to the store that all ranks of a run share.

One thread talks to the store and sends a heartbeat every few seconds, so that the others know that
the rank is alive while it measures, and so that a store that does not answer blocks no rank.
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
from autolora.errors import one_line

logger = logging.getLogger("autolora")

T = TypeVar("T")

_SILENT = "the store does not answer"
_Request = tuple[Callable[[], Any], Future[Any]]


class StoreConnection:
    """Runs operations on the store; in the caller's thread until :meth:`start`."""

    def __init__(self) -> None:
        self.lost = ""  # why the store cannot be reached any more
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._since: float | None = None  # when the thread's current operation began
        self._thread: threading.Thread | None = None

    def start(self, heartbeat: Callable[[], None]) -> None:
        """Starts the thread, which calls ``heartbeat`` when nothing was asked for a while."""
        self._thread = threading.Thread(target=self._work, args=(heartbeat,), daemon=True)
        self._thread.start()

    def ask(self, operation: Callable[[], T]) -> T | None:
        """The result of an operation on the store; None from when the store is lost."""
        if self.lost:
            return None
        try:
            if self._thread is None:
                return operation()
            future: Future[T] = Future()
            self._queue.put((operation, future))
            try:
                return future.result(timeout=liveness.SILENT_SECONDS)
            except TimeoutError:
                raise RuntimeError(_SILENT) from None
        except RuntimeError as error:  # the base class of torch's network errors
            self._lose(error)
            return None

    def answers(self) -> bool:
        """Whether the store still answers, as far as can be seen without asking."""
        since = self._since
        if since is not None and time.monotonic() - since > liveness.SILENT_SECONDS:
            self._lose(_SILENT)
        return not self.lost

    def close(self) -> None:
        """Ends the thread, unless it waits for an answer that does not come."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=1.0)

    def _lose(self, reason: object) -> None:
        if not self.lost:
            self.lost = one_line(str(reason).partition("\n")[0]) or "no reason"
            logger.warning("autolora: the other ranks cannot be reached any more: %s", self.lost)

    def _work(self, heartbeat: Callable[[], None]) -> None:
        while not self.lost:
            try:
                request = self._queue.get(timeout=liveness.HEARTBEAT_SECONDS)
            except Empty:
                request = heartbeat, Future()
            if request is None:
                return
            operation, future = request
            self._since = time.monotonic()
            try:
                future.set_result(operation())
            except BaseException as error:
                future.set_exception(error)
                if operation == heartbeat and isinstance(error, RuntimeError):
                    self._lose(error)
            self._since = None
