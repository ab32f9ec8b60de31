"""What can be said of times from a noisy machine: robust estimates and how sure they are.

Times are only ever made longer: by a spike, by a neighbour, by a clock that is down for a while. So
a low quartile says more than a mean, and more than a median where the machine has two speeds. What
changes slowly falls out of the ratios of times that were taken one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LOW = 0.25
_RESAMPLES = 64
_FEW = 6  # rounds below which a quartile says nothing


def spread(times: Sequence[float]) -> float:
    """The interquartile range; the full range of fewer than four."""
    if len(times) < 4:
        return max(times) - min(times)
    return quantile(times, 1 - _LOW) - quantile(times, _LOW)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, between two neighbours in a straight line.

    >>> quantile([4, 1, 3, 2], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def typical(times: Sequence[float]) -> float:
    """The lower quartile: the time that a call takes when little disturbs it."""
    return quantile(times, _LOW)


def paired(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Median of the round-by-round ratios ``times / others``, and its standard error.

    The standard error of a median is about 1.25 σ/√n; σ is taken from the interquartile range as
    IQR / 1.35, so that spikes do not count.
    """
    ratios = [a / b for a, b in zip(times, others, strict=False)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    return median(ratios), 1.25 * spread(ratios) / 1.35 / len(ratios) ** 0.5


def compare(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """How many times as long the first took as the second, and the relative standard error of that.

    Two estimates are made, the median of the round-by-round ratios, which drift does not touch, and
    the ratio of the lower quartiles, which slow calls do not touch. The one with the smaller error
    counts. The errors are those of a bootstrap over the rounds.

    Args:
        times: of the first, one per round.
        others: of the second, in the same rounds.
    """
    first, second = np.log(times), np.log(others)
    rounds = len(first)
    if rounds < 2:
        return float(np.exp(first[0] - second[0])), 1.0
    drawn = _resamples(rounds)  # its first row is the rounds as they are
    estimates = [_quantile((first - second)[drawn], 0.5)]
    if rounds >= _FEW:
        estimates.append(_quantile(first[drawn], _LOW) - _quantile(second[drawn], _LOW))
    ratio, error = min(((each[0], float(each[1:].std())) for each in estimates), key=_error)
    # of few rounds a bootstrap takes the error for less than it is
    return float(np.exp(ratio)), error * ((rounds + 3) / (rounds - 1)) ** 0.5


def instability(samples: Iterable[Sequence[float]]) -> float:
    """How many times as long the longest call of a function takes as its shortest.

    Of several functions it is nearly the largest that counts: one quiet for a while means little.
    """
    return quantile([max(times) / min(times) for times in samples], 0.9)


def _error(estimate: tuple[float, float]) -> float:
    return estimate[1]


@lru_cache(maxsize=512)
def _resamples(rounds: int) -> NDArray[np.int64]:
    """All rounds, then which each resample takes: always the same, so that figures repeat."""
    drawn = np.random.default_rng(rounds).integers(0, rounds, (_RESAMPLES, rounds))
    return np.vstack((np.arange(rounds), drawn))


def _quantile(rows: Floats, share: float) -> Floats:
    """That of each row, as :func:`quantile` has it."""
    place = share * (rows.shape[1] - 1)
    low = int(place)
    ordered = np.sort(rows, axis=1)
    high = ordered[:, min(low + 1, rows.shape[1] - 1)]
    between: Floats = ordered[:, low] + (high - ordered[:, low]) * (place - low)
    return between
