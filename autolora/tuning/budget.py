"""Sharing the seconds of a run: more for problems that take more of the training time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from autolora.problem import EAGER
from autolora.timing.effort import EFFORTS, effort_of

_ORDER = tuple(EFFORTS)  # least first


@dataclass(slots=True)
class Budget:
    """Seconds for several problems.

    The *gain* of a problem is the number of layers that pose it × the time of one step along the
    reference graph. A problem's share of the seconds left is that of its gain; what it does not use
    goes to the others. Its effort is the highest that its share allows, and its race may use the
    whole share. Where the share is too small for the lowest effort, that is used while there is
    time, so that the problems of most gain are measured and the others are left.

    Args:
        seconds: for the whole run.
        clock: seconds.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)
    _ratios: list[float] = field(default_factory=list)  # of real to expected seconds

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (self.clock() - self._start)

    def next(
        self, gain: float, nanoseconds: float, wanted: str, mode: str = EAGER
    ) -> tuple[str, float] | None:
        """The effort and the seconds for the next problem, None where there is no time for it.

        Args:
            gain: the problem's, as a share of that of all problems that are left, its own included.
            nanoseconds: that a step takes about.
            wanted: the highest effort.
            mode: of the problem.
        """
        left = self.left
        share = left * gain
        allowed = _ORDER[: _ORDER.index(wanted) + 1]
        fitting = [
            effort for effort in allowed if self._expected(effort, nanoseconds, mode) <= share
        ]
        if fitting:
            return fitting[-1], share
        least = self._expected(allowed[0], nanoseconds, mode)
        return (allowed[0], least) if least <= left else None

    def learn(
        self, effort: str, nanoseconds: float, seconds: float, given: float, mode: str = EAGER
    ) -> None:
        """Notes the seconds that a problem took, to expect better of the next.

        Args:
            effort: with which it was measured.
            nanoseconds: that a step was expected to take.
            seconds: that it took.
            given: that it could take; a race may use what is more than its effort needs, which
                says nothing of the next.
            mode: of the problem.
        """
        plan = effort_of(effort, mode)
        expected = plan.expected(nanoseconds)
        spare = max(0.0, given - plan.seconds(nanoseconds))
        self._ratios.append(min(seconds, max(expected, seconds - spare)) / expected)

    def _expected(self, effort: str, nanoseconds: float, mode: str) -> float:
        ratio = median(self._ratios) if self._ratios else 1.0
        return ratio * effort_of(effort, mode).expected(nanoseconds)
