"""Token counts to tune between two bounds: a ladder first, then where the winner changes.

Between two measured counts a lookup interpolates. That is worth nothing where both have the same
winner, and may be wrong where they have not; so counts are added there until it is wrong by little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.record import Record
from autolora.problem import BaseProblem

LOSS = 0.02  # of a step's time, that a wrong choice may cost

_CLOSEST = 1.1  # times as many tokens: counts closer than this are not told apart

Valid = Callable[[str, BaseProblem], bool]


def risk(below: Record, above: Record) -> float:
    """What choosing wrongly between two counts may cost, as a share of a step's time.

    It is how much slower, at the worse of its two ends, the graph is that is nearly the fastest at
    both. Where no other was timed at both, that is the reference graph.
    """
    if below.winner == above.winner:
        return 0.0
    low, high = (_relative(end) for end in (below, above))
    return min(max(low[name], high[name]) for name in low.keys() & high) - 1


@dataclass(slots=True)
class Ladder:
    """The token counts of one problem: which to measure next.

    Args:
        valid: whether a name is that of a graph which computes a problem.
    """

    valid: Valid
    _closed: set[tuple[int, int]] = field(default_factory=set)
    _asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # the bounds that it halves

    def more(self, records: Mapping[int, Record]) -> list[int]:
        """Counts at which choosing wrongly may cost more than 2 %, to be measured next.

        Where a count was measured and the graph that would have been chosen there was nearly the
        fastest, none is added on either side of it.

        Args:
            records: of the counts measured so far.
        """
        for count, (low, high) in list(self._asked.items()):
            if count in records:
                if self._foreseen(records[low], records[high], records[count]):
                    self._closed |= {(low, count), (count, high)}
                del self._asked[count]
        wanted = []
        for low, high in pairwise(sorted(records)):
            middle = round(sqrt(low * high))
            if (low, high) in self._closed or high <= _CLOSEST * low or not low < middle < high:
                continue
            if risk(records[low], records[high]) > LOSS:
                self._asked[middle] = low, high
                wanted.append(middle)
        return wanted

    def expected(self, tokens: int, records: Mapping[int, Record]) -> set[str]:
        """The graphs that a measurement at a count should time: those it would be chosen from."""
        low, high = (records[bound] for bound in self._asked[tokens])
        return {low.winner, high.winner, self._interpolated(low, high, tokens)}

    def _foreseen(self, below: Record, above: Record, middle: Record) -> bool:
        """Whether what would have been chosen between two counts is nearly the fastest there."""
        times = _relative(middle)
        graph = self._interpolated(below, above, middle.problem.tokens)
        return graph in times and times[graph] <= 1 + LOSS

    def _interpolated(self, below: Record, above: Record, tokens: int) -> str:
        problem = below.problem.at(tokens)
        lookup = Lookup.of(TimingCache([below, above]))
        answer = lookup.find(problem, below.environment, lambda name: self.valid(name, problem))
        return answer.graph or below.reference


def _relative(record: Record) -> dict[str, float]:
    """Times of the graphs that may be used, over the winner's."""
    return {c.graph: (c.median_ns or 0) / record.median_ns for c in record.usable}
