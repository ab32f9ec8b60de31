"""Where cache files are: the default one, and the search path."""

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
    """The cache files to read, in order; the first is the one to write.

    ``AUTOLORA_CACHE`` lists them, separated as in ``PATH``; without it there is the default one.
    The file in the site-wide cache folder always comes last.
    """
    given = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry.strip()]
    # PTH: Path.expanduser raises where there is no such home; this leaves the entry as it stands
    own = [Path(os.path.expanduser(entry)) for entry in given] or [default_path()]  # noqa: PTH111
    return list(dict.fromkeys((*own, site_path())))
