"""Effort levels: how many graphs of a problem are timed, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autolora.problem import COMPILED
from autolora.timing.race import Pace

ESTIMATE = "estimate"  # nothing is measured

_LEAST = 4  # graphs that race however slow they are
_ROUNDS = 6  # that should fit a race's time
_SCREEN = 25  # times the time of a step that the screen and the verdicts take about
_USED = 0.5  # share of its time that a race needs on average
_COMPILING = 2.5  # seconds that compiling one graph takes about, forward and backward


@dataclass(frozen=True, slots=True)
class Effort:
    """How many graphs of a problem are timed, and for how long.

    Args:
        most: graphs kept by the screen.
        within: graphs are dropped that the screen predicts slower than this times the best.
        pace: of the race, where steps are fast.
        steps: times the time of a step that a race may take, where that is longer.
        longest: seconds, unless a budget allows more.
        compiling: seconds that the compilation of each graph takes about.
    """

    most: int
    within: float
    pace: Pace
    steps: int
    longest: float
    compiling: float = 0.0

    def seconds(self, nanoseconds: float) -> float:
        """The most that a race takes without a budget, for a step of so many nanoseconds."""
        return max(self.pace.seconds, min(self.steps * nanoseconds / 1e9, self.longest))

    def pace_for(self, nanoseconds: float, seconds: float | None = None) -> Pace:
        """The pace of a race.

        Args:
            nanoseconds: time of a step.
            seconds: given by a budget.
        """
        return replace(self.pace, seconds=self.seconds(nanoseconds) if seconds is None else seconds)

    def affords(self, nanoseconds: float) -> int:
        """How many graphs can race, so that a few rounds fit its time.

        Args:
            nanoseconds: time of the fastest.
        """
        fitting = int(self.seconds(nanoseconds) * 1e9 / (_ROUNDS * nanoseconds + 1)) - 2
        return max(_LEAST, min(self.most, fitting))

    def expected(self, nanoseconds: float) -> float:
        """Seconds that a problem takes about, for a step of so many nanoseconds."""
        step = nanoseconds / 1e9
        rounds = self.pace.rounds[0] * (self.affords(nanoseconds) + 2)
        least = (rounds + 4 * self.pace.confirmation[0]) * step
        compiling = self.compiling * (self.affords(nanoseconds) + 3)
        return 0.1 + compiling + _SCREEN * step + max(least, _USED * self.seconds(nanoseconds))


EFFORTS = {
    "quick": Effort(5, 1.05, Pace((2, 100), (3, 100), 0.6), 60, 10.0),
    "normal": Effort(10, 1.10, Pace((3, 1000), (3, 1000), 4.0), 200, 60.0),
    "thorough": Effort(24, 1.25, Pace((8, 1000), (16, 1000), 18.0), 1000, 300.0),
}
# Compiling takes longer than a race, so fewer race.
_COMPILED = {
    name: replace(effort, most=most, compiling=_COMPILING)
    for (name, effort), most in zip(EFFORTS.items(), (3, 6, 12), strict=True)
}


def effort_of(name: str, mode: str) -> Effort:
    """How a problem of a mode is measured at an effort level."""
    return (_COMPILED if mode == COMPILED else EFFORTS)[name]
