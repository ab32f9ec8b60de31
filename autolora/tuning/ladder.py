"""Chooses the token counts to tune between two bounds: more of them where the winner changes.

Between two measured counts a lookup interpolates times. If the counts have different winners, the
interpolated choice may be wrong; so counts are added until the error is small.
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

LOSS = 0.02  # share of a step's time that a wrong choice may cost

_CLOSEST = 1.1  # smallest ratio of neighbouring counts

Valid = Callable[[str, BaseProblem], bool]


def risk(below: Record, above: Record) -> float:
    """The cost of a wrong choice between two counts, as a share of a step's time.

    It is the loss of the best compromise: the minimum over the graphs timed at both counts of their
    larger slowdown relative to the winners.
    """
    if below.winner == above.winner:
        return 0.0
    low, high = (_relative(end) for end in (below, above))
    return min(max(low[name], high[name]) for name in low.keys() & high) - 1


@dataclass(slots=True)
class Ladder:
    """The token counts of one problem that are to be measured next.

    Args:
        valid: ``(name, problem)`` → whether the name is that of a valid graph.
    """

    valid: Valid
    _closed: set[tuple[int, int]] = field(default_factory=set)
    _asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # count → its bounds

    def more(self, records: Mapping[int, Record]) -> list[int]:
        """Counts to be measured next, since a wrong choice near them may cost more than 2 %.

        If the interpolated choice at a measured count was within 2 % of the fastest graph, no
        counts are added between it and its neighbours.

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
        """The graphs to time at a count: the winners of its neighbours and the interpolated one."""
        low, high = (records[bound] for bound in self._asked[tokens])
        return {low.winner, high.winner, self._interpolated(low, high, tokens)}

    def _foreseen(self, below: Record, above: Record, middle: Record) -> bool:
        """Whether the interpolated choice between two counts is nearly the fastest there."""
        times = _relative(middle)
        graph = self._interpolated(below, above, middle.problem.tokens)
        return graph in times and times[graph] <= 1 + LOSS

    def _interpolated(self, below: Record, above: Record, tokens: int) -> str:
        problem = below.problem.at(tokens)
        lookup = Lookup.of(TimingCache([below, above]))
        answer = lookup.find(problem, below.environment, lambda name: self.valid(name, problem))
        return answer.graph or below.reference


def _relative(record: Record) -> dict[str, float]:
    """Times of the usable graphs, relative to the winner's."""
    return {c.graph: (c.median_ns or 0) / record.median_ns for c in record.usable}
