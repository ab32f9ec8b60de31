"""``autolora cache path``."""

from __future__ import annotations

from argparse import Namespace

from autolora.cache.store import search_path
from autolora.cli.console import print_json, print_line


def run(options: Namespace) -> int:
    """Prints the path of the file that tuning writes."""
    first, *others = search_path()
    if options.json:
        print_json({"path": str(first), "reads": [str(path) for path in (first, *others)]})
    else:
        print_line(str(first))
    return 0
