"""A race: finds the fastest of several functions on a noisy machine.

Interleaved rounds in random order, robust comparisons, early elimination, and a confirmation with
fresh times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from autolora.timing.clock import Measure, Run
from autolora.timing.statistics import compare, instability, typical

Samples = dict[str, list[float]]  # per candidate, one time in nanoseconds per round it took part in

EVEN = 0.01  # candidates whose times differ by less than this share are equal: either may win
SURE = 0.02  # largest share by which a winner may be slower than the fastest, for a decided race

_FEW = 8  # rounds below which only ranges are compared, not estimates
# The factor by which a candidate's shortest time must exceed the leader's, beyond the machine's
# instability, for it to drop out after so many rounds.
_APART = {1: 8.0, 2: 1.5, 3: 1.2, 4: 1.05, 5: 1.03, 6: 1.02, 7: 1.02}
_DOUBT = 2  # standard errors that a comparison may be off
_BEATEN = 3  # standard errors, for a candidate to drop out
_LOST = 3.5  # standard errors by which a winner must beat the baseline
_WORTH = 0.005  # and beyond them by this share
_LEAST_OF_A_POOL = 3
_FINALISTS = 4
_CLOSE = 1.05  # the fastest of a pool can win the race only if it is not slower than this
_QUIET = 1.1  # instability up to which a few rounds confirm a winner
_RESTLESS = 20  # rounds of confirmation beyond that
_HEATS = 0.35  # share of the seconds that the rounds before the confirmation may take


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a race may last.

    Args:
        rounds: at least and at most so many before the confirmation.
        confirmation: likewise, of fresh times for the finalists.
        seconds: past which an undecided race ends, once it has the least rounds of both.
    """

    rounds: tuple[int, int]
    confirmation: tuple[int, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a race.

    Args:
        winner: the fastest, or the baseline where nothing beats it by more than the noise.
        heats: the times before the confirmation, of each candidate in order.
        confirmed: the times of the confirmation, for those that took part.
        noise: the largest relative standard error of the comparisons with the winner.
        within: share by which another candidate may be faster than the winner, at two standard
            errors.
    """

    winner: str
    heats: Samples
    confirmed: Samples
    noise: float = 0.0
    within: float = 0.0

    @property
    def undecided(self) -> bool:
        """Whether more than 2 % may be lost by choosing the winner."""
        return self.within > SURE

    @property
    def samples(self) -> Samples:
        """Every time that was taken, in order."""
        return {name: heat + self.confirmed.get(name, []) for name, heat in self.heats.items()}

    def together(self, first: str, second: str) -> tuple[list[float], list[float]]:
        """The times of two candidates in the rounds that both ran in."""
        return _together(self.heats, self.confirmed, first, second)

    def compare(self, first: str, second: str) -> tuple[float, float]:
        """One finalist's time over another's by the confirmation, and its standard error."""
        return _confirmed(self.confirmed, first, second)


def race(
    runs: Mapping[str, Run],
    measure: Measure,
    pace: Pace,
    rng: random.Random,
    *,
    baseline: str,
    kept: Collection[str] = (),
    observed: Collection[str] = (),
    pools: Sequence[Collection[str]] = (),
    between: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Finds the fastest of several functions.

    Every candidate runs once per round, in random order, so that drift affects all alike. A
    candidate drops out when it cannot be faster than the first by more than noise. When no other
    may be faster than the first by 1 %, or a third of the pace is spent, the finalists run with
    the baseline and what is observed. These fresh times alone decide which is first, and it must
    beat the baseline over all rounds by 3.5 standard errors and 0.5 %, or the baseline wins. The
    confirmation lasts until no other may be faster than the winner by 1 %, or the pace is spent.

    Args:
        runs: the candidates by name, and what is observed.
        measure: times one call.
        pace: how long it may last.
        rng: draws the order.
        baseline: the candidate that wins unless it is beaten by more than the noise.
        kept: candidates that take part in the confirmation even when beaten.
        observed: those of ``runs`` that are only timed, in the confirmation, and cannot win.
        pools: groups of candidates whose own fastest is wanted as well: none of a pool is dropped
            before it has three rounds, and then only when its pool's fastest beats it. That one
            takes part in the confirmation, where it can win only if it came close.
        between: called before each timing, outside of it.
        clock: seconds, for the limit of the pace.
    """
    between()
    runs[baseline]()  # warms the allocator and the threads

    def time_each(names: Sequence[str], into: Samples) -> None:
        for name in rng.sample(names, len(names)):
            between()
            into[name].append(measure(runs[name]))

    samples: Samples = {name: [] for name in runs}
    running = [name for name in runs if name not in observed]
    groups = [group for pool in pools if (group := _still(pool, running))]
    least = max(pace.rounds[0], _LEAST_OF_A_POOL if groups else 0)
    start = clock()
    for number in range(1, pace.rounds[1] + 1):
        time_each(running, samples)
        if not _is_stop(number):
            continue
        stay = _unbeaten(running, samples, number)
        for group in groups:
            still = _still(group, running)
            stay.update(still if number < least else _unbeaten(still, samples, number))
        running = [name for name in running if name in stay]
        if number < least:
            continue
        if clock() - start >= _HEATS * pace.seconds or _settled(running, samples, number):
            break
    first = fastest(samples, running)
    close = sorted(
        (name for name in running if _may_be_first(name, first, samples)),
        key=lambda name: typical(samples[name]),
    )
    wanted = [fastest(samples, _still(group, running)) for group in groups]
    near = _CLOSE * typical(samples[first])
    able = [first, *close[:_FINALISTS], *(n for n in wanted if typical(samples[n]) <= near)]
    able = [n for n in dict.fromkeys([*able, baseline, *kept]) if n not in observed]
    finalists = list(dict.fromkeys([*able, *wanted, *observed]))
    confirmed: Samples = {name: [] for name in finalists}
    most = pace.confirmation[1]
    for number in range(1, most + 1):
        time_each(finalists, confirmed)
        if number < pace.confirmation[0] or not (_is_stop(number) or number == most):
            continue
        verdict = _judged(able, baseline, samples, confirmed)
        calm = instability(samples[name] + confirmed[name] for name in able) <= _QUIET
        decided = verdict.within + verdict.noise / 2 <= EVEN  # it was looked at many times
        if (decided and number >= (1 if calm else _RESTLESS)) or clock() - start >= pace.seconds:
            break
        if number >= _FEW:
            finalists = _in_doubt(finalists, able, verdict, baseline, samples, confirmed)
    return Result(verdict.winner, samples, confirmed, verdict.noise, verdict.within)


def fastest(samples: Samples, names: Sequence[str]) -> str:
    """The name with the least typical time."""
    return min(names, key=lambda name: typical(samples[name]))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Which was first, which wins, and as in :class:`Result` the noise and what may be lost."""

    first: str
    winner: str
    noise: float
    within: float


def _judged(able: Sequence[str], baseline: str, samples: Samples, confirmed: Samples) -> _Verdict:
    """The first of the confirmation, if it beats the baseline; else the baseline."""
    longest = max((baseline, *able), key=lambda name: len(confirmed[name]))
    first = min(able, key=lambda name: _confirmed(confirmed, name, longest)[0])
    winner = first if _beats(first, baseline, samples, confirmed) else baseline
    rivals = [n for n in able if n not in (winner, baseline)]  # a winner beats the baseline
    others = [_confirmed(confirmed, name, winner) for name in rivals]
    noise = max((error for _, error in others), default=0.0)
    return _Verdict(first, winner, noise, max((_possible(*pair) for pair in others), default=0.0))


def _beats(first: str, baseline: str, samples: Samples, confirmed: Samples) -> bool:
    """Whether a candidate beats the baseline by more than the noise, over all rounds of both."""
    if first == baseline:
        return False
    ratio, noise = min(
        compare(*_together(samples, confirmed, first, baseline)),
        _confirmed(confirmed, first, baseline),
        key=lambda pair: pair[1],
    )
    return ratio + _LOST * noise < 1 - _WORTH


def _in_doubt(
    finalists: Sequence[str],
    able: Sequence[str],
    verdict: _Verdict,
    baseline: str,
    samples: Samples,
    confirmed: Samples,
) -> list[str]:
    """The finalists to be timed further: those that are first, may be, or are not known to 2 %."""

    def is_known(name: str) -> bool:
        ratio, noise = _confirmed(confirmed, name, verdict.winner)
        return noise <= SURE and (name not in able or _is_beaten(ratio, noise))

    first = {verdict.first, verdict.winner}
    stay = [name for name in finalists if name in first or not is_known(name)]
    rivals = [name for name in stay if name in able]
    if baseline not in stay and not all(_beats(n, baseline, samples, confirmed) for n in rivals):
        stay.append(baseline)  # which the winner must beat
    return stay


def _confirmed(confirmed: Samples, name: str, other: str) -> tuple[float, float]:
    """One finalist's time over another's, and its error, in the rounds that both ran in."""
    return compare(*_together({}, confirmed, name, other))


def _together(
    heats: Samples, confirmed: Samples, first: str, second: str
) -> tuple[list[float], list[float]]:
    """The times of two candidates in the rounds that both ran in: each runs until it drops out."""
    times: tuple[list[float], list[float]] = ([], [])
    for part in (heats, confirmed):
        pair = part.get(first, []), part.get(second, [])
        for into, taken in zip(times, pair, strict=True):
            into += taken[: min(map(len, pair))]
    return times


def _is_stop(rounds: int) -> bool:
    """Whether to compare after so many rounds; less often after many, to save time."""
    return rounds % min(1 + rounds // 16, 16) == 0


def _still(pool: Collection[str], running: Sequence[str]) -> list[str]:
    """Those of a pool that are still in the race; its fastest always is."""
    return [name for name in running if name in pool]


def _unbeaten(names: Sequence[str], samples: Samples, rounds: int) -> set[str]:
    """The fastest of some candidates, and those that it does not beat."""
    leader = fastest(samples, names)
    if rounds < _FEW:
        most = _APART[rounds] * instability(samples[name] for name in names) * min(samples[leader])
        return {name for name in names if min(samples[name]) <= most}
    return {
        name
        for name in names
        if name == leader or not _is_beaten(*compare(samples[name], samples[leader]))
    }


def _settled(running: Sequence[str], samples: Samples, rounds: int) -> bool:
    """Whether none of the others may be faster than the first by 1 %."""
    leader = fastest(samples, running)
    others = [name for name in running if name != leader]
    if rounds < _FEW:
        return not others
    return all(_possible(*compare(samples[name], samples[leader])) <= EVEN for name in others)


def _may_be_first(name: str, first: str, samples: Samples) -> bool:
    ratio, noise = compare(samples[name], samples[first])
    return ratio - noise <= 1 + EVEN


def _is_beaten(ratio: float, noise: float) -> bool:
    """Whether a candidate that takes ``ratio`` times as long as another can hardly be faster."""
    return ratio - _BEATEN * noise >= 1 - EVEN / 2


def _possible(ratio: float, noise: float) -> float:
    """The share by which a candidate may be faster than another, at two standard errors."""
    return max(0.0, 1 - (ratio - _DOUBT * noise))
