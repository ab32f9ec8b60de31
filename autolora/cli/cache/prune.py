"""``autolora cache prune``: removes records from a cache file."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.joining import Joined, join, save
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key
from autolora.cli.cache import files
from autolora.cli.cache.environments import select
from autolora.cli.output.console import print_json, print_lines, print_status
from autolora.cli.output.tables import environment_line, environments_json
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.units import count

Keep = Callable[[Record], bool]


def run(options: Namespace) -> int:
    """Removes records from a file, and prints how many are removed and kept."""
    file, out = _files(options)
    joined = join(files.read_sources([file], {}))
    environments = select(options.keep_environment, joined.environments)
    keep = _condition(environments, options.older_than)
    removed = [record for record in joined.records if not keep(record)]
    kept = len(joined.records) - len(removed)
    if removed and not kept and not (options.yes or options.dry_run):
        raise AutoloraError(
            f"no record would be left of {count(len(removed), 'record')} in {file.name}; use --yes "
            "to remove all of them"
        )
    if not options.dry_run:
        if file.path is None:
            _write(joined, keep, out)
        elif removed:
            removed, kept = _rewrite(file.path, keep)
    if options.dry_run or file.path is None or not removed:  # rewriting warns by itself
        files.warn_invalid(joined)
    to_stdout = file.path is None and out is None and not options.dry_run
    name = "standard output" if to_stdout else options.output or file.name
    if options.json:
        print_json(_json(name, removed, kept, options.dry_run))
    elif to_stdout:
        for line in _lines(name, removed, kept, options.dry_run):
            print_status(line)
    else:
        print_lines(_lines(name, removed, kept, options.dry_run))
    return 0


def _files(options: Namespace) -> tuple[files.CacheFile, Path | None]:
    """The file to prune, and the file to write if it is standard input.

    Raises:
        AutoloraError: the options do not go together.
    """
    if not options.keep_environment and options.older_than is None:
        raise AutoloraError("nothing to remove: give --keep-environment, --older-than or both")
    path = search_path()[0]
    default = [files.CacheFile(str(path), path)]
    inputs = default if options.file is None else files.find_files([options.file])
    if len(inputs) > 1:
        raise AutoloraError(f"{options.file} is {len(inputs)} files; prune one at a time")
    (file,) = inputs
    if file.path is not None:
        if options.output is not None:
            raise AutoloraError("-o is for standard input only; a file is pruned in place")
        return file, None
    out = files.output_path(options.output)
    if out is None and options.json and not options.dry_run:
        raise AutoloraError(
            "--json and the pruned file cannot both go to standard output; use -o FILE"
        )
    return file, out


def _condition(environments: Sequence[Environment], older_than: float | None) -> Keep:
    """Whether a record is kept."""
    oldest = ""
    if older_than is not None:
        moment = datetime.now(UTC) - timedelta(seconds=older_than)
        oldest = moment.isoformat(timespec="seconds").replace("+00:00", "Z")

    def keep(record: Record) -> bool:
        known = not environments or record.environment in environments
        return known and record.measured_at >= oldest  # timestamps in this format sort by time

    return keep


def _write(joined: Joined, keep: Keep, out: Path | None) -> None:
    """Writes the records to keep to standard output, or joins them with a file."""
    keys = (Key.of(r.problem, r.environment) for r in joined.records if keep(r))
    pruned = replace(joined, table=joined.table.subset(keys))
    if out is None:
        files.print_cache(pruned)
    else:
        save(pruned, out)


def _rewrite(path: Path, keep: Keep) -> tuple[list[Record], int]:
    """Prunes the current content of a file; returns the removed records and the number kept."""
    removed: dict[tuple[object, ...], Record] = {}

    def kept(record: Record) -> bool:
        if keep(record):
            return True
        removed[record.problem, record.environment] = record
        return False

    number, _ = TimingCache.rewrite(path, kept)
    return list(removed.values()), number


def _json(name: str, removed: Sequence[Record], kept: int, dry_run: bool) -> dict[str, Any]:
    numbers = _numbers(removed)
    return {
        "file": name,
        "dry_run": dry_run,
        "kept": kept,
        "removed": len(removed),
        "removed_by_environment": {each.id: number for each, number in numbers.items()},
        "environments": environments_json(numbers),
        "problems_removed": [files.key_json(Key.of(r.problem, r.environment)) for r in removed],
    }


def _numbers(records: Iterable[Record]) -> dict[Environment, int]:
    return dict(Counter(record.environment for record in records).most_common())


def _lines(name: str, removed: Sequence[Record], kept: int, dry_run: bool) -> list[str]:
    verb = "would be removed" if dry_run else "removed"
    lines = [
        f"{verb}: {count(number, 'record')} of {environment.id}  {environment_line(environment)}"
        for environment, number in _numbers(removed).items()
    ]
    stay = "would stay" if dry_run else "stays" if kept == 1 else "stay"
    what = f"{len(removed)} {verb}" if removed else "nothing to remove"
    return [*lines, f"{name}: {what}, {count(kept, 'record')} {stay}"]
