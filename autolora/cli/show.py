"""``autolora show``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.cache.files.store import search_path
from autolora.cache.lookup.choice import lacks
from autolora.cache.records.record import Record
from autolora.cli.cache.files import open_cache
from autolora.cli.output import crossovers
from autolora.cli.output.console import (
    print_json,
    print_line,
    print_lines,
    print_paragraph,
    screen_width,
)
from autolora.cli.output.documents import environments_json, record_json
from autolora.cli.output.evidence import LEGEND, candidate_table, kept_line
from autolora.cli.output.figures import count
from autolora.cli.output.objectives import objective_from, runs_json, taken
from autolora.cli.output.tables import environment_title, record_table
from autolora.objective import KINDS, TIME, Objective

if TYPE_CHECKING:
    from rich.text import Text

    from autolora.problem import Problem


def run(options: Namespace) -> int:
    """Prints the records of one cache file, or of every file of the search path."""
    if options.cache is not None:
        path = Path(options.cache)
        files = [(path, open_cache(path).records)]
    else:
        paths = search_path()
        files = [(path, open_cache(path, required=False).records) for path in paths]
    asked = objective_from(options)
    if options.json:
        as_json = crossovers.ranges_json if options.crossovers else _json
        print_json({"files": [as_json(path, records, asked) for path, records in files]})
        return 0
    shown = [(path, records) for path, records in files if records]
    for path, records in shown:
        if options.crossovers:
            crossovers.print_ranges(path, records, asked)
        else:
            _print(path, records, asked, options.verbose)
        _print_notes(records, asked, options)
    if not shown:
        print_paragraph(
            f"Nothing measured yet: {files[0][0]} holds no records. 'autolora tune' fills it, "
            "'autolora demo' shows what that brings."
        )
    return 0


def _json(path: Path, records: Sequence[Record], asked: Objective) -> dict[str, Any]:
    objectives = list(dict.fromkeys([*map(Objective, reversed(KINDS)), asked]))
    return {
        "path": str(path),
        "environments": environments_json(records),
        "records": [
            {**record_json(record), "runs": runs_json(record, objectives)} for record in records
        ],
    }


def _print(path: Path, records: Sequence[Record], asked: Objective, verbose: bool) -> None:
    print_line(f"{path}: {count(len(records), 'record')}")
    by_machine = sorted(records, key=lambda record: record.environment.id)  # a stable sort
    for environment, group in groupby(by_machine, key=lambda record: record.environment):
        print_line()
        print_lines(environment_title(environment))
        whole = {record.problem: record for record in group}

        def below(record: Record, whole: dict[Problem, Record] = whole) -> list[Text]:
            kept = [] if asked == TIME else [kept_line(record)]
            return kept + (candidate_table(whole[record.problem]) if verbose else [])

        shown = [replace(r, winner=taken(r, asked).graph) for r in whole.values()]
        print_lines(record_table(shown, screen_width(), below=below))


def _print_notes(records: Sequence[Record], asked: Objective, options: Namespace) -> None:
    print_line()
    if asked != TIME:
        lacking = sum(bool(lacks(record, asked)) for record in records)
        print_paragraph(
            f"Shown is what layers run for {asked}."
            + (f" {count(lacking, 'record')} not tuned for that." if lacking else "")
        )
    if options.crossovers:
        print_paragraph(crossovers.LEGEND)
    elif options.verbose:
        print_paragraph(LEGEND)
