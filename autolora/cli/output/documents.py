"""Records as plain data, for ``--json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autolora.cache.records.record import Record


def record_json(record: Record) -> dict[str, Any]:
    """A record as in the cache file, and what follows from it."""
    return {
        **record.to_json(),
        "median_ns": record.median_ns,
        "speedup": record.speedup,
        "flops_speedup": record.flops_speedup,
        "overhead_removed": record.overhead_removed,
    }


def environments_json(records: Iterable[Record]) -> dict[str, Any]:
    """The environments of records, by id."""
    return {record.environment.id: record.environment.to_json() for record in records}
