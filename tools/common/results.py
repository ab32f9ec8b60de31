"""Result files: what a benchmark measured, and by what: machine, versions, command, conditions.

The results of a machine lie in ``tools/results/<machine>/<benchmark>.json``. `tools/bench_all.py`
makes them, and `tools/figures.py` turns them into the tables of the documents.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import autolora
from autolora.environment import Environment
from autolora.timing import conditions
from autolora.timing.statistics import quantile

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools/results"

_PACKAGES = ("autolora", "torch", "peft", "transformers", "bitsandbytes")


def write(path, rows, device="cpu"):
    """Writes rows as JSON, with what they were measured by; does nothing without a path.

    Called again with more rows as each part ends, so that a run that is cut short keeps its rows:
    the file is replaced whole. It holds one row a line.

    Args:
        path: of the file, or None.
        rows: a list of mappings, one for each thing measured.
        device: that was measured on.
    """
    if path is None:
        return
    found = conditions.since(_START, torch.device(device))
    found["others_busy"], found["steal"] = conditions.shares(_START, _with_children())
    document = {
        "command": command(sys.argv),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": {
            **Environment.of(device).to_json(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        },
        "versions": {"commit": commit(), **dict(_versions())},
        "conditions": found,
    }
    head = json.dumps(document, indent=1)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    new = path.with_name(f"{path.name}.new")
    new.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    new.replace(path)


def sample(values, digits=6):
    """Median, quartiles and number of what was measured in several rounds."""
    low, middle, high = (round(quantile(values, share), digits) for share in (0.25, 0.5, 0.75))
    return {"median": middle, "quartiles": [low, high], "rounds": len(values)}


def samples(times, *bases):
    """Of each name the milliseconds, and the paired ratios of the times of bases to its own.

    Args:
        times: name → nanoseconds, one per round.
        bases: names of what the others are compared with, where they are among these.
    """
    return {
        name: {"ms": sample([each / 1e6 for each in taken])}
        | {f"over {base}": sample([b / t for b, t in zip(times[base], taken, strict=True)])
           for base in bases if base in times and base != name}
        for name, taken in times.items()
    }  # fmt: skip


def machine(device="cpu"):
    """The name of a machine and its threads: ``"amd-epyc-25-17-1-2-threads"``.

    It is made of the device's name, of a CPU with family, model and stepping. Figures count for a
    number of threads, so machines that differ in it have names of their own.
    """
    found = Environment.of(device)
    words = re.sub(r"cpu family|model|stepping|\(R\)|\(TM\)", " ", found.device_name)
    if found.device == "cpu":
        words += f" {found.units} threads"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def command(words):
    """A command line from the root of the checkout, without the paths that it writes to.

    >>> command(["tools/bench_layer.py", "--json", "x.json", "--rank", "8"])
    'python tools/bench_layer.py --rank 8'
    """
    tool, *rest = words
    for option in ("--json", "--environments"):
        if option in rest:
            at = rest.index(option)
            del rest[at : at + 2]
        rest = [word for word in rest if not word.startswith(f"{option}=")]
    return shlex.join(["python", f"tools/{Path(tool).name}", *rest])


@lru_cache(maxsize=1)
def commit():
    """The last commit that changed the package, with ``+changes`` if files differ from it.

    None where the package in use is not from a checkout. Later commits, that change only documents,
    results or tools, leave results as they are.
    """
    try:
        found = _git("log", "-1", "--format=%h", "--abbrev=10", "--", ".")
        changed = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+changes" if found and changed else found or None


def _git(*words):
    """What git says in the folder of the package that is imported."""
    run = ["git", "-C", str(Path(autolora.__file__).parent), *words]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def _versions():
    yield "python", sys.version.split()[0]
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _with_children():
    """The counters now; the processor time of finished children counts as this process's own."""
    return replace(conditions.before(), own=sum(os.times()[:4]))


_START = _with_children()
