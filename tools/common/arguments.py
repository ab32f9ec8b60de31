"""The command line of a tool, and the cache file that it tunes into."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch


def parser_for(doc):
    """A parser with ``--json`` and ``--threads``, described by the first line of a docstring."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.add_argument("--threads", type=int, help="of torch")
    return parser


def choice_of(parser, name, choices, default=None):
    """Adds an option that takes some of the choices, all of them by default."""
    default = list(choices) if default is None else default
    parser.add_argument(name, nargs="*", choices=list(choices), default=default)


def parsed(parser, *, log=logging.ERROR):
    """Parses the options, and sets torch's threads and the least level of what is logged."""
    options = parser.parse_args()
    logging.basicConfig(level=log)
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


@contextmanager
def temporary_cache():
    """Has autolora use a new, empty cache file in the block; yields its path."""
    before = os.environ.get("AUTOLORA_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timings.v1.json"
        os.environ["AUTOLORA_CACHE"] = str(path)
        try:
            yield path
        finally:
            del os.environ["AUTOLORA_CACHE"]
            if before is not None:
                os.environ["AUTOLORA_CACHE"] = before
