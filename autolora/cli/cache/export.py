"""``autolora cache export``."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from autolora.cache.files.store import search_path
from autolora.cache.joining import Joined, join, save
from autolora.cli.cache.environments import chosen, listed
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
from autolora.cli.output.console import print_json, print_line
from autolora.cli.output.figures import count
from autolora.errors import AutoloraError


def run(options: Namespace) -> int:
    """Writes the records of some environments as a cache file."""
    out = None if options.output in (None, STANDARD) else Path(options.output)
    if out is not None:
        refuse_folder(out)
    joined = join(sources_of(_files(options.files), {}))
    warn_of_damage(joined)
    environments = chosen(options.environment, joined.environments)
    wanted = {environment.id for environment in environments}
    keys = (key for key in joined.table.lines if key.environment in wanted)
    exported = replace(joined, table=joined.table.part(keys))
    if not exported.table.lines:
        named = "; ".join(map(environment_line, environments))
        raise AutoloraError(
            f"no records of {named}; there are records of:{listed(joined.environments)}"
        )
    if out is None:
        write_out(exported)
        return 0
    held = len(save(exported, out).records)
    if options.json:
        print_json(_json(exported, out, held))
    else:
        for name, environment in exported.environments.items():
            number = sum(key.environment == name for key in exported.table.lines)
            print_line(f"{count(number, 'record')} of {name}  {environment_line(environment)}")
        print_line(f"{out}: {count(held, 'record')}")
    return 0


def _files(words: list[str]) -> list[CacheFile]:
    """The files that are named, or those of the search path that are there."""
    if words:
        return files_of(words)
    files = [CacheFile(str(path), path) for path in search_path() if path.exists()]
    if not files:
        raise AutoloraError("no cache file of the search path is there; 'autolora tune' makes one")
    return files


def _json(exported: Joined, out: Path, held: int) -> dict[str, Any]:
    return {
        "out": str(out),
        "exported": len(exported.table.lines),
        "records": held,
        "environments": environments_by_id(exported.environments.values()),
    }
