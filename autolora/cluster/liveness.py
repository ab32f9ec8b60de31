"""The state that a rank publishes, and what other ranks conclude from it: alive, dead or stuck.

Only published states and the observer's own clock count: clocks of two hosts are never compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from autolora.cache.records.checks import dumps, flag, loads, members, real, text, whole
from autolora.environment import Environment

HEARTBEAT_SECONDS = 3.0  # between two states of a rank without news
SILENT_SECONDS = 20.0  # without a new state, after which a rank counts as dead
STUCK_SECONDS = 600.0  # without progress, after which a rank counts as stuck
STUCK_TIMES = 30.0  # the expected time of a problem, where that is more
ABSENT_SECONDS = 300.0  # for the first state of a rank

STARTING, WORKING, BETWEEN = "starting", "working", "between"
FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
PHASES = (STARTING, WORKING, BETWEEN, FINISHED, FAILED, INTERRUPTED)
ENDED = (FINISHED, FAILED, INTERRUPTED)

DEAD, STUCK = "dead", "stuck"

ERROR_LENGTH = 2000  # characters

_CHECKS: dict[Any, Callable[[str, Any], Any]] = {  # by the type of a field of RankState
    "str": partial(text, least=0, most=ERROR_LENGTH),
    "bool": flag,
    "int": whole,
    "float": real,
}


@dataclass(frozen=True, slots=True)
class RankState:
    """The state of a rank.

    Args:
        host: that it runs on.
        device: that it measures on, ``""`` until that is known.
        device_key: the same for all ranks of a host that share the device.
        environment: of the device.
        phase: one of :data:`PHASES`. ``"between"``: the problems of the model are done, and token
            counts between them may be added.
        started: number of problems that it has started to measure.
        busy: whether it is measuring one of them.
        waiting: for its turn on the device or for other ranks, and so not stuck.
        patience: seconds without progress that are allowed before it counts as stuck.
        sent: number of messages, see :class:`~autolora.cluster.messages.Mailbox`.
        saved: of rank 0: how many messages of each rank are in the file.
        error: why it failed.
        exited: whether this is its last state.
        heartbeat: grows with every state.
    """

    host: str = ""
    device: str = ""
    device_key: str = ""
    environment: Environment | None = None
    phase: str = STARTING
    started: int = 0
    busy: bool = False
    waiting: bool = False
    patience: float = 0.0
    sent: int = 0
    saved: tuple[int, ...] = ()
    error: str = ""
    exited: bool = False
    heartbeat: int = 0

    @classmethod
    def from_text(cls, json_text: str) -> RankState:
        """Reads what :attr:`text` wrote.

        Raises:
            ValueError: the text is no state; the message names the field.
        """
        value = members("state", loads(json_text), tuple(field.name for field in fields(cls)))
        if value["phase"] not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}")
        if not isinstance(value["saved"], list):
            raise ValueError("saved must be a list")
        environment = value["environment"]
        checked: dict[str, Any] = {
            field.name: _CHECKS[field.type](field.name, value[field.name])
            for field in fields(cls)
            if field.type in _CHECKS
        }
        checked["environment"] = None if environment is None else Environment.from_json(environment)
        checked["saved"] = tuple(whole("saved", number) for number in value["saved"])
        return cls(**checked)

    @property
    def text(self) -> str:
        """The state as one line of JSON."""
        environment = None if self.environment is None else self.environment.to_json()
        return dumps({**asdict(self), "environment": environment, "saved": list(self.saved)})

    @property
    def ended(self) -> bool:
        """Whether the rank will measure nothing more."""
        return self.phase in ENDED


@dataclass(slots=True)
class Peer:
    """Another rank, as seen from this one.

    Args:
        state: its last one.
        heard: whether it has published any.
    """

    state: RankState = RankState()
    heard: bool = False
    _silent: float = 0.0  # seconds since its last state
    _unchanged: float = 0.0  # seconds since its last progress

    def update(self, state: RankState | None, seconds: float) -> None:
        """Takes the state that the rank has published by now.

        Args:
            state: None if it has published none.
            seconds: since the last call. At most two heartbeats of these count, since an observer
                that was itself stopped has not listened meanwhile.
        """
        self._silent += min(seconds, 2 * HEARTBEAT_SECONDS)
        self._unchanged += min(seconds, 2 * HEARTBEAT_SECONDS)
        if state is None:
            return
        old, first = self.state, not self.heard
        self.state, self.heard = state, True
        if first or state.heartbeat != old.heartbeat:
            self._silent = 0.0
        progress = (state.started, state.phase, state.busy) != (old.started, old.phase, old.busy)
        if first or progress or state.waiting:
            self._unchanged = 0.0

    @property
    def lost(self) -> str:
        """``"dead"`` or ``"stuck"`` as long as it seems to be that, else ``""``."""
        if self.state.exited:
            return ""
        if self._silent > (SILENT_SECONDS if self.heard else ABSENT_SECONDS):
            return DEAD
        limit = max(STUCK_SECONDS, self.state.patience)
        return STUCK if self.heard and not self.state.ended and self._unchanged > limit else ""

    @property
    def done(self) -> bool:
        """Whether there is nothing to wait for: it has ended, or is lost."""
        return self.state.ended or bool(self.lost)
