"""Robust estimates from times of a noisy machine, and their standard errors.

Noise only adds to a time: spikes, other processes, a lower clock. So the lower quartile is a better
estimate than the mean, and than the median on a machine with two speeds. Slow changes cancel in the
ratios of times that were taken one after the other.
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
_FEW = 6  # rounds below which the quartile is not used


def spread(times: Sequence[float]) -> float:
    """The interquartile range; the full range of fewer than four."""
    if len(times) < 4:
        return max(times) - min(times)
    return quantile(times, 1 - _LOW) - quantile(times, _LOW)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, by linear interpolation.

    >>> quantile([4, 1, 3, 2], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def typical(times: Sequence[float]) -> float:
    """The lower quartile: the time of a call that is hardly disturbed."""
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
    """The ratio of two times, and its relative standard error.

    Two estimates are made: the median of the round-by-round ratios, which is robust to drift, and
    the ratio of the lower quartiles, which is robust to slow calls. The one with the smaller error
    is returned. The errors are from a bootstrap over the rounds.

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
    # a bootstrap underestimates the error of few rounds
    return float(np.exp(ratio)), error * ((rounds + 8) / (rounds - 1)) ** 0.5


def instability(samples: Iterable[Sequence[float]]) -> float:
    """The ratio of a function's longest time to its shortest; of several, the 0.9 quantile."""
    return quantile([max(times) / min(times) for times in samples], 0.9)


def _error(estimate: tuple[float, float]) -> float:
    return estimate[1]


@lru_cache(maxsize=512)
def _resamples(rounds: int) -> NDArray[np.int64]:
    """Indices of all rounds, then of each resample; always the same, so that figures repeat."""
    drawn = np.random.default_rng(rounds).integers(0, rounds, (_RESAMPLES, rounds))
    return np.vstack((np.arange(rounds), drawn))


def _quantile(rows: Floats, share: float) -> Floats:
    """:func:`quantile` of each row."""
    place = share * (rows.shape[1] - 1)
    low = int(place)
    ordered = np.sort(rows, axis=1)
    high = ordered[:, min(low + 1, rows.shape[1] - 1)]
    between: Floats = ordered[:, low] + (high - ordered[:, low]) * (place - low)
    return between
