"""``autolora cache merge``: joins cache files."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autolora.cache.files.disk import Unreadable, read
from autolora.cache.joining import Conflict, Contribution, Joined, Source, join, save
from autolora.cache.records.document import NewerSchema, parse
from autolora.cache.records.precedence import EFFORTS, TEXT
from autolora.cli.cache import files
from autolora.cli.output.console import print_json, print_line, print_lines
from autolora.cli.output.figures import first_lines
from autolora.cli.output.tables import environments_json
from autolora.errors import AutoloraError
from autolora.units import count


def run(options: Namespace) -> int:
    """Joins files, writes the result, and prints what each file contributed."""
    out = files.output_path(options.output)
    if out is None and options.json:
        raise AutoloraError(
            "--json and the merged file cannot both go to standard output; use -o FILE"
        )
    inputs = files.find_files(options.files)
    if out is not None:  # which is read first, as it was
        place = os.path.realpath(out)
        inputs = [each for each in inputs if not each.path or os.path.realpath(each.path) != place]
    left_out: dict[str, str] = {}
    joined = join(_sources(out, inputs, left_out))
    if not joined.contributions:
        raise AutoloraError(f"{out} cannot be used, and there is nothing else to join")
    files.warn_invalid(joined)
    if out is None:
        files.print_cache(joined)
        return 0
    total = len(save(joined, out).records)
    if options.json:
        print_json(_json(joined, out, total, left_out))
    else:
        _print(joined, out, total)
    return 0


def _sources(
    out: Path | None, inputs: list[files.CacheFile], left_out: dict[str, str]
) -> Iterator[Source]:
    """The file to write, if it exists, then the inputs."""
    if out is not None and (present := _present(out)) is not None:
        yield present
    yield from files.read_sources(inputs, left_out, lenient=True)


def _present(out: Path) -> Source | None:
    """The content of the file to write; None if it is missing, or corrupt and to be set aside.

    Raises:
        AutoloraError: it cannot be read, or was written by a newer autolora.
    """
    try:
        data = read(out)
        return None if data is None else Source(f"{out}, as it was", parse(data))
    except (Unreadable, NewerSchema) as error:
        raise AutoloraError(f"cannot write {out}: {error}") from error
    except ValueError:
        return None


def _json(joined: Joined, out: Path, total: int, left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "out": str(out),
        "records": total,
        "environments": environments_json(joined.environments.values()),
        "sources": [
            {
                "file": source.name,
                "records": source.records,
                "taken": source.taken,
                "equal": source.equal,
                "worse": source.worse,
                "unusable": source.invalid,
            }
            for source in joined.contributions
        ],
        "left_out": [{"file": name, "cause": cause} for name, cause in left_out.items()],
        "conflicts": [_conflict_json(conflict) for conflict in joined.conflicts],
    }


def _conflict_json(conflict: Conflict) -> dict[str, Any]:
    return {
        **files.key_json(conflict.key),
        "winner": conflict.winner,
        "loser": conflict.loser,
        "decided_by": conflict.decided_by,
        "reason": _reason(conflict),
    }


def _print(joined: Joined, out: Path, total: int) -> None:
    width = max((len(source.name) for source in joined.contributions), default=0)
    print_lines(
        f"{source.name:<{width}}  {_contribution(source)}" for source in joined.contributions
    )
    if joined.conflicts:
        print_line()
        print_line(f"{count(len(joined.conflicts), 'conflict')}:")
        print_lines(first_lines(joined.conflicts, _conflict_line))
    print_line()
    environments = count(len(joined.environments), "environment")
    print_line(f"{out}: {count(total, 'record')} of {environments}")


def _contribution(source: Contribution) -> str:
    parts = [f"{source.taken} taken"]
    parts += [f"{source.equal} the same as an earlier file's"] if source.equal else []
    parts += [f"{source.worse} worse"] if source.worse else []
    parts += [f"{len(source.invalid)} unusable"] if source.invalid else []
    return f"{count(source.records, 'record')}: {', '.join(parts)}"


def _conflict_line(conflict: Conflict) -> str:
    return (
        f"{conflict.key.problem.title} ({conflict.key.environment}): "
        f"{conflict.winner} over {conflict.loser}, {_reason(conflict)}"
    )


def _reason(conflict: Conflict) -> str:
    """Why the winner is better, such as ``"effort normal over quick"``."""
    field = conflict.decided_by
    if field == TEXT:
        return "equally good, the greater text"
    won, lost = getattr(conflict.won, field), getattr(conflict.lost, field)
    if field == "effort":
        return f"effort {EFFORTS[won]} over {EFFORTS[lost]}"
    if field == "steadiness":
        return "spread {} % below {} %".format(*_apart(-100 * won, -100 * lost))
    if field == "measured_at":
        return f"newer, {won} over {lost}"
    return f"{won} {field} over {lost}"


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers, with enough digits to differ."""
    for digits in range(2, 18):
        shown = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if shown[0] != shown[1]:
            break
    return shown
