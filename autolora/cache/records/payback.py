"""What tuning cost, what it saves in a step, and after how many steps it has paid."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Payback:
    """What tuning cost and saves, by the records' own figures.

    Args:
        cost_s: seconds that measuring the records took.
        saved_s: seconds by which a training step is faster than along the reference graphs.
    """

    cost_s: float
    saved_s: float

    @property
    def steps(self) -> int | None:
        """The number of steps after which tuning has paid, None if it never does."""
        return None if self.saved_s <= 0 else math.ceil(self.cost_s / self.saved_s)

    def __str__(self) -> str:
        cost = f"Tuning took {seconds(self.cost_s)}"
        if self.steps is None:
            return f"{cost} and saves nothing: PEFT's graphs are the fastest here"
        return (
            f"{cost}; it saves {seconds(self.saved_s * _STEPS)} in {_STEPS:,} steps and has paid "
            f"after {self.steps:,}"
        )


def seconds(value: float) -> str:
    """A time, in two or three digits: ``0.031 s``, ``4.2 s``, ``128 s``."""
    return f"{value:.2g} s" if value < 1 else f"{value:,.{1 if value < 100 else 0}f} s"
