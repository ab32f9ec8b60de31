"""Between two records: the times of their graphs at a token count that was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autolora.cache.lookup.choice import Valid, option_of
from autolora.cache.records.record import Record
from autolora.objective import Option

_HAIR = 1e-6  # of a time: far below its noise, far above the rounding of the sums here


def usable_times(record: Record, valid: Valid) -> dict[str, float]:
    """The time of each candidate that was timed, was not rejected, and is valid.

    None is faster than the winner: a race found that with care that medians alone do not take, and
    those of graphs that dropped out early are of few rounds. What seems faster counts as a hair
    slower, in the order of the medians. Else the answer beside a measured count would be another
    one than the one there.
    """
    times = {
        candidate.graph: float(candidate.median_ns or 0)
        for candidate in record.usable
        if valid(candidate.graph)
    }
    least = times.get(record.winner, 0.0)
    return {
        name: time if name == record.winner or time > least else least + _HAIR * (least + time)
        for name, time in times.items()
    }


def between(
    below: tuple[Record, Mapping[str, float]],
    above: tuple[Record, Mapping[str, float]],
    tokens: int,
) -> tuple[Record, dict[str, float]]:
    """The record nearer in tokens, and the times of its candidates at another token count.

    The logarithm of the time of what both have goes in a straight line over that of the tokens.

    Each record holds the few graphs that looked best at its own count, so that the winners of both
    might be missing from what they have in common. What only the nearer one has therefore stays as
    far from the winner as it is there, so that it never overtakes that for want of figures; where
    the farther one lacks the winner, it is the distance to the reference graph that stays. What
    only the farther one has is left out: at the nearer count it did not look worth timing.

    Args:
        below: a record of fewer tokens, and its :func:`usable_times`.
        above: likewise of more.
        tokens: how many.
    """
    low, high = below[0].problem.tokens, above[0].problem.tokens
    share = math.log(tokens / low) / math.log(high / low)
    nearer, own = below if share < 0.5 else above
    times = {
        name: below[1][name] ** (1 - share) * above[1][name] ** share
        for name in below[1].keys() & above[1]
    }
    anchor = next((name for name in (nearer.winner, nearer.reference) if name in times), None)
    if anchor is not None:
        now, then = times[anchor], own[anchor]
        times |= {name: time / then * now for name, time in own.items() if name not in times}
    return nearer, times


def options_at(times: Mapping[str, float], record: Record, tokens: int) -> list[Option]:
    """The candidates of a record that have a time at another token count, as options."""
    return [
        option_of(candidate, record, times[candidate.graph], tokens)
        for candidate in record.candidates
        if candidate.graph in times
    ]
