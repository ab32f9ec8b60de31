"""``autolora cache diff``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autolora.cache.joining import Joined, join
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key
from autolora.cli import DIFFERENT
from autolora.cli.cache.files import STANDARD, files_of, sources_of, warn_of_damage
from autolora.cli.cache.titles import environments_by_id, first, key_json, problem_title
from autolora.cli.output.console import print_json, print_line, print_lines
from autolora.cli.output.figures import count, duration, ratio
from autolora.cli.output.tables import environment_title
from autolora.environment import Environment
from autolora.errors import AutoloraError

_FIELDS = ("winner", "median_ns", "effort", "measured_at")  # that people compare first


@dataclass(frozen=True, slots=True)
class _Difference:
    """What differs between two sides: the records of each by key, and those in both but unlike."""

    only_a: dict[Key, Record]
    only_b: dict[Key, Record]
    unlike: dict[Key, tuple[Record, Record]]
    equal: int

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b or self.unlike)


def run(options: Namespace) -> int:
    """Prints the records that are on one side only, and those that differ."""
    if options.a == options.b == STANDARD:
        raise AutoloraError("- is standard input, which can be read only once")
    a, b = _side(options.a), _side(options.b)
    found = _difference(a, b)
    environments = {**a.environments, **b.environments}
    if options.json:
        print_json(_json(found, options, environments))
    else:
        _print(found, options, environments)
    return DIFFERENT if found else 0


def _side(word: str) -> Joined:
    """The records of one side: of a file, or of several joined."""
    joined = join(sources_of(files_of([word]), {}))
    warn_of_damage(joined)
    return joined


def _difference(a: Joined, b: Joined) -> _Difference:
    first_side, second_side = _by_key(a), _by_key(b)
    both = first_side.keys() & second_side.keys()
    pairs = {key: (first_side[key], second_side[key]) for key in sorted(both)}
    unlike = {key: pair for key, pair in pairs.items() if pair[0].line != pair[1].line}
    return _Difference(
        {key: record for key, record in first_side.items() if key not in both},
        {key: record for key, record in second_side.items() if key not in both},
        unlike,
        len(both) - len(unlike),
    )


def _by_key(side: Joined) -> dict[Key, Record]:
    return {Key.of(record.problem, record.environment): record for record in side.records}


def _json(
    found: _Difference, options: Namespace, environments: Mapping[str, Environment]
) -> dict[str, Any]:
    return {
        "a": options.a,
        "b": options.b,
        "equal": found.equal,
        "environments": environments_by_id(environments.values()),
        "only_a": list(map(key_json, found.only_a)),
        "only_b": list(map(key_json, found.only_b)),
        "different": [
            {
                **key_json(key),
                **{name: [getattr(record, name) for record in pair] for name in _FIELDS},
                "ratio": pair[0].median_ns / pair[1].median_ns,
                "fields": _unlike_fields(*pair),
            }
            for key, pair in found.unlike.items()
        ],
    }


def _print(found: _Difference, options: Namespace, environments: Mapping[str, Environment]) -> None:
    for name, environment in environments.items():
        groups = (
            (f"only in {options.a}", _of(name, found.only_a)),
            (f"only in {options.b}", _of(name, found.only_b)),
            (f"different in {options.b}", _of(name, found.unlike)),
        )
        if not any(keys for _, keys in groups):
            continue
        print_lines(environment_title(environment))
        for title, keys in groups:
            if keys:
                print_line(f"  {count(len(keys), 'record')} {title}:")
                print_lines(first(keys, lambda key: _line(key, found), indent="    "))
        print_line()
    parts = [
        f"{len(found.only_a)} only in {options.a}",
        f"{len(found.only_b)} only in {options.b}",
        f"{len(found.unlike)} different",
        f"{found.equal} equal",
    ]
    print_line(f"Records: {', '.join(parts)}")


def _of(environment: str, records: Mapping[Key, object]) -> list[Key]:
    return [key for key in records if key.environment == environment]


def _line(key: Key, found: _Difference) -> str:
    title = problem_title(key.problem)
    return f"{title}: {_changes(*found.unlike[key])}" if key in found.unlike else title


def _changes(a: Record, b: Record) -> str:
    """What differs, as people read it."""
    told = []
    if a.winner != b.winner:
        told.append(f"winner {a.winner} → {b.winner}")
    if a.median_ns != b.median_ns:
        times = f"{duration(a.median_ns)} → {duration(b.median_ns)}"
        told.append(f"{times} ({ratio(a.median_ns / b.median_ns)} as fast)")
    if a.effort != b.effort:
        told.append(f"effort {a.effort} → {b.effort}")
    if a.measured_at != b.measured_at:
        told.append(f"measured {a.measured_at} → {b.measured_at}")
    return "; ".join(told) or f"other {', '.join(_unlike_fields(a, b))}"


def _unlike_fields(a: Record, b: Record) -> list[str]:
    """The members of the records that differ."""
    one, other = a.to_json(), b.to_json()
    return [name for name in one if one[name] != other[name]]
