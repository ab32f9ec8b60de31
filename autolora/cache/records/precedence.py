"""Precedence: which of two records of one problem and environment replaces the other."""

from __future__ import annotations

import re
from typing import NamedTuple

EFFORTS = ("estimate", "quick", "normal", "thorough")

TEXT = "text"  # what decides where nothing else does: the greater line

_NAME = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_CLAIM = re.compile(  # as Record.line writes them, from the environment on
    r'"environment":"[0-9a-f]{12}","effort":"(\w+)","objectives":\[([a-z",]*)\],'
    rf'"winner":({_NAME}),"reference":{_NAME},"flops_choice":{_NAME},'
    r'"floor_ns":(?:null|[0-9]+),"measured_at":"([0-9TZ:-]{20})",',
    re.ASCII,
)
_TIMES = re.compile(r'"median_ns":([1-9][0-9]{0,15}),"spread_ns":([0-9]{1,16}),"rounds":([0-9]+),')


class Precedence(NamedTuple):
    """What decides between two records of one problem and environment, most important first.

    The order is that of :func:`~autolora.cache.records.record.better`.

    Args:
        effort: its place in :data:`EFFORTS`.
        objectives: how many.
        rounds: of the winner.
        steadiness: minus the winner's relative spread.
        measured_at: when.
    """

    effort: int
    objectives: int
    rounds: int
    steadiness: float
    measured_at: str

    @classmethod
    def of_line(cls, line: str) -> Precedence | None:
        """What a line says its merit is, without a check; None if it is not written as usual."""
        claim = _CLAIM.search(line)
        if claim is None or claim[1] not in EFFORTS:
            return None
        # No value before the candidates is a list of objects, and none in them is named so.
        start = line.find('"candidates":[', claim.end())
        winner = f'{{"graph":{claim[3]},'
        place = line.find(winner, start)
        times = _TIMES.match(line, place + len(winner)) if min(start, place) >= 0 else None
        if times is None:
            return None
        median, spread, rounds = map(int, times.groups())
        objectives = claim[2].count('"') // 2
        return cls(EFFORTS.index(claim[1]), objectives, rounds, -spread / median, claim[4])

    def decided_by(self, other: Precedence) -> str:
        """The first field in which two merits differ, :data:`TEXT` if none does."""
        pairs = zip(self._fields, self, other, strict=True)
        return next((name for name, mine, theirs in pairs if mine != theirs), TEXT)
