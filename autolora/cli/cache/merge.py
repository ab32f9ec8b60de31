"""``autolora cache merge``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autolora.cache.files.disk import LIMIT, Unreadable, read
from autolora.cache.joining import Conflict, Joined, Share, Source, join, save
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cli.cache.files import (
    STANDARD,
    CacheFile,
    files_of,
    refuse_folder,
    same_file,
    sources_of,
    warn_of_damage,
)
from autolora.cli.cache.titles import environments_by_id, first, key_json, problem_title, reason
from autolora.cli.output.console import print_json, print_line, print_lines
from autolora.cli.output.figures import count
from autolora.errors import AutoloraError


def run(options: Namespace) -> int:
    """Joins files, writes the outcome, and prints what came from where."""
    out = None if options.output == STANDARD else Path(options.output)
    if out is None and options.json:
        raise AutoloraError("--json would stand beside the merged file; name a file with -o")
    files = files_of(options.files)
    if out is not None:
        refuse_folder(out)
        files = [file for file in files if file.path is None or not same_file(file.path, out)]
    left_out: dict[str, str] = {}
    joined = join(_sources(out, files, left_out))
    if not joined.shares:
        raise AutoloraError(f"{out} cannot be used, and there is nothing else to join")
    warn_of_damage(joined)
    if out is None:
        write_out(joined)
        return 0
    held = len(save(joined, out).records)
    if options.json:
        print_json(_json(joined, out, held, left_out))
    else:
        _print(joined, out, held)
    return 0


def write_out(joined: Joined) -> None:
    """Writes the outcome of a join to standard output, as a cache file."""
    data = render(joined.table)
    if len(data) > LIMIT:
        raise AutoloraError(f"the result would be larger than {LIMIT // 10**6} MB")
    sys.stdout.write(data.decode("ascii"))


def _sources(
    out: Path | None, files: list[CacheFile], left_out: dict[str, str]
) -> Iterator[Source]:
    """What is in the file to write, then the inputs."""
    if out is not None and (present := _present(out)) is not None:
        yield present
    yield from sources_of(files, left_out, lenient=True)


def _present(out: Path) -> Source | None:
    """What the file to write holds; None if there is none, or it is corrupt: saving sets it aside.

    Raises:
        AutoloraError: it cannot be read, or a newer autolora wrote it.
    """
    try:
        data = read(out)
        return None if data is None else Source(f"{out}, as it was", parse(data))
    except (Unreadable, NewerSchema) as error:
        raise AutoloraError(f"cannot write {out}: {error}") from error
    except ValueError:
        return None


def _json(joined: Joined, out: Path, held: int, left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "out": str(out),
        "records": held,
        "environments": environments_by_id(joined.environments.values()),
        "sources": [
            {
                "file": share.name,
                "records": share.records,
                "taken": share.taken,
                "equal": share.equal,
                "worse": share.worse,
                "unusable": share.invalid,
            }
            for share in joined.shares
        ],
        "left_out": [{"file": name, "cause": cause} for name, cause in left_out.items()],
        "conflicts": [_conflict_json(conflict) for conflict in joined.conflicts],
    }


def _conflict_json(conflict: Conflict) -> dict[str, Any]:
    return {
        **key_json(conflict.key),
        "winner": conflict.winner,
        "loser": conflict.loser,
        "decided_by": conflict.decided_by,
        "reason": reason(conflict),
    }


def _print(joined: Joined, out: Path, held: int) -> None:
    width = max((len(share.name) for share in joined.shares), default=0)
    print_lines(f"{share.name:<{width}}  {_brought(share)}" for share in joined.shares)
    if joined.conflicts:
        print_line()
        print_line(f"{count(len(joined.conflicts), 'conflict')}:")
        print_lines(first(joined.conflicts, _conflict_line))
    print_line()
    environments = count(len(joined.environments), "environment")
    print_line(f"{out}: {count(held, 'record')} of {environments}")


def _brought(share: Share) -> str:
    parts = [f"{share.taken} taken"]
    parts += [f"{share.equal} the same as an earlier file's"] if share.equal else []
    parts += [f"{share.worse} worse"] if share.worse else []
    parts += [f"{len(share.invalid)} unusable"] if share.invalid else []
    return f"{count(share.records, 'record')}: {', '.join(parts)}"


def _conflict_line(conflict: Conflict) -> str:
    return (
        f"{problem_title(conflict.key.problem)} ({conflict.key.environment}): "
        f"{conflict.winner} over {conflict.loser}, {reason(conflict)}"
    )
