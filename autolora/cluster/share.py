"""What one rank of a run did, for the report of rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autolora.cluster.liveness import ENDED, RankState
from autolora.environment import Environment


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank of a run under torchrun did.

    Args:
        rank: its number.
        host: that it ran on.
        device: that it measured on, ``""`` if it did not come so far.
        environment: of the device, None likewise.
        measured: problems.
        seconds: that these took.
        busy: whether it was last heard of with a problem in hand.
        state: ``"finished"``, ``"interrupted"``, ``"failed"``, ``"dead"`` where it fell silent,
            ``"stuck"`` where it came to no end, or what it was at when this rank was interrupted.
        error: why it failed.
    """

    rank: int
    host: str
    device: str
    environment: Environment | None
    measured: int
    seconds: float
    busy: bool
    state: str
    error: str

    @classmethod
    def of(cls, rank: int, said: RankState, lost: str, seconds: Sequence[float]) -> Share:
        """From what the rank has said of itself, and what each of its records took."""
        return cls(
            rank=rank,
            host=said.host,
            device=said.device,
            environment=said.environment,
            measured=len(seconds),
            seconds=sum(seconds),
            busy=said.busy,
            state=lost or said.phase,
            error=said.error,
        )

    @property
    def lost(self) -> bool:
        """Whether it has not said how it ended."""
        return self.state not in ENDED
