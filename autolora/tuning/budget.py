"""Sharing the seconds of a whole run: more for what more time in training hangs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from autolora.timing.effort import EFFORTS

_ORDER = tuple(EFFORTS)  # least first


@dataclass(slots=True)
class Budget:
    """Seconds for several problems.

    The *gain* that may be expected of a problem is the number of layers that pose it × the time of
    one step along the reference graph. Each problem's share of what is left is that of its gain;
    what it does not use goes to the others. It is measured as hard as its share allows; where that
    is not even a quick look, a quick look is taken as long as there is time for one, so that the
    problems that matter most are measured and the others are left.

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

    def effort(self, gain: float, nanoseconds: float, wanted: str) -> str | None:
        """How hard to measure the next problem, None where there is no time for it.

        Args:
            gain: the problem's, as a share of that of all problems that are left, its own included.
            nanoseconds: that a step of the next one takes about.
            wanted: no harder than this.
        """
        left = self.left
        share = left * gain
        allowed = _ORDER[: _ORDER.index(wanted) + 1]
        fitting = [effort for effort in allowed if self._expected(effort, nanoseconds) <= share]
        if fitting:
            return fitting[-1]
        return allowed[0] if self._expected(allowed[0], nanoseconds) <= left else None

    def learn(self, effort: str, nanoseconds: float, seconds: float) -> None:
        """Notes what a problem took, so that the next are expected better."""
        self._ratios.append(seconds / EFFORTS[effort].expected(nanoseconds))

    def _expected(self, effort: str, nanoseconds: float) -> float:
        ratio = median(self._ratios) if self._ratios else 1.0
        return ratio * EFFORTS[effort].expected(nanoseconds)
