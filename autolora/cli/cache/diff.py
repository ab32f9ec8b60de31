"""``autolora cache diff``: compares the records of two files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from autolora.cache.differences import Differences, differences, different_fields
from autolora.cache.joining import Joined, join
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key
from autolora.cli import DIFFERENT
from autolora.cli.cache.files import STANDARD, find_files, key_json, read_sources, warn_invalid
from autolora.cli.output.console import print_json, print_line, print_lines
from autolora.cli.output.figures import first_lines
from autolora.cli.output.tables import environment_title, environments_json
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.units import count, duration, ratio

_FIELDS = ("winner", "median_ns", "effort", "measured_at")  # shown for both records


def run(options: Namespace) -> int:
    """Prints the records that are on one side only, and those that differ."""
    if options.a == options.b == STANDARD:
        raise AutoloraError("- is standard input, which can be read only once")
    a, b = _side(options.a), _side(options.b)
    found = differences(a.records, b.records)
    environments = {**a.environments, **b.environments}
    if options.json:
        print_json(_json(found, options, environments))
    else:
        _print(found, options, environments)
    return DIFFERENT if found else 0


def _side(word: str) -> Joined:
    """The records of a file, or of several joined."""
    joined = join(read_sources(find_files([word]), {}))
    warn_invalid(joined)
    return joined


def _json(
    found: Differences, options: Namespace, environments: Mapping[str, Environment]
) -> dict[str, Any]:
    return {
        "a": options.a,
        "b": options.b,
        "equal": found.equal,
        "environments": environments_json(environments.values()),
        "only_a": list(map(key_json, found.only_a)),
        "only_b": list(map(key_json, found.only_b)),
        "different": [
            {
                **key_json(key),
                **{name: [getattr(record, name) for record in pair] for name in _FIELDS},
                "ratio": pair[0].median_ns / pair[1].median_ns,
                "fields": different_fields(*pair),
            }
            for key, pair in found.different.items()
        ],
    }


def _print(found: Differences, options: Namespace, environments: Mapping[str, Environment]) -> None:
    for name, environment in environments.items():
        groups = (
            (f"only in {options.a}", _of(name, found.only_a)),
            (f"only in {options.b}", _of(name, found.only_b)),
            (f"different in {options.b}", _of(name, found.different)),
        )
        if not any(keys for _, keys in groups):
            continue
        print_lines(environment_title(environment))
        for title, keys in groups:
            if keys:
                print_line(f"  {count(len(keys), 'record')} {title}:")
                print_lines(first_lines(keys, lambda key: _line(key, found), indent="    "))
        print_line()
    parts = [
        f"{len(found.only_a)} only in {options.a}",
        f"{len(found.only_b)} only in {options.b}",
        f"{len(found.different)} different",
        f"{found.equal} equal",
    ]
    print_line(f"Records: {', '.join(parts)}")


def _of(environment: str, records: Mapping[Key, object]) -> list[Key]:
    return [key for key in records if key.environment == environment]


def _line(key: Key, found: Differences) -> str:
    title = key.problem.title
    return f"{title}: {_changes(*found.different[key])}" if key in found.different else title


def _changes(a: Record, b: Record) -> str:
    """The differences of two records."""
    changes = []
    if a.winner != b.winner:
        changes.append(f"winner {a.winner} → {b.winner}")
    if a.median_ns != b.median_ns:
        times = f"{duration(a.median_ns)} → {duration(b.median_ns)}"
        changes.append(f"{times} ({ratio(a.median_ns / b.median_ns)} as fast)")
    if a.effort != b.effort:
        changes.append(f"effort {a.effort} → {b.effort}")
    if a.measured_at != b.measured_at:
        changes.append(f"measured {a.measured_at} → {b.measured_at}")
    return "; ".join(changes) or f"other {', '.join(different_fields(a, b))}"
