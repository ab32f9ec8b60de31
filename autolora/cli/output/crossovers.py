"""Crossovers: which graph runs at which token counts, for each layer shape."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from autolora.cache.lookup.crossovers import Range
from autolora.cache.lookup.lookup import NEAR
from autolora.cache.records.record import Record
from autolora.cli.output.console import clean, print_line, print_lines, screen_width
from autolora.cli.output.figures import align
from autolora.cli.output.tables import (
    by_environment,
    environment_title,
    environments_json,
    sections,
)
from autolora.graphs.base import REFERENCE
from autolora.objective import Objective
from autolora.report.families import Family, families
from autolora.units import count, ratio

LEGEND = (
    "Speed-ups are over PEFT's graph, at the first and at the last token count of a range. "
    "Between measured counts they are interpolated. Beyond these, up to half the least and twice "
    "the largest, the graph of the nearest count runs."
)


def print_ranges(path: Path | None, records: Sequence[Record], asked: Objective) -> None:
    """Prints the ranges of a file's records."""
    shapes = {(record.problem.at(1), record.environment) for record in records}
    print_line(f"{path}: {count(len(shapes), 'layer shape')}, {count(len(records), 'record')}")
    print_line()
    print_families(records, asked)


def print_families(records: Sequence[Record], asked: Objective) -> None:
    """Prints the ranges of records, by environment and section."""
    for number, (environment, group) in enumerate(by_environment(families(records, asked))):
        if number:
            print_line()
        print_lines(environment_title(environment))
        print_lines(range_table(group, screen_width()))


def ranges_json(path: Path | None, records: Sequence[Record], asked: Objective) -> dict[str, Any]:
    """The ranges of a file's records."""
    return {
        "path": str(path),
        "environments": environments_json(record.environment for record in records),
        "objective": asked.kind,
        "max_saved_bytes": asked.max_saved_bytes,
        "families": [
            {
                "problem": {k: v for k, v in family.problem.to_json().items() if k != "tokens"},
                "environment": family.environment.id,
                "measured": list(family.measured),
                "ranges": [asdict(each) for each in family.ranges],
            }
            for family in families(records, asked)
        ],
    }


def range_table(families: Sequence[Family], width: int) -> list[Text]:
    """The ranges of families, in sections of equal rank and dtypes.

    If a line is too long for the screen, all graphs are printed below their figures.

    Args:
        families: in the order to be shown within their section.
        width: of the screen, in cells.
    """
    ranges = [each for family in families for each in family.ranges]
    names = [clean(each.graph or "no graph known") for each in ranges]
    lines = align([(*_cells(each), name) for each, name in zip(ranges, names, strict=True)], "rll")
    below = max(map(len, lines)) > width - 4
    if below:
        lines = align([_cells(each) for each in ranges], "rl")
    body = zip(ranges, lines, names, strict=True)
    parts = [list(islice(body, len(family.ranges))) for family in families]
    shown = []
    for title, section in sections(zip(families, parts, strict=True)):
        shown.append(title)
        for family, part in section:
            shown += _heading(family, width)
            for each, line, name in part:
                shown.append(Text(f"    {line}", "" if each.graph == REFERENCE else "green"))
                shown += [Text(f"      {name}", "dim")] if below else []
    return shown


def _heading(family: Family, width: int) -> list[Text]:
    gradients = " ".join(family.problem.gradients)
    title = family.problem.shape_text
    title += f", gradients {gradients}" if gradients else ", forward only"
    least, largest = family.measured[0], family.measured[-1]
    words = ", ".join(f"{tokens:,}" for tokens in family.measured)
    words = f"measured at {words}; used from {math.ceil(least / NEAR):,} to {largest * NEAR:,.0f}"
    filled = textwrap.wrap(words, width, initial_indent="    ", subsequent_indent="    ")
    return [Text(f"  {title}"), *(Text(line, "dim") for line in filled)]


def _cells(each: Range) -> tuple[str, str]:
    """Token counts and speed-ups from first to last, or one where they are equal."""
    span = f"{each.first_tokens:,} to " * (each.first_tokens < each.last_tokens)
    first, last = ratio(each.first_speedup), ratio(each.last_speedup)
    return f"{span}{each.last_tokens:,} tokens", first if first == last else f"{first} to {last}"
