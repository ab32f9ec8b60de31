"""``autolora report``: a page of what was measured."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from autolora.cache.differences import differences
from autolora.cache.joining import Joined, join
from autolora.cli.cache.files import (
    STANDARD,
    CacheFile,
    find_files,
    named_or_own,
    read_sources,
    warn_invalid,
)
from autolora.cli.output.console import print_line
from autolora.errors import AutoloraError
from autolora.report.contents import Contents
from autolora.report.page import page
from autolora.report.results import read_results


def run(options: Namespace) -> int:
    """Writes the page, and plots if they are wanted."""
    if options.plots is not None:
        from autolora.report.plots import require_matplotlib

        require_matplotlib()
    files = named_or_own(options.files)
    joined = _joined(files)
    if not joined.records:
        names = ", ".join(file.name for file in files)
        raise AutoloraError(
            f"nothing measured yet: no records in {names}; 'autolora tune' adds some"
        )
    against = None if options.against is None else _joined(find_files([options.against]))
    contents = Contents(
        [source.name for source in joined.contributions],
        joined.records,
        [read_results(Path(word)) for word in options.results],
        options.against or "",
        None if against is None else differences(against.records, joined.records),
    )
    if options.plots is not None:
        from autolora.report.plots import write_plots

        for path in write_plots(contents, Path(options.plots)):
            print_line(str(path))
    _write(page(contents), options.output, files)
    return 0


def _joined(files: list[CacheFile]) -> Joined:
    joined = join(read_sources(files, {}))
    warn_invalid(joined)
    return joined


def _write(text: str, word: str, files: list[CacheFile]) -> None:
    if word == STANDARD:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))  # as the page says, on any system
        return
    path = Path(word)
    if any(file.path is not None and _same(file.path, path) for file in files):
        raise AutoloraError(f"{path} is a cache file; name another file with -o")
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise AutoloraError(
            f"cannot write the report {path}: {cause}; name another with -o"
        ) from error
    print_line(str(path))


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)
