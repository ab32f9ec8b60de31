"""How hard a problem is measured."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.tuning.stopwatch import Pace


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a problem is measured.

    Args:
        most: graphs kept by the screen.
        within: none is kept that the screen predicts slower than this times the best.
        pace: of the race.
    """

    most: int
    within: float
    pace: Pace

    def affords(self, nanoseconds: float) -> int:
        """How many graphs can race, so that the least number of rounds fits the pace's time.

        Args:
            nanoseconds: that the fastest takes.
        """
        fitting = int(self.pace.seconds * 1e9 / (2 * nanoseconds + 1)) - 2
        return max(2, min(self.most, fitting))


EFFORTS = {
    "quick": Effort(4, 1.05, Pace((2, 6), (1, 5), 0.2)),
    "normal": Effort(8, 1.10, Pace((2, 30), (1, 15), 0.4)),
    "thorough": Effort(24, 1.25, Pace((8, 120), (15, 60), 6.0)),
}
