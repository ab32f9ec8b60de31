"""``autolora show``: the records of the cache."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.cache.lookup.choice import not_tuned_for
from autolora.cache.records.record import Record
from autolora.cli.cache.files import open_caches
from autolora.cli.output import crossovers
from autolora.cli.output.console import (
    print_json,
    print_line,
    print_lines,
    print_paragraph,
    screen_width,
)
from autolora.cli.output.evidence import LEGEND, candidate_table, saved_line
from autolora.cli.output.objectives import candidate_for, objective_from, runs_json
from autolora.cli.output.tables import (
    by_environment,
    environment_title,
    environments_json,
    record_json,
    record_table,
)
from autolora.objective import KINDS, TIME, Objective
from autolora.units import count

if TYPE_CHECKING:
    from rich.text import Text

    from autolora.problem import BaseProblem


def run(options: Namespace) -> int:
    """Prints the records of one cache file, or of every file of the search path."""
    files = [(cache.path, cache.records) for cache in open_caches(options.cache)]
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


def _json(path: Path | None, records: Sequence[Record], asked: Objective) -> dict[str, Any]:
    objectives = list(dict.fromkeys([*map(Objective, reversed(KINDS)), asked]))
    return {
        "path": str(path),
        "environments": environments_json(record.environment for record in records),
        "records": [
            {**record_json(record), "runs": runs_json(record, objectives)} for record in records
        ],
    }


def _print(path: Path | None, records: Sequence[Record], asked: Objective, verbose: bool) -> None:
    print_line(f"{path}: {count(len(records), 'record')}")
    for environment, group in by_environment(records):
        print_line()
        print_lines(environment_title(environment))
        measured = {record.problem: record for record in group}

        def below(record: Record, measured: dict[BaseProblem, Record] = measured) -> list[Text]:
            saved = [] if asked == TIME else [saved_line(record)]
            return saved + (candidate_table(measured[record.problem]) if verbose else [])

        shown = [replace(record, winner=candidate_for(record, asked).graph) for record in group]
        print_lines(record_table(shown, screen_width(), below=below))


def _print_notes(records: Sequence[Record], asked: Objective, options: Namespace) -> None:
    print_line()
    if asked != TIME:
        lacking = sum(bool(not_tuned_for(record, asked)) for record in records)
        print_paragraph(
            f"Shown is what layers run for {asked}."
            + (f" {count(lacking, 'record')} not tuned for that." if lacking else "")
        )
    if options.crossovers:
        print_paragraph(crossovers.LEGEND)
    elif options.verbose:
        print_paragraph(LEGEND)
