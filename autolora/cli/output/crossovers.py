"""``autolora show --crossovers``: which graph runs at which token counts, per layer shape."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rich.text import Text

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.choice import Valid
from autolora.cache.lookup.crossovers import Range, crossovers
from autolora.cache.lookup.lookup import NEAR
from autolora.cache.records.record import Record
from autolora.cli.output.console import clean, print_line, print_lines, screen_width
from autolora.cli.output.documents import environments_json
from autolora.cli.output.figures import align, count, ratio
from autolora.cli.output.tables import environment_title, layer_title, section_title
from autolora.environment import Environment
from autolora.graphs.graph import REFERENCE
from autolora.graphs.space import find_graph
from autolora.objective import Objective
from autolora.problem import Problem

LEGEND = (
    "Speed-ups are over PEFT's graph, at the first and at the last token count of a range. "
    "Between measured counts they are interpolated. Beyond these, up to half the least and twice "
    "the largest, the graph of the nearest count runs."
)


@dataclass(frozen=True, slots=True)
class _Family:
    """One problem at several token counts.

    Args:
        problem: at the least of them.
        environment: where they were measured.
        measured: the counts, ascending.
        ranges: which graph rules where.
    """

    problem: Problem
    environment: Environment
    measured: tuple[int, ...]
    ranges: list[Range]


def print_ranges(path: Path, records: Sequence[Record], asked: Objective) -> None:
    """Prints the ranges of one file's records, by machine and section."""
    families = {(record.problem.at(1), record.environment) for record in records}
    print_line(f"{path}: {count(len(families), 'layer shape')}, {count(len(records), 'record')}")
    print_line()
    print_families(records, asked)


def print_families(records: Sequence[Record], asked: Objective) -> None:
    """Prints the ranges of some records, by machine and section."""
    families = _families(records, asked)
    by_machine = sorted(families, key=lambda family: family.environment.id)  # a stable sort
    groups = groupby(by_machine, key=lambda family: family.environment)
    for number, (environment, group) in enumerate(groups):
        if number:
            print_line()
        print_lines(environment_title(environment))
        print_lines(range_table(list(group), screen_width()))


def ranges_json(path: Path, records: Sequence[Record], asked: Objective) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "path": str(path),
        "environments": environments_json(records),
        "objective": asked.kind,
        "max_saved_bytes": asked.max_saved_bytes,
        "families": [
            {
                "problem": {k: v for k, v in family.problem.to_json().items() if k != "tokens"},
                "environment": family.environment.id,
                "measured": list(family.measured),
                "ranges": [asdict(each) for each in family.ranges],
            }
            for family in _families(records, asked)
        ],
    }


def range_table(families: Sequence[_Family], width: int) -> list[Text]:
    """Each family's ranges, in sections of equal rank and dtypes.

    A range is one line where all of them fit, else its graph stands below its figures.

    Args:
        families: in the order in which they are to be shown within their section.
        width: of the screen, in cells.
    """
    ordered = sorted(families, key=lambda family: section_title(family.problem))  # a stable sort
    ranges = [each for family in ordered for each in family.ranges]
    names = [clean(each.graph or "no graph known") for each in ranges]
    lines = align([(*_cells(each), name) for each, name in zip(ranges, names, strict=True)], "rll")
    below = max(map(len, lines)) > width - 4
    if below:
        lines = align([_cells(each) for each in ranges], "rl")
    body = zip(ranges, lines, names, strict=True)
    shown = []
    for title, section in groupby(ordered, key=lambda family: section_title(family.problem)):
        shown.append(Text(title, "bold"))
        for family in section:
            shown += _heading(family, width)
            for each, line, name in islice(body, len(family.ranges)):
                shown.append(Text(f"    {line}", "" if each.graph == REFERENCE else "green"))
                shown += [Text(f"      {name}", "dim")] if below else []
    return shown


def _heading(family: _Family, width: int) -> list[Text]:
    gradients = " ".join(family.problem.gradients)
    title = layer_title(family.problem)
    title += f", gradients {gradients}" if gradients else ", forward only"
    least, largest = family.measured[0], family.measured[-1]
    words = ", ".join(f"{tokens:,}" for tokens in family.measured)
    words = f"measured at {words}; used from {math.ceil(least / NEAR):,} to {largest * NEAR:,.0f}"
    filled = textwrap.wrap(words, width, initial_indent="    ", subsequent_indent="    ")
    return [Text(f"  {title}"), *(Text(line, "dim") for line in filled)]


def _cells(each: Range) -> tuple[str, str]:
    """The token counts and the speed-up, each once where both ends have the same."""
    span = f"{each.first_tokens:,} to " * (each.first_tokens < each.last_tokens)
    first, last = ratio(each.first_speedup), ratio(each.last_speedup)
    return f"{span}{each.last_tokens:,} tokens", first if first == last else f"{first} to {last}"


def _families(records: Sequence[Record], asked: Objective) -> Iterator[_Family]:
    timings = TimingCache(records)
    found: dict[tuple[Problem, Environment], list[Record]] = {}
    for record in records:
        found.setdefault((record.problem.at(1), record.environment), []).append(record)
    for (problem, environment), group in found.items():

        def valid_at(tokens: int, problem: Problem = problem) -> Valid:
            there = problem.at(tokens)
            return lambda name: find_graph(name, there) is not None

        yield _Family(
            group[0].problem,
            environment,
            tuple(record.problem.tokens for record in group),
            crossovers(timings, problem, environment, asked, valid_at),
        )
