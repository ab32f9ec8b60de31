"""A race: the fastest of several functions, on a machine that is never quiet.

Interleaved rounds in an order drawn anew, robust comparisons, an early end for what is beaten, and
a confirmation with fresh times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from autolora.timing.clock import Measure, Run
from autolora.timing.statistics import compare, instability, typical

Samples = dict[str, list[float]]  # per candidate, one time in nanoseconds per round it took part in

EVEN = 0.01  # two candidates closer than this are taken as equal
SURE = 0.02  # no more than so much may be lost by a choice, or the machine was too noisy for it

_FEW = 8  # rounds below which only ranges are compared, no estimates
# By how much the ranges of two candidates must be apart, beyond what the instability of the machine
# explains, for the slower to drop out after so many rounds.
_APART = {1: 8.0, 2: 1.5, 3: 1.2, 4: 1.05, 5: 1.03, 6: 1.02, 7: 1.02}
_BEATEN = 4  # standard errors
_LOST = 3.5  # standard errors by which a winner must beat the baseline
_WORTH = 0.005  # and beyond them by this share
_SEPARATE = 2  # standard errors
_LEAST_OF_A_POOL = 3
_FINALISTS = 4
_CLOSE = 1.05  # one that wins a pool can win the race only if it is not slower than this
_QUIET = 1.1  # instability up to which a few rounds confirm a winner
_RESTLESS = 20  # rounds of confirmation beyond that
_PATIENCE = 3  # times the pace's seconds, for a race that has decided nothing by then


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a race may last.

    Args:
        rounds: at least and at most so many before the confirmation.
        confirmation: likewise, of fresh times for the last few.
        seconds: for each of the two; thrice as long while nothing is decided.
    """

    rounds: tuple[int, int]
    confirmation: tuple[int, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a race.

    Args:
        winner: the fastest, or the baseline where nothing beats it by more than the noise.
        heats: the times before the confirmation, of each in order.
        confirmed: the times of the confirmation, for those that took part.
        noise: of the comparisons that decided, the largest relative standard error.
        noisy: whether these were not sure to 2 % when time was up.
    """

    winner: str
    heats: Samples
    confirmed: Samples
    noise: float = 0.0
    noisy: bool = False

    @property
    def samples(self) -> Samples:
        """Every time that was taken, in order."""
        return {name: heat + self.confirmed.get(name, []) for name, heat in self.heats.items()}

    def together(self, first: str, second: str) -> tuple[list[float], list[float]]:
        """The times of two candidates in the rounds that both ran in."""
        return _together(self.heats, self.confirmed, first, second)


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

    Every candidate runs once per round, in an order drawn anew, so that drift hits all alike. Those
    clearly beaten are dropped. It ends when the first is separated from the others or within 1 % of
    them, or when the pace says so. Then those that may be first run again, beside the baseline and
    what is observed; only these fresh times decide which is first, and it must beat the baseline
    over all rounds by three and a half standard errors and half a percent, or the baseline wins.

    Args:
        runs: the candidates by name, and what is observed.
        measure: times one call.
        pace: how long it may last.
        rng: draws the order.
        baseline: the candidate that wins unless it is beaten by more than the noise.
        kept: candidates that take part in the confirmation even when beaten.
        observed: those of ``runs`` that are only timed, in the confirmation, and cannot win.
        pools: groups of candidates whose own fastest is wanted as well, by its time: none of a pool
            is dropped before it has three rounds, and then only when its pool's fastest beats it.
            That one takes part in the confirmation, where it can win only if it came close.
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
        spent = (clock() - start) / pace.seconds
        late = spent >= 1 and number >= _FEW
        if late or spent >= _PATIENCE or _settled(running, samples, number):
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
    start, most = clock(), pace.confirmation[1]
    for number in range(1, most + 1):
        time_each(finalists, confirmed)
        if number < pace.confirmation[0] or not (_is_stop(number) or number == most):
            continue
        verdict = _judged(able, baseline, samples, confirmed)
        calm = instability(samples[name] + confirmed[name] for name in able) <= _QUIET
        if verdict.sure and number >= (1 if calm else _RESTLESS):
            break
        if clock() - start >= _PATIENCE * pace.seconds:
            break
    return Result(
        verdict.winner,
        samples,
        confirmed,
        verdict.noise,
        noisy=not verdict.sure and verdict.noise > SURE / _SEPARATE,
    )


def fastest(samples: Samples, names: Sequence[str]) -> str:
    """The name with the least typical time."""
    return min(names, key=lambda name: typical(samples[name]))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Who wins, how noisy the comparisons were that say so, and whether they leave no doubt."""

    winner: str
    noise: float
    sure: bool


def _judged(able: Sequence[str], baseline: str, samples: Samples, confirmed: Samples) -> _Verdict:
    """The winner by the confirmation, if it beats the baseline over all rounds that both ran in."""
    base = confirmed[baseline]
    first = min(able, key=lambda name: compare(confirmed[name], base)[0])
    whole = compare(*_together(samples, confirmed, first, baseline))
    ratio, noise = min(whole, compare(confirmed[first], base), key=lambda pair: pair[1])
    rivals = [
        compare(confirmed[name], confirmed[first]) for name in able if name not in (first, baseline)
    ]
    beaten = all(_separate(*rival) or _even(*rival, SURE) for rival in rivals)
    wins = ratio + _LOST * noise < 1 - _WORTH
    decided = wins or first == baseline or _even(ratio, noise, EVEN)
    return _Verdict(
        first if wins else baseline,
        max([noise, *(error for _, error in rivals)]),
        beaten and decided,
    )


def _together(heats: Samples, confirmed: Samples, *names: str) -> tuple[list[float], list[float]]:
    """The times of two candidates in the rounds that both ran in: each runs until it drops out."""
    least = min(len(heats[name]) for name in names)
    rest = min(len(confirmed.get(name, ())) for name in names)
    first, second = (heats[name][:least] + confirmed.get(name, [])[:rest] for name in names)
    return first, second


def _is_stop(rounds: int) -> bool:
    """Whether to look at the times after so many rounds: after many, one more says little."""
    return rounds % (1 + rounds // 16) == 0


def _still(pool: Collection[str], running: Sequence[str]) -> list[str]:
    """Those of a pool that are still in the race, as its fastest always is."""
    return [name for name in running if name in pool]


def _unbeaten(names: Sequence[str], samples: Samples, rounds: int) -> set[str]:
    """The fastest of some candidates, and those that it does not beat."""
    leader = fastest(samples, names)
    if rounds < _FEW:
        most = _APART[rounds] * instability(samples[name] for name in names) * min(samples[leader])
        return {name for name in names if min(samples[name]) <= most}
    stay = {leader}
    for name in names:
        ratio, noise = compare(samples[name], samples[leader])
        if ratio - _BEATEN * noise <= 1 + EVEN:
            stay.add(name)
    return stay


def _settled(running: Sequence[str], samples: Samples, rounds: int) -> bool:
    """Whether each of the others is slower than the first by more than noise, or surely even."""
    leader = fastest(samples, running)
    others = [name for name in running if name != leader]
    if rounds < _FEW:
        return not others
    pairs = [compare(samples[name], samples[leader]) for name in others]
    return all(_separate(*pair) or _even(*pair, EVEN) for pair in pairs)


def _may_be_first(name: str, first: str, samples: Samples) -> bool:
    ratio, noise = compare(samples[name], samples[first])
    return ratio - noise <= 1 + EVEN


def _separate(ratio: float, noise: float) -> bool:
    return ratio - _SEPARATE * noise >= 1


def _even(ratio: float, noise: float, share: float) -> bool:
    return abs(ratio - 1) + _SEPARATE * noise <= share
