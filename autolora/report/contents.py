"""What a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autolora.cache.differences import Differences
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.report.families import Family, families
from autolora.report.results import Results


@dataclass(frozen=True)
class Contents:
    """What a report is made of.

    Args:
        sources: names of the cache files.
        records: of these, in the order of a file.
        results: other files.
        against: name of an earlier cache, ``""`` for none.
        changes: the differences from it, None without one.
    """

    sources: Sequence[str]
    records: Sequence[Record]
    results: Sequence[Results] = ()
    against: str = ""
    changes: Differences | None = None

    @cached_property
    def places(self) -> list[Environment]:
        """The machines, those with most records first."""
        found: dict[Environment, int] = {}
        for record in self.records:
            found[record.environment] = found.get(record.environment, 0) + 1
        return sorted(found, key=lambda environment: (-found[environment], environment.id))

    @cached_property
    def families(self) -> list[Family]:
        """The problems that were measured at several token counts, those with most ranges first."""
        return sorted(families(self.records, least=2), key=lambda family: -len(family.ranges))
