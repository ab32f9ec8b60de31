"""How hard a problem is measured."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.timing.race import Pace

ESTIMATE = "estimate"  # nothing is measured

_LEAST = 4  # graphs that race however slow they are
_ROUNDS = 3  # that are to fit a race's time
_SCREEN = 25  # steps as long as a whole one that a screen and the verdicts take about


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
        """How many graphs can race, so that a few rounds fit the pace's time.

        Args:
            nanoseconds: that the fastest takes.
        """
        fitting = int(self.pace.seconds * 1e9 / (_ROUNDS * nanoseconds + 1)) - 2
        return max(_LEAST, min(self.most, fitting))

    def expected(self, nanoseconds: float) -> float:
        """Seconds that a problem takes about, for a step of so many nanoseconds."""
        step = nanoseconds / 1e9
        rounds = self.pace.rounds[0] * (self.affords(nanoseconds) + 2)
        least = (rounds + 4 * self.pace.confirmation[0]) * step
        return 0.1 + _SCREEN * step + max(least, 1.5 * self.pace.seconds)


EFFORTS = {
    "quick": Effort(5, 1.05, Pace((2, 40), (3, 60), 0.2)),
    "normal": Effort(10, 1.10, Pace((3, 100), (3, 100), 0.4)),
    "thorough": Effort(24, 1.25, Pace((8, 300), (16, 300), 6.0)),
}
