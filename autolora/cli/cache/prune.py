"""``autolora cache prune``."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autolora.cache.files.store import TimingCache, search_path
from autolora.cache.joining import Joined, join, save
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key
from autolora.cli.cache.environments import chosen
from autolora.cli.cache.files import (
    STANDARD,
    CacheFile,
    files_of,
    refuse_folder,
    sources_of,
    warn_of_damage,
)
from autolora.cli.cache.merge import write_out
from autolora.cli.cache.titles import environment_line, environments_by_id
from autolora.cli.output.console import print_json, print_lines, say
from autolora.cli.output.figures import count
from autolora.environment import Environment
from autolora.errors import AutoloraError

Keep = Callable[[Record], bool]


def run(options: Namespace) -> int:
    """Removes records from a file, and prints which and how many stay."""
    file = _file(options)
    joined = join(sources_of([file], {}))
    environments = chosen(options.keep_environment, joined.environments)
    keep = _keep(environments, options.older_than)
    gone = [record for record in joined.records if not keep(record)]
    left = len(joined.records) - len(gone)
    if gone and not left and not (options.yes or options.dry_run):
        raise AutoloraError(
            f"this would leave none of {count(len(gone), 'record')} in {file.name}; say --yes if "
            "that is meant"
        )
    if not options.dry_run:
        if file.path is None:
            _write(joined, keep, options.output)
        elif gone:  # which says of damage what it does with it
            gone, left = _rewritten(file.path, keep)
    if options.dry_run or file.path is None or not gone:
        warn_of_damage(joined)
    written = options.output or file.name
    if options.json:
        print_json(_json(written, gone, left, options.dry_run))
    elif file.path is None and options.output in (None, STANDARD) and not options.dry_run:
        for line in _lines("standard output", gone, left, options.dry_run):
            say(line)
    else:
        print_lines(_lines(written, gone, left, options.dry_run))
    return 0


def _file(options: Namespace) -> CacheFile:
    """The file to prune, if all options make sense."""
    if not options.keep_environment and options.older_than is None:
        raise AutoloraError("what is to be removed? give --keep-environment, --older-than or both")
    if options.file is None:
        path = search_path()[0]
        files = [CacheFile(str(path), path)]
    else:
        files = files_of([options.file])
    if len(files) > 1:
        raise AutoloraError(f"{options.file} is {len(files)} files; prune one at a time")
    (file,) = files
    if file.path is not None and options.output is not None:
        raise AutoloraError("-o goes with standard input only; a file is pruned in its place")
    if file.path is None and options.output in (None, STANDARD):
        if options.json and not options.dry_run:
            raise AutoloraError("--json would stand beside the pruned file; name a file with -o")
    elif file.path is None:
        refuse_folder(Path(options.output))
    return file


def _keep(environments: Sequence[Environment], older_than: float | None) -> Keep:
    """Whether a record stays."""
    oldest = ""
    if older_than is not None:
        moment = datetime.now(UTC) - timedelta(seconds=older_than)
        oldest = moment.isoformat(timespec="seconds").replace("+00:00", "Z")

    def keep(record: Record) -> bool:
        known = not environments or record.environment in environments
        return known and record.measured_at >= oldest  # texts of one form, in the order of time

    return keep


def _write(joined: Joined, keep: Keep, output: str | None) -> None:
    """Writes the records that stay to a file, which is joined with them, or to standard output."""
    kept = (Key.of(r.problem, r.environment) for r in joined.records if keep(r))
    pruned = replace(joined, table=joined.table.part(kept))
    if output in (None, STANDARD):
        write_out(pruned)
    elif output is not None:
        save(pruned, output)


def _rewritten(path: Path, keep: Keep) -> tuple[list[Record], int]:
    """Removes records from a file as it is now, and says which went and how many stay."""
    gone: dict[tuple[object, ...], Record] = {}

    def kept(record: Record) -> bool:
        stays = keep(record)
        if not stays:
            gone[record.problem, record.environment] = record
        return stays

    left, _ = TimingCache.rewrite(path, kept)
    return list(gone.values()), left


def _json(name: str, gone: Sequence[Record], left: int, dry_run: bool) -> dict[str, Any]:
    environments = {record.environment for record in gone}
    return {
        "file": name,
        "dry_run": dry_run,
        "kept": left,
        "removed": len(gone),
        "removed_by_environment": {
            environment.id: number for environment, number in _numbers(gone).items()
        },
        "environments": environments_by_id(environments),
        "problems_removed": [
            {"problem": record.problem.to_json(), "environment": record.environment.id}
            for record in gone
        ],
    }


def _numbers(records: Iterable[Record]) -> dict[Environment, int]:
    return dict(Counter(record.environment for record in records).most_common())


def _lines(name: str, gone: Sequence[Record], left: int, dry_run: bool) -> list[str]:
    verb = "would be removed" if dry_run else "removed"
    lines = [
        f"{verb}: {count(number, 'record')} of {environment.id}  {environment_line(environment)}"
        for environment, number in _numbers(gone).items()
    ]
    stays = "would stay" if dry_run else "stays" if left == 1 else "stay"
    stay = f"{count(left, 'record')} {stays}"
    what = f"{len(gone)} {verb}" if gone else "nothing to remove"
    return [*lines, f"{name}: {what}, {stay}"]
