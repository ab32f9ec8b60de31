"""The paths of cache files: the default one and the search path."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

VARIABLE = "AUTOLORA_CACHE"
FILE_NAME = "timings.v1.json"


def default_path() -> Path:
    """The file in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("autolora")) / FILE_NAME


def site_path() -> Path:
    """The file in the site-wide cache folder, which is read last."""
    return Path(platformdirs.site_cache_dir("autolora")) / FILE_NAME


def search_path() -> list[Path]:
    """The cache files to read, in order; the first one is written.

    These are the entries of ``AUTOLORA_CACHE``, separated as in ``PATH``, or the default path
    without any; then the file in the site-wide cache folder.
    """
    entries = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry.strip()]
    # PTH: Path.expanduser raises for an unknown user; this leaves the entry as it is
    own = [Path(os.path.expanduser(entry)) for entry in entries] or [default_path()]  # noqa: PTH111
    return list(dict.fromkeys((*own, site_path())))
