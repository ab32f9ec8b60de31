"""Runs the benchmarks whose figures stand in the documents, one by one, on an idle machine.

    python tools/bench_all.py [--budget 2h] [--only NAME ...] [--out tools/results]
    python tools/bench_all.py --list

Each runs in a process of its own with OMP_WAIT_POLICY=passive, in the order of the table below, and
writes ``<out>/<machine>/<name>.json``. What is there already, by this command, of this state of the
package, is not run again, so that a call goes on where the last one ended. A benchmark that the
rest of the budget does not hold is not started. On a machine where other processes take much of the
processors nothing is started either, unless ``--busy`` is given; between benchmarks it is waited
for. One that fails, or is cut short, leaves ``<name>.part.json`` and ``<name>.log`` and replaces no
results. Ends with what is missing, and with 1 if anything is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from common.results import RESULTS, ROOT, command, commit, machine

from autolora.cli.arguments import seconds
from autolora.timing import conditions
from autolora.units import wait


class Benchmark(NamedTuple):
    """A benchmark: its results' name, its command after ``python tools/``, and rough minutes."""

    name: str
    words: str
    minutes: float


AUTOCAST = "'bfloat16, float32 adapters, autocast'"
MIXED = "'bfloat16, float32 adapters'"
COMPUTE = "'bfloat16, float32 adapters, compute_dtype'"
DROPOUT = "'dropout, float32' 'dropout, bfloat16, float32 adapters, compute_dtype'"
OF_MODELS = f"float32 bfloat16 {AUTOCAST} {COMPUTE}"
EXPERTS = "bench_experts.py --implementation"
SIBLINGS = "bench_siblings.py --regime"

# In order of worth; minutes on two cores.
BENCHMARKS = [
    Benchmark("models", "bench_model.py", 17),
    Benchmark("saved_bytes", "saved_bytes.py", 1),
    Benchmark("adapter_gain", "adapter_gain.py", 1),
    Benchmark("dispatch", "bench_dispatch.py", 1),
    Benchmark("experts", f"{EXPERTS} grouped_mm --rounds 11", 17),
    Benchmark(
        "experts_models",
        f"{EXPERTS} grouped_mm --model qwen3_moe mixtral gpt_oss --regime {MIXED} --rounds 21",
        6,
    ),
    Benchmark("compiled", "bench_compiled.py --model llama --rounds 9", 17),
    Benchmark(
        "compiled_blocks",
        f"bench_compiled.py --model smollm2 minilm --blocks --regime {AUTOCAST} {COMPUTE} "
        "--rounds 15",
        19,
    ),
    Benchmark(
        "compiled_smollm2",  # again, with fewer copies of the model
        f"bench_compiled.py --model smollm2 --blocks --regime {AUTOCAST} {COMPUTE} --rounds 31 "
        "--ways 'peft compiled' 'autolora compiled' 'bare compiled'",
        10,
    ),
    Benchmark("siblings", f"{SIBLINGS} {OF_MODELS} --rounds 30", 16),
    Benchmark("siblings_models", f"{SIBLINGS} {AUTOCAST} --model smollm2 --rounds 31", 6),
    Benchmark("siblings_others", f"{SIBLINGS} {AUTOCAST} --model minilm llama vit --rounds 21", 5),
    Benchmark("layers", "bench_layer.py --rank 16 --seconds 2", 15),
    Benchmark("finetune", "finetune.py", 7),
    Benchmark("paper", "bench_paper.py --compiled --rounds 11", 30),
    Benchmark(
        "peers",
        "bench_peers.py --environments build/peers --rounds 15 --paper-seconds 0.2",
        20,
    ),
    Benchmark("run", "bench_run.py --rounds 1", 15),
    Benchmark("experts_eager", f"{EXPERTS} eager --case 0 1 --rounds 12", 3),
    Benchmark("experts_batched", f"{EXPERTS} batched_mm --regime float32 --case 0 --rounds 5", 4),
    Benchmark("experts_regret", "regret_experts.py", 12),
    Benchmark("tuner", "bench_tuner.py --problems 0 4 7 11", 15),
    Benchmark("noise", "bench_noise.py --runs 2 --budget 150", 8),
    Benchmark("tuner_counts", "bench_tuner.py --tokens 128:1024 --counts 12", 8),
    Benchmark("siblings_compiled", f"{SIBLINGS} {AUTOCAST} {COMPUTE} --compiled --rank 16", 4),
    Benchmark("siblings_dropout", f"{SIBLINGS} {DROPOUT} --rank 16 --rounds 30", 3),
    Benchmark(
        "finetune_bfloat16",
        "finetune.py --dtype bfloat16 --compute-dtype bfloat16 --dropout 0",
        4,
    ),
    Benchmark("faults", "fault_bench.py", 8),
    Benchmark("scaling", "bench_scaling.py", 3),
    Benchmark(
        "layers_bfloat16",
        f"bench_layer.py --regime bfloat16 {MIXED} --rank 16 --shape 0 --rounds 7",
        2,
    ),
]
LOOK = 5.0  # seconds that the load of other processes is read for
AGAIN = 60.0  # seconds until a busy machine is looked at again
LAST = 5  # lines of a benchmark that failed


def busy():
    """Whether other processes use so much of the processors that timings mean little."""
    start = conditions.before()
    time.sleep(LOOK)
    device = torch.device("cpu")
    return conditions.disturbed(conditions.since(start, device), device)


def script_of(each):
    """The words of a benchmark's command line, from the root of the checkout."""
    tool, *options = shlex.split(each.words)
    return [f"tools/{tool}", *options]


def is_done(each, folder):
    """Whether there are results of a benchmark by its command, of this commit of the package."""
    path, now = folder / f"{each.name}.json", commit()
    if not path.exists() or (now or "").endswith("+changes"):
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    state = (found["command"], found["versions"]["commit"], found["environment"]["torch"])
    return state == (command(script_of(each)), now, torch.__version__)


def run(each, folder):
    """Runs a benchmark; returns why it has no results, ``""`` if it has."""
    part, log = (folder / f"{each.name}.{end}" for end in ("part.json", "log"))
    part.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            [sys.executable, *script_of(each), "--json", str(part.resolve())],
            cwd=ROOT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode or not part.exists():
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:]
        return "\n    ".join([f"it ended with {ended.returncode}", *said])
    part.replace(folder / f"{each.name}.json")
    log.unlink()
    return ""


def run_all(benchmarks, folder, budget, *, busy=busy, clock=time.monotonic, sleep=time.sleep):
    """Runs what is not done yet, and prints a line for each benchmark.

    Args:
        benchmarks: in order.
        folder: of the results of this machine.
        budget: seconds, perhaps infinite.
        busy: says whether the machine does other work.
        clock: gives seconds.
        sleep: waits for some seconds.

    Returns:
        The name of each benchmark without results of now, and why.

    Raises:
        SystemExit: there is something to run, and the machine is busy.
    """
    end = clock() + budget
    missing = {each.name: "not reached" for each in benchmarks if not is_done(each, folder)}
    if missing and busy():
        raise SystemExit("other processes use much of the processors; wait, or give --busy")
    try:
        for each in benchmarks:
            print(f"{each.name}: ", end="", flush=True)
            if each.name not in missing:
                print("done already")
                continue
            missing[each.name] = "interrupted"
            latest = end - 60 * each.minutes
            while clock() <= latest and busy():
                print("other work, waiting … ", end="", flush=True)
                sleep(AGAIN)
            if clock() > latest:
                missing[each.name] = f"the budget does not hold its {each.minutes:g} min"
                print(missing[each.name])
                continue
            print(f"about {each.minutes:g} min … ", end="", flush=True)
            begin = clock()
            missing[each.name] = run(each, folder)
            ended = "failed" if missing[each.name] else "done"
            print(f"{ended} after {wait(clock() - begin)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    return {name: why for name, why in missing.items() if why}


def main() -> None:
    """Runs the benchmarks, or lists them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [each.name for each in BENCHMARKS]
    parser.add_argument("--budget", type=seconds, default=math.inf, help="90, 60s, 5m or 1.5h")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of all results")
    parser.add_argument("--busy", action="store_true", help="run beside other work too")
    parser.add_argument("--list", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    chosen = [each for each in BENCHMARKS if each.name in options.only]
    if options.list:
        for each in chosen:
            print(f"{each.name:18}{each.minutes:>4g} min  {command(script_of(each))}")
        print(f"{'together':18}{sum(each.minutes for each in chosen):>4g} min")
        return
    folder = options.out / machine()
    folder.mkdir(parents=True, exist_ok=True)
    never = {"busy": lambda: False} if options.busy else {}
    missing = run_all(chosen, folder, options.budget, **never)
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
