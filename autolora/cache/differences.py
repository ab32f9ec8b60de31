"""The differences of two sets of records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autolora.cache.records.record import Record
from autolora.cache.records.table import Key


@dataclass(frozen=True, slots=True)
class Differences:
    """The records of one side only, pairs of records that differ, and the number of equal ones."""

    only_a: dict[Key, Record]
    only_b: dict[Key, Record]
    different: dict[Key, tuple[Record, Record]]
    equal: int

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b or self.different)


def differences(side_a: Iterable[Record], side_b: Iterable[Record]) -> Differences:
    """Compares the records of two sides, each with one for a problem and environment at most."""
    a, b = (
        {Key.of(record.problem, record.environment): record for record in side}
        for side in (side_a, side_b)
    )
    both = sorted(a.keys() & b.keys())
    different = {key: (a[key], b[key]) for key in both if a[key].line != b[key].line}
    return Differences(
        {key: record for key, record in a.items() if key not in b},
        {key: record for key, record in b.items() if key not in a},
        different,
        len(both) - len(different),
    )


def different_fields(a: Record, b: Record) -> list[str]:
    """The names of the fields in which two records differ, in the order of a file."""
    other = b.to_json()
    return [name for name, value in a.to_json().items() if value != other[name]]
