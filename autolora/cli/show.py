"""``autolora show``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from autolora.cache.record import Record
from autolora.cache.store import search_path
from autolora.cli.caches import open_cache
from autolora.cli.console import (
    print_json,
    print_line,
    print_lines,
    print_paragraph,
    screen_width,
)
from autolora.cli.documents import environments_json, record_json
from autolora.cli.figures import count
from autolora.cli.tables import environment_title, record_table


def run(options: Namespace) -> int:
    """Prints the records of one cache file, or of every file of the search path."""
    if options.cache is not None:
        path = Path(options.cache)
        files = [(path, open_cache(path).records)]
    else:
        paths = search_path()
        files = [(path, open_cache(path, required=False).records) for path in paths]
    if options.json:
        print_json({"files": [_json(path, records) for path, records in files]})
        return 0
    shown = [(path, records) for path, records in files if records]
    for path, records in shown:
        _print(path, records, options.verbose)
    if not shown:
        print_paragraph(
            f"Nothing measured yet: {files[0][0]} holds no records. 'autolora tune' fills it, "
            "'autolora demo' shows what that brings."
        )
    return 0


def _json(path: Path, records: Sequence[Record]) -> dict[str, Any]:
    return {
        "path": str(path),
        "environments": environments_json(records),
        "records": [record_json(record) for record in records],
    }


def _print(path: Path, records: Sequence[Record], verbose: bool) -> None:
    print_line(f"{path}: {count(len(records), 'record')}")
    by_machine = sorted(records, key=lambda record: record.environment.id)  # a stable sort
    for environment, group in groupby(by_machine, key=lambda record: record.environment):
        print_line()
        print_lines(environment_title(environment))
        print_lines(record_table(list(group), screen_width(), evidence=verbose))
    print_line()
