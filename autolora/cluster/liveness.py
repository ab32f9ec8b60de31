"""What a rank of a run says of itself, and what another makes of it: alive, dead or stuck.

Only what is said and the observer's own clock count: clocks of two hosts are never compared.
This room knows nothing of torch, nor of how the words get from rank to rank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from autolora.cache.records.checks import dumps, flag, loads, members, real, text, whole
from autolora.environment import Environment

BEAT_SECONDS = 3.0  # between two words of a rank that has nothing new to say
SILENT_SECONDS = 20.0  # without a word, and a rank counts as dead
STUCK_SECONDS = 600.0  # with one and the same thing in hand, and it counts as stuck
STUCK_TIMES = 30.0  # the time that a problem is expected to take, where that is more
ABSENT_SECONDS = 300.0  # for a rank that has not said anything yet

STARTING, WORKING, BETWEEN = "starting", "working", "between"
FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
PHASES = (STARTING, WORKING, BETWEEN, FINISHED, FAILED, INTERRUPTED)
ENDED = (FINISHED, FAILED, INTERRUPTED)  # nothing more is to be expected of it

DEAD, STUCK = "dead", "stuck"

_LONGEST = 2000  # characters of an error


@dataclass(frozen=True, slots=True)
class RankState:
    """What a rank says of itself.

    Args:
        host: that it runs on.
        device: that it measures on, ``""`` until that is known.
        lane: the device, so named that ranks of one host which share it name it alike.
        environment: of the device.
        phase: of :data:`PHASES`. ``"between"``: the problems of the model are done, and token
            counts between them may be added.
        hand: how many problems it has begun.
        busy: whether one of them is in hand.
        waiting: for its turn or for other ranks, and so not stuck.
        patience: seconds that what is in hand may take before the rank counts as stuck.
        sent: letters, see :class:`~autolora.cluster.ranks.Cluster`.
        taken: of rank 0: how many letters of each rank are in the file.
        error: why it failed.
        gone: whether it has nothing more to say, and may be silent.
        beat: grows with every word.
    """

    host: str = ""
    device: str = ""
    lane: str = ""
    environment: Environment | None = None
    phase: str = STARTING
    hand: int = 0
    busy: bool = False
    waiting: bool = False
    patience: float = 0.0
    sent: int = 0
    taken: tuple[int, ...] = ()
    error: str = ""
    gone: bool = False
    beat: int = 0

    @classmethod
    def from_text(cls, said: str) -> RankState:
        """Reads what :attr:`text` wrote.

        Raises:
            ValueError: it is none; the message names the field.
        """
        value = members("state", loads(said), tuple(field.name for field in fields(cls)))
        if value["phase"] not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}")
        if not isinstance(value["taken"], list):
            raise ValueError("taken must be a list")
        environment = value["environment"]
        checked: dict[str, Any] = {
            **{name: text(name, value[name], least=0) for name in ("host", "device", "lane")},
            **{name: flag(name, value[name]) for name in ("busy", "waiting", "gone")},
            **{name: whole(name, value[name]) for name in ("hand", "sent", "beat")},
        }
        return cls(
            **checked,
            environment=None if environment is None else Environment.from_json(environment),
            phase=value["phase"],
            patience=real("patience", value["patience"]),
            taken=tuple(whole("taken", number) for number in value["taken"]),
            error=text("error", value["error"], least=0, most=_LONGEST),
        )

    @property
    def text(self) -> str:
        """The state as one line of JSON."""
        environment = None if self.environment is None else self.environment.to_json()
        return dumps({**asdict(self), "environment": environment, "taken": list(self.taken)})

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return self.phase in ENDED


def one_line(message: str) -> str:
    """A message fit for :attr:`State.error`."""
    words = " ".join(message.split())
    return "".join(c if c.isprintable() else "?" for c in words)[:_LONGEST]


@dataclass(slots=True)
class Peer:
    """Another rank, as seen from this one.

    Args:
        state: the last that it said, None before the first.
    """

    state: RankState | None = None
    _silent: float = 0.0  # seconds since its last word
    _same: float = 0.0  # seconds since it last had something else in hand

    def hear(self, state: RankState | None, seconds: float) -> None:
        """Takes note of what the rank says now.

        Args:
            state: None where it has never said anything.
            seconds: since this was last called. An observer that was itself stopped meanwhile has
                not listened, so no more than a few beats of it count.
        """
        seconds = min(seconds, 2 * BEAT_SECONDS)
        old, self.state = self.state, state
        if old is None or state is None:
            self._silent = 0.0 if state is not None else self._silent + seconds
            self._same = 0.0
            return
        self._silent = 0.0 if state.beat != old.beat else self._silent + seconds
        moved = (state.hand, state.phase, state.busy) != (old.hand, old.phase, old.busy)
        self._same = 0.0 if moved or state.waiting else self._same + seconds

    @property
    def lost(self) -> str:
        """``"dead"`` or ``"stuck"`` where it seems to be that, else ``""``.

        One that comes back to life is not lost any more.
        """
        if self.state is None:
            return DEAD if self._silent > ABSENT_SECONDS else ""
        if self.state.gone:
            return ""
        if self._silent > SILENT_SECONDS:
            return DEAD
        limit = max(STUCK_SECONDS, self.state.patience)
        return STUCK if not self.state.ended and self._same > limit else ""

    @property
    def phase(self) -> str:
        """Of its last word, as the next three."""
        return STARTING if self.state is None else self.state.phase

    @property
    def error(self) -> str:
        """See there."""
        return "" if self.state is None else self.state.error

    @property
    def busy(self) -> bool:
        """See there."""
        return self.state is not None and self.state.busy

    @property
    def gone(self) -> bool:
        """See there."""
        return self.state is not None and self.state.gone

    @property
    def done(self) -> bool:
        """Whether there is nothing to wait for: it has ended, or is lost."""
        return bool(self.lost) or (self.state is not None and self.state.ended)
