"""Interpolation: the times of graphs between two measured token counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autolora.cache.lookup.choice import Valid, option_of
from autolora.cache.records.record import Record
from autolora.objective import Option

_EPSILON = 1e-6  # relative; far below the noise of times, far above the rounding of the sums here


def usable_times(record: Record, valid: Valid) -> dict[str, float]:
    """The time of each valid candidate that was timed and not rejected.

    Times below the winner's are raised to just above it, in the order of the medians: the medians
    of graphs that left the race early are of few rounds. So the answer beside a measured token
    count is the one at that count.
    """
    times = {c.graph: float(c.median_ns or 0) for c in record.usable if valid(c.graph)}
    least = times.get(record.winner, 0.0)
    return {
        name: time if name == record.winner or time > least else least + _EPSILON * (least + time)
        for name, time in times.items()
    }


def interpolate(
    below: tuple[Record, Mapping[str, float]],
    above: tuple[Record, Mapping[str, float]],
    tokens: int,
) -> tuple[Record, dict[str, float]]:
    """The record nearer in tokens, and the times of its candidates at another token count.

    Times of graphs in both records are interpolated linearly in log(tokens) and log(time). A graph
    in the nearer record only keeps its ratio to the winner there (to the reference, if the farther
    record lacks the winner), so that it does not overtake it for want of data. Graphs in the
    farther record only are left out: at the nearer count they did not look worth timing.

    Args:
        below: a record of fewer tokens, and its :func:`usable_times`.
        above: the same for more tokens.
        tokens: the token count.
    """
    low, high = below[0].problem.tokens, above[0].problem.tokens
    fraction = math.log(tokens / low) / math.log(high / low)
    nearer, own = below if fraction < 0.5 else above
    times = {
        name: below[1][name] ** (1 - fraction) * above[1][name] ** fraction
        for name in below[1].keys() & above[1]
    }
    anchor = next((name for name in (nearer.winner, nearer.reference) if name in times), None)
    if anchor is not None:
        here, there = times[anchor], own[anchor]
        times |= {name: time / there * here for name, time in own.items() if name not in times}
    return nearer, times


def options_at(times: Mapping[str, float], record: Record, tokens: int) -> list[Option]:
    """The candidates of a record that have a time at another token count, as options."""
    return [
        option_of(candidate, record, times[candidate.graph], tokens)
        for candidate in record.candidates
        if candidate.graph in times
    ]
