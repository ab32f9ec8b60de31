"""Results beside the cache: those of the benchmarks, and which layers a model has.

A benchmark's file has ``command`` and ``rows``, as tools write with ``--json``. A file with
``layers``, as ``autolora explain --json`` and ``autolora run --report-json`` write, says how often
a step of a model poses each problem.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolora.errors import AutoloraError, one_line
from autolora.problem import BaseProblem
from autolora.problem.kinds import problem_from_json

Scalar = str | int | float | bool

_MOST_BYTES = 64 * 10**6


@dataclass(frozen=True, slots=True)
class Results:
    """One file of results.

    Args:
        name: of the file.
        facts: what was measured by what: the command, its date, the machine and its packages.
        rows: one object of plain values for each case of a benchmark.
        times: for each row the milliseconds of what was compared, which may be none.
        layers: how often a step of the model poses each problem, siblings that run together once.
        usage: what a run of the model has used, in words.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    times: list[dict[str, float]] = field(default_factory=list)
    layers: dict[BaseProblem, int] = field(default_factory=dict)
    usage: str = ""


def read_results(path: Path) -> Results:
    """Reads a file of results.

    Raises:
        AutoloraError: it cannot be read, or holds neither rows nor layers.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES // 10**6} MB")
        return _results(str(path), json.loads(data))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or one_line(error)
        raise AutoloraError(f"the results {path} cannot be used: {cause}") from error


def _results(name: str, document: Any) -> Results:
    found = document if isinstance(document, dict) else {}
    if isinstance(found.get("layers"), list):
        return Results(name, layers=_layers(found["layers"]), usage=str(found.get("usage", "")))
    if "rows" not in found:
        raise ValueError("it has neither 'rows', as the tools write, nor 'layers'")
    facts = {
        key: value if isinstance(value, str) else _pairs(value)
        for key in ("command", "date", "environment", "versions")
        if isinstance(value := found.get(key), str | dict)
    }
    cases = list(_cases(found["rows"]))
    return Results(
        name,
        facts,
        [dict(_flat({k: v for k, v in case.items() if k != "ms"})) for case in cases],
        [_times(case.get("ms")) for case in cases],
    )


def _pairs(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {text}" for key, text in _flat(value))


def _cases(value: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """The objects of lists, however deep, with the names that lead to them."""
    if isinstance(value, list):
        for each in value:
            yield from _cases(each, name)
    elif isinstance(value, dict):
        lists = {key: each for key, each in value.items() if _holds_cases(each)}
        rest = {key: each for key, each in value.items() if key not in lists}
        if any(True for _ in _flat(rest)):
            yield {"of": name, **rest} if name else rest
        for key, each in lists.items():
            yield from _cases(each, f"{name} {key}".strip())


def _holds_cases(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """The plain values of an object and of the objects in it; lists are left out."""
    for key, each in value.items():
        name = f"{prefix} {key}".strip()
        if isinstance(each, dict):
            yield from _flat(each, name)
        elif isinstance(each, Scalar):
            yield name, each


def _times(value: Any) -> dict[str, float]:
    found = value if isinstance(value, dict) else {}
    return {
        str(name): float(ms)
        for name, ms in found.items()
        if isinstance(ms, int | float) and 0 < ms < math.inf
    }


def _layers(entries: list[Any]) -> dict[BaseProblem, int]:
    """Of each layer the problem that it was called with most, if it trains."""
    calls: dict[str, tuple[int, BaseProblem]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("problem"), dict):
            raise ValueError("each of its layers must have a problem")
        problem, number = problem_from_json(entry["problem"]), entry.get("calls", 0)
        known = calls.get(str(entry.get("name")), (-1, problem))
        if problem.gradients and isinstance(number, int) and number > known[0]:
            calls[str(entry.get("name"))] = number, problem
    counts = Counter(problem for _, problem in calls.values())
    return {
        problem: max(number // max(len(problem.parts), 1), 1) for problem, number in counts.items()
    }
