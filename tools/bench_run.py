"""Runs a script that knows nothing of autolora: alone, by ``autolora run``, and with one line.

    OMP_WAIT_POLICY=passive python tools/bench_run.py [--regime float32 ...] [--rounds 3]

The script is ``tools/train_smollm2.py``. The cache is filled first by ``autolora run --tune``; then
the three ways run in turn, each time as a process of its own. Figures are medians: of the steps of
all processes after the first two, and of the largest resident memory of each. Also: what starting
costs more than ``python`` for a script that does nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.regimes import OF_MODELS, Regime
from common.results import sample, write

SCRIPT = Path(__file__).with_name("train_smollm2.py")
MADE = "model = peft.get_peft_model("
WARMUP = 2  # steps


def arguments_of(regime):
    """The script's arguments for a regime, and those of ``autolora run``."""
    base, adapters = (str(each).removeprefix("torch.") for each in (regime.base, regime.adapter))
    own = ["--dtype", base, "--adapters", adapters, *["--autocast"] * regime.autocast]
    return own, [] if regime.compute is None else ["--compute-dtype", "bfloat16"]


def with_a_line(folder, regime):
    """A copy of the script with the one line added."""
    dtype = "" if regime.compute is None else f", compute_dtype={regime.compute}"
    lines = SCRIPT.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if MADE in line)
    lines.insert(place + 1, f"    import autolora; autolora.accelerate(model{dtype})\n")
    copy = Path(folder) / "with_a_line.py"
    copy.write_text("".join(lines), encoding="utf-8")
    return copy


def run(*words):
    """The JSON of a run of the script, and what it printed to stderr."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def bench(name, rounds, steps):
    """The figures of one regime."""
    regime = Regime.of(name)
    own, given = arguments_of(regime)
    own += ["--steps", str(steps)]
    with temporary_cache(), TemporaryDirectory() as folder:
        launch = ("-m", "autolora", "run", *given)
        begin = time.perf_counter()
        _, said = run(*launch, "--tune", "--budget", "5m", str(SCRIPT), *own)
        tuning = time.perf_counter() - begin
        ways = {
            "alone": (str(SCRIPT),),
            "autolora run": (*launch, str(SCRIPT)),
            "one line": (str(with_a_line(folder, regime)),),
        }
        found = {way: [] for way in ways}
        for _ in range(rounds):
            for way, words in ways.items():
                found[way].append(run(*words, *own)[0])
    plain = found["alone"][0]["losses"]
    rows = {}
    for way, runs in found.items():
        pairs = zip(plain, runs[0]["losses"], strict=True)
        seconds = [s for each in runs for s in each["seconds"][WARMUP:]]
        peaks = [each["peak_mib"] for each in runs]
        rows[way] = {
            "step_s": median(seconds),
            "peak_mib": median(peaks),
            "samples": {"step_s": sample(seconds), "peak_mib": sample(peaks)},
            "largest_difference": max(abs(a - b) for a, b in pairs),
        }
    account = [line for line in said.splitlines() if line.startswith("autolora: ")]
    return {"regime": name, "first_run_s": tuning, "account": account, "ways": rows}


def starting(rounds):
    """Seconds that a script that does nothing takes in each round, by either way to run it."""
    with TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.touch()
        ways = {"python": (str(empty),), "autolora run": ("-m", "autolora", "run", str(empty))}
        taken = {way: [] for way in ways}
        for _ in range(rounds):
            for way, words in ways.items():
                begin = time.perf_counter()
                subprocess.run([sys.executable, *words], capture_output=True, check=True)
                taken[way].append(time.perf_counter() - begin)
    return taken


def main() -> None:
    """Runs every regime and prints a table of each."""
    parser = parser_for(__doc__)
    choice_of(parser, "--regime", OF_MODELS)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--steps", type=int, default=12, help="of training, in each process")
    options = parsed(parser)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    start = {way: sample(taken) for way, taken in starting(15).items()}
    medians = (f"{way}: {1e3 * each['median']:.0f} ms" for way, each in start.items())
    print(", ".join(medians), "to start")
    rows = [{"starting_s": start}]
    for name in options.regime:
        row = bench(name, options.rounds, options.steps)
        rows.append(row)
        alone = row["ways"]["alone"]
        print(f"\n{name}; first run, tuning included: {row['first_run_s']:.0f} s")
        print("\n".join(row["account"]))
        print(f"{'':14}{'step ms':>10}{'over PEFT':>11}{'peak MiB':>10}{'losses differ':>15}")
        for way, figures in row["ways"].items():
            print(
                f"{way:14}{1e3 * figures['step_s']:>10.1f}"
                f"{alone['step_s'] / figures['step_s']:>10.3f}x{figures['peak_mib']:>10.0f}"
                f"{figures['largest_difference']:>15.1e}",
                flush=True,
            )
        write(options.json, rows)


if __name__ == "__main__":
    main()
