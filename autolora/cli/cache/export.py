"""``autolora cache export``: extracts the records of some environments."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from autolora.cache.joining import Joined, join, save
from autolora.cli.cache import files
from autolora.cli.cache.environments import listing, select
from autolora.cli.output.console import print_json, print_line
from autolora.cli.output.tables import environment_line, environments_json
from autolora.errors import AutoloraError
from autolora.units import count


def run(options: Namespace) -> int:
    """Writes the records of some environments as a cache file."""
    out = files.output_path(options.output)
    joined = join(files.read_sources(files.named_or_own(options.files), {}))
    files.warn_invalid(joined)
    environments = select(options.environment, joined.environments)
    wanted = {environment.id for environment in environments}
    keys = (key for key in joined.table.lines if key.environment in wanted)
    exported = replace(joined, table=joined.table.subset(keys))
    if not exported.table.lines:
        named = "; ".join(map(environment_line, environments))
        raise AutoloraError(
            f"no records of {named}; there are records of:{listing(joined.environments)}"
        )
    if out is None:
        files.print_cache(exported)
        return 0
    total = len(save(exported, out).records)
    if options.json:
        print_json(_json(exported, out, total))
    else:
        for name, environment in exported.environments.items():
            number = sum(key.environment == name for key in exported.table.lines)
            print_line(f"{count(number, 'record')} of {name}  {environment_line(environment)}")
        print_line(f"{out}: {count(total, 'record')}")
    return 0


def _json(exported: Joined, out: Path, total: int) -> dict[str, Any]:
    return {
        "out": str(out),
        "exported": len(exported.table.lines),
        "records": total,
        "environments": environments_json(exported.environments.values()),
    }
