"""What one rank of a run did, for the report of rank 0."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.cluster.liveness import ENDED
from autolora.environment import Environment


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank of a run under torchrun did.

    Args:
        rank: its number.
        host: that it ran on.
        device: that it measured on, ``""`` if it failed before that was known.
        environment: of the device, None likewise.
        measured: number of problems.
        seconds: that these took.
        busy: whether it was measuring a problem when it was last heard of.
        state: how it ended, or ``"dead"``, ``"stuck"`` or its last phase.
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

    @property
    def lost(self) -> bool:
        """Whether it did not say how it ended."""
        return self.state not in ENDED
