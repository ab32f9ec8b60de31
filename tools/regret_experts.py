"""How much slower the tuned graphs of experts are than the best of all graphs × executors.

    OMP_WAIT_POLICY=passive python tools/regret_experts.py [--case 0 1 ...] [--json FILE]

Every valid graph runs with every pair of executors, one for its base products and one for its thin
ones. All are timed in turn, and the better half again until few are left; these, the tuned graph
and PEFT's path then run in turn in many rounds. The regret is the median of the paired ratios of
the tuned graph's time to that of the best.
"""

from __future__ import annotations

import random
import time
from itertools import product
from statistics import median

import torch
from common.arguments import parsed, parser_for, temporary_cache
from common.results import samples, write
from common.timing import interleaved

import autolora
from autolora.graphs.experts.graph import EXECUTORS, ExpertsGraph
from autolora.graphs.experts.space import find_graph, reference_graph, structures, uniform
from autolora.problem import Experts
from autolora.timing.clock import cpu_measure
from autolora.timing.experts.data import Data
from autolora.timing.statistics import paired

PROBLEMS = [
    Experts(512, 512, 512, 16, 4, 8, "float32", "cpu"),
    Experts(512, 512, 512, 16, 4, 8, "bfloat16", "cpu"),
    Experts(512, 384, 512, 64, 8, 8, "float32", "cpu"),
    Experts(192, 512, 512, 64, 8, 8, "bfloat16", "cpu", adapter_dtype="float32"),
    Experts(512, 512, 2048, 16, 4, 64, "float32", "cpu", load="skewed"),
    Experts(512, 384, 512, 64, 8, 8, "bfloat16", "cpu", load="skewed"),
]
FEW = 12  # graphs that run in many rounds
SLOWEST = 2.5  # times the fastest so far: what takes longer is not timed again


def every_graph(problem):
    """All graphs, each with all pairs of executors; those that run alike once."""
    found = {
        graph.name: graph
        for each in structures(problem)
        for base, thin in product(EXECUTORS, EXECUTORS)
        for graph in [uniform(each, problem, base, thin)]
    }
    return list(found.values())


def best_of(graphs, data):
    """The few fastest graphs: all are timed, and the better half again."""
    steps = {graph: data.step(graph) for graph in graphs}
    times = {graph: [] for graph in graphs}
    left = list(graphs)
    while len(left) > FEW:
        fastest = min((min(t) for t in times.values() if t), default=float("inf"))
        for graph in random.sample(left, len(left)):
            if not times[graph] or min(times[graph]) <= SLOWEST * fastest:
                data.clear()
                times[graph].append(cpu_measure(steps[graph]))
        left.sort(key=lambda graph: min(times[graph]))
        left = left[: max(FEW, len(left) // 2)]
    data.clear()
    return left


def regret(problem, rounds):
    """Tunes one problem and compares with all graphs; returns its figures."""
    begin = time.perf_counter()
    with temporary_cache():
        record = autolora.tune(problem).records[0]
    tuning = time.perf_counter() - begin
    chosen = find_graph(record.winner, problem)
    data = Data.random(problem, torch.device("cpu"), seed=3)
    graphs = every_graph(problem)
    few = best_of(graphs, data)
    racing: list[ExpertsGraph] = list(dict.fromkeys([*few, chosen, reference_graph(problem)]))
    times = interleaved(
        {graph.name: data.step(graph) for graph in racing},
        rounds,
        prepare=lambda name: data.clear(),
    )
    medians = {name: median(taken) for name, taken in times.items()}
    best = min(medians, key=medians.get)
    return {
        "problem": problem.title,
        "graphs": len(graphs),
        "chosen": chosen.name,
        "best": best,
        "regret": paired(times[chosen.name], times[best])[0],
        "over_peft": paired(times["reference"], times[chosen.name])[0],
        "samples": samples(times, best),
        "tuning_s": round(tuning, 1),
    }


def main() -> None:
    """Runs the problems and prints the regret of each."""
    parser = parser_for(__doc__)
    parser.add_argument("--case", nargs="*", type=int, help="indices into the list of problems")
    parser.add_argument("--rounds", type=int, default=60)
    options = parsed(parser)
    rows = []
    for index in options.case or range(len(PROBLEMS)):
        row = regret(PROBLEMS[index], options.rounds)
        rows.append(row)
        print(
            f"{row['problem']}: regret {row['regret']:.3f} of {row['graphs']} graphs, over PEFT "
            f"{row['over_peft']:.3f}x, tuned in {row['tuning_s']} s\n   chosen {row['chosen']}\n"
            f"   best   {row['best']}",
            flush=True,
        )
        write(options.json, rows)
    regrets = [row["regret"] for row in rows]
    print(f"median {median(regrets):.3f}, worst {max(regrets):.3f}")


if __name__ == "__main__":
    main()
