"""Whether the tuner decides, and decides alike when it is run again, for slow and for tiny steps.

    OMP_WAIT_POLICY=passive python tools/bench_noise.py [--only llama] [--runs 3] [--json FILE]

Tunes the six LoRA problems of an 8B Llama at 512 tokens in bfloat16 with a budget, and twenty tiny
problems without one, several times, each time into a cache of its own. Prints the undecided or
disturbed records (noisy) of each run, and for two runs with different winners how much slower the
first run's winner is in the times of the second. With ``--json`` a run is added to those that the
file holds, so that the runs need not be made at once.
"""

from __future__ import annotations

import json
import os
import time
from itertools import combinations
from typing import Any

from common.arguments import parsed, parser_for, temporary_cache
from common.comparisons import other_winners
from common.results import write

from autolora import Problem
from autolora.tuning.tuner import tune_problems

SHAPES = {"q, o": (4096, 4096), "k, v": (4096, 1024), "gate, up": (4096, 14336)}
SHAPES |= {"down": (14336, 4096)}
LLAMA = {name: Problem(i, o, 512, 16, "bfloat16", "cpu") for name, (i, o) in SHAPES.items()}
LLAMA |= {
    f"{name} of the first layer": Problem(4096, o, 512, 16, "bfloat16", "cpu", gradients=("A", "B"))
    for name, o in (("q", 4096), ("k, v", 1024))
}
TINY = {
    f"{i}->{o} r{rank}": Problem(i, o, 64, rank, "float32", "cpu")
    for i, o in ((64, 96), (96, 64), (64, 64), (96, 96), (64, 128))
    for rank in (2, 4, 6, 8)
}
GROUPS = {"llama": LLAMA, "tiny": TINY}


def main() -> None:
    """Tunes each group a few times and compares the runs."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", choices=GROUPS, help="one group of problems")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of a run of llama")
    options = parsed(parser)
    runs: dict[str, list[Any]] = {name: [] for name in GROUPS}
    if options.json and options.json.exists():
        runs |= json.loads(options.json.read_text())["rows"][0]
    for group in [options.only] if options.only else GROUPS:
        for _ in range(options.runs):
            budget = options.budget if group == "llama" else None
            runs[group].append(tuned(GROUPS[group], budget))
            write(options.json, [runs])
        show(group, runs[group])


def tuned(problems: dict[str, Problem], budget: float | None) -> dict[str, Any]:
    """One run: what it took, and of each problem the winner and how sure that is."""
    names = {problem: name for name, problem in problems.items()}
    start, load = time.monotonic(), os.getloadavg()[0]
    with temporary_cache():
        result = tune_problems(list(names), budget=budget)
    rows = {}
    for record in result.records:
        found = record.conditions
        rows[names[record.problem]] = {
            "winner": record.winner,
            "median_ns": {c.graph: c.median_ns for c in record.candidates if c.median_ns},
            "rounds": {c.graph: c.rounds for c in record.candidates if c.median_ns},
            "seconds": record.seconds,
            **{key: found.get(key) for key in ("noisy", "noise", "within", "others_busy", "steal")},
        }
    seconds = round(time.monotonic() - start, 1)
    return {"seconds": seconds, "budget": budget, "load_before": load, "problems": rows}


def show(group: str, runs: list[dict[str, Any]]) -> None:
    """Prints the runs of a group, and each pair of them."""
    for number, run in enumerate(runs):
        rows = run["problems"]
        noisy = sum(row["noisy"] for row in rows.values())
        print(f"\n{group}, run {number}: {noisy} of {len(rows)} noisy, {run['seconds']} s")
        for name, row in rows.items():
            step = row["median_ns"][row["winner"]] / 1e6
            print(
                f"  {name:25} {step:8.3f} ms {row['seconds']:6.1f} s  within {row['within']:6.2%}"
                f"  rounds {row['rounds'][row['winner']]:4}  others {row['others_busy'] or 0:4.0%}"
                f"{'  noisy' if row['noisy'] else ''}  {row['winner']}"
            )
    for (number, first), (other, second) in combinations(enumerate(runs), 2):
        losses = other_winners(first, second)
        same = len(first["problems"]) - len(losses)
        print(f"{group}, runs {number} and {other}: {same} winners are the same")
        for name, loss in losses.items():
            print(f"  {name:25} {'not timed again' if loss is None else f'{loss:+.2%}'}")


if __name__ == "__main__":
    main()
