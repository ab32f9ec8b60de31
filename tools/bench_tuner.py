"""How good the tuner's choices are, and what they cost, against timing every valid graph.

    OMP_WAIT_POLICY=passive python tools/bench_tuner.py [--problems 0 5] [--json FILE]
    OMP_WAIT_POLICY=passive python tools/bench_tuner.py --tokens 128:1024 --counts 40

The first form chooses a graph for twelve problems in five ways: timing every valid graph at length;
the tuner; the tuner beside a process that keeps a processor busy; the least FLOPs, which is the
paper's criterion; and forward, then backward with a fixed time per graph, the paper's time
criterion. The choices are then timed again in turn. *Regret* is the time of a choice divided by
that of the first way.

The second form tunes a range of token counts and measures, at counts that were not tuned, the
regret of the interpolated choice.

*Every valid graph* is each composition with BLAS alone, with oneDNN wherever possible, and with
the faster library in isolation for each product; then, for the best few compositions, with every
choice of libraries. A graph that takes 1.5 times as long as the best in two rounds is not timed
further, unless ``--keep-beaten`` is given.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from itertools import chain, combinations, product
from statistics import median

from common.arguments import parsed, parser_for, temporary_cache
from common.devices import device_option, sizes_option
from common.passes import by_time_of_each_pass
from common.results import samples, write
from common.timing import a_busy_neighbour, interleaved

from autolora import Problem, TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.capture.tokens import Tokens
from autolora.environment import Environment
from autolora.graphs.base import REFERENCE
from autolora.graphs.space import find_graph, products_worth_onednn, reference_graph, valid_graphs
from autolora.graphs.unmeasured import flops_graph
from autolora.timing.accuracy import verdict
from autolora.timing.clock import measure_for
from autolora.timing.data import Data
from autolora.timing.device import device_for, plain_torch, settle_allocator
from autolora.timing.measurement import measure_problem
from autolora.timing.screen import screen
from autolora.timing.statistics import compare, typical
from autolora.tuning.tuner import tune_problems

BF16, F32 = "bfloat16", "float32"
PROBLEMS = [
    Problem(512, 512, 512, 8, F32, "cpu"),
    Problem(512, 1376, 256, 16, F32, "cpu"),
    Problem(1376, 512, 256, 8, F32, "cpu"),
    Problem(768, 768, 256, 64, F32, "cpu", bias=True),
    Problem(512, 512, 512, 8, F32, "cpu", gradients=("A", "B")),
    Problem(768, 2304, 128, 8, F32, "cpu", layout="conv1d", bias=True),
    Problem(512, 512, 256, 16, F32, "cpu", dropout=True),
    Problem(512, 512, 1024, 8, BF16, "cpu"),
    Problem(768, 2048, 512, 16, BF16, "cpu"),
    Problem(768, 768, 512, 128, BF16, "cpu", bias=True),
    Problem(1024, 1024, 512, 16, BF16, "cpu", adapter_dtype=F32, compute_dtype=BF16),
    Problem(768, 768, 512, 8, BF16, "cpu", adapter_dtype=F32),
]
RANGED = [
    Problem(512, 512, 1, 8, F32, "cpu"),
    Problem(512, 1024, 1, 32, F32, "cpu"),
    Problem(512, 512, 1, 16, BF16, "cpu"),
    Problem(512, 768, 1, 64, BF16, "cpu", adapter_dtype=F32, compute_dtype=BF16),
]
TIMES = 16  # that each composition is timed, its libraries together
BEST = 32  # graphs that are timed at length in the end
HOPELESS = 1.5


def main() -> None:
    """Runs one of the two forms."""
    parser = parser_for(__doc__)
    parser.add_argument("--problems", nargs="*", type=int, default=range(len(PROBLEMS)))
    parser.add_argument("--effort", default="normal", help="of the tuner")
    parser.add_argument("--paper-seconds", type=float, default=6.0, help="per graph, in its way")
    parser.add_argument(
        "--keep-beaten", action="store_true", help="time every valid graph to the end"
    )
    parser.add_argument("--tokens", help="LOW:HIGH: show interpolated choices instead")
    parser.add_argument("--counts", type=int, default=40, help="of unseen token counts")
    device_option(parser)
    sizes_option(parser)
    options = parsed(parser)
    settle_allocator(options.device)
    on = {"device": options.device.type}
    with plain_torch(options.device):
        if options.tokens:
            ranged = [replace(family, **on) for family in RANGED]
            tokens = Tokens.of(options.tokens)
            for rows in unseen_counts(ranged, tokens, options.counts, options.effort):
                write(options.json, rows)
            return
        rows = []
        names = ("tokens", "in_features", "out_features")
        for number, sizes in product(options.problems, options.sizes or [()]):
            problem = replace(PROBLEMS[number], **on, **dict(zip(names, sizes, strict=False)))
            hopeless = math.inf if options.keep_beaten else HOPELESS
            rows.append(regrets(problem, options.effort, options.paper_seconds, hopeless))
            write(options.json, rows)
        summarise(rows)


def regrets(problem, effort, paper_seconds, hopeless):
    """Times the five choices for a problem together; prints them and returns a row."""
    device = device_for(problem)
    environment = Environment.of(device)
    chosen, seconds = {}, {}

    def timed(name, choose):
        start = time.perf_counter()
        chosen[name] = choose()
        seconds[name] = time.perf_counter() - start

    timed("exhaustive", lambda: exhaustive(problem, TIMES, hopeless))
    timed("tuner", lambda: measure_problem(problem, device, environment, effort=effort))
    with a_busy_neighbour():
        timed("busy", lambda: measure_problem(problem, device, environment, effort=effort))
    timed("flops", lambda: flops_graph(problem))
    timed("paper", lambda: by_time_of_each_pass(problem, paper_seconds, device))
    noisy = chosen["busy"].conditions["noisy"]
    graphs = {
        name: find_graph(c.winner, problem) if name in ("tuner", "busy") else c
        for name, c in chosen.items()
    }
    graphs["PEFT"] = reference_graph(problem)
    times = timed_together(Data.random(problem, device), graphs)
    ratios = {name: compare(times[name], times["exhaustive"]) for name in times}
    row = {
        "problem": str(problem),
        "graphs": {name: graph.name for name, graph in graphs.items()},
        "seconds": seconds,
        "regret": {name: ratio for name, (ratio, _) in ratios.items()},
        "noise": {name: noise for name, (_, noise) in ratios.items()},
        "noisy": noisy,
        "samples": samples(times, "exhaustive"),
    }
    print(f"{problem}: every valid graph took {seconds['exhaustive']:.0f} s", flush=True)
    for name in ("tuner", "busy", "flops", "paper", "PEFT"):
        cost = f"{seconds[name]:8.2f} s" if name in seconds else " " * 10
        told = "  said to be too noisy" if name == "busy" and noisy else ""
        ratio, noise = ratios[name]
        print(f"  {name:<6} regret {ratio:.3f} ± {noise:.3f} {cost}{told}", flush=True)
    return row


def summarise(rows):
    """Prints the median and the worst regret of each way to choose, and its cost."""
    print(f"\n{'':<8}{'median':>8}{'worst':>8}{'time':>12}{'of all graphs':>15}")
    for name in ("tuner", "busy", "flops", "paper", "PEFT"):
        found = [row["regret"][name] for row in rows]
        line = f"{name:<8}{median(found):>8.3f}{max(found):>8.3f}"
        if name in rows[0]["seconds"] and name != "flops":
            cost = [row["seconds"][name] for row in rows]
            less = [row["seconds"]["exhaustive"] / row["seconds"][name] for row in rows]
            line += (
                f"{median(cost):>10.2f} s{f'1/{median(less):.0f}':>15}, at least 1/{min(less):.0f}"
            )
        print(line)
    quiet = [row["regret"]["busy"] for row in rows if not row["noisy"]]
    said = sum(row["noisy"] for row in rows)
    worst = f", worst of the others {max(quiet):.3f}" if quiet else ""
    print(f"beside a busy neighbour {said} of {len(rows)} were said to be too noisy{worst}")


def exhaustive(problem, times, hopeless=HOPELESS):
    """The fastest accurate graph of all."""
    data = Data.random(problem, device_for(problem))
    measure = measure_for(data.X.device)
    rng = random.Random(0)
    graphs = [g for g in valid_graphs(problem).values() if g.forward != REFERENCE]
    everywhere = [replace(g, onednn=products_worth_onednn(g, problem)) for g in graphs]
    isolated = [p.graph for p in screen(graphs, data, measure, rng)]
    entered = list(dict.fromkeys([*graphs, *everywhere, *isolated]))
    rounds = max(2, times * len(graphs) // len(entered))
    steps = {graph: data.step(graph) for graph in entered}
    taken = {graph: [] for graph in entered}
    running = entered
    for number in range(rounds):
        for graph in rng.sample(running, len(running)):
            data.clear()
            taken[graph].append(measure(steps[graph]))
        if number == 1:
            best = min(min(each) for each in taken.values())
            running = [g for g in running if min(taken[g]) <= hopeless * best]
    running.sort(key=lambda graph: typical(taken[graph]))
    few = list(dict.fromkeys(replace(g, onednn=frozenset()) for g in running[:BEST]))[:8]
    some = [
        replace(g, onednn=frozenset(chosen))
        for g in few
        for chosen in subsets(products_worth_onednn(g, problem))
    ]
    finalists = list(dict.fromkeys([*running[:BEST], *some]))
    samples = timed_together(data, {g: g for g in finalists}, rounds=8)
    finalists.sort(key=lambda graph: typical(samples[graph]))
    ordered = timed_together(data, {g: g for g in finalists[:BEST]}, rounds=3 * times)
    for graph in sorted(ordered, key=lambda graph: typical(ordered[graph])):
        if verdict(graph, problem, data.X.device).ok:
            return graph
    return reference_graph(problem)


def timed_together(data, graphs, rounds=60):
    """Times of each graph, in rounds, by its name in the mapping."""
    steps = {name: data.step(graph) for name, graph in graphs.items()}
    measure = measure_for(data.X.device)
    return interleaved(steps, rounds, prepare=lambda _: data.clear(), measure=measure)


def subsets(names):
    """Every subset of the names."""
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def unseen_counts(ranged, tokens, counts, effort):
    """Tunes a range, and compares the interpolated choice with the best at other counts.

    Yields the rows of all counts so far after each.
    """
    rng = random.Random(0)
    environment = Environment.of(device_for(ranged[0]))
    rows = []
    with temporary_cache() as path:
        problems = [family.at(count) for family in ranged for count in tokens.counts]
        start = time.perf_counter()
        tune_problems(problems, cache=path, effort=effort, between=tokens.ranged)
        spent = time.perf_counter() - start
        cache = TimingCache.load(path)
        known = {family: cache.token_counts(family)[environment] for family in ranged}
        for family, measured in known.items():
            print(f"{family.at(tokens.counts[0])} …: tuned at {measured}")
        print(f"tuned in {spent:.0f} s", flush=True)
        lookup = Lookup.of(cache)
        while len(rows) < counts:
            family = ranged[len(rows) * len(ranged) // counts]  # whose graphs are made once
            low, high = tokens.counts[0], tokens.counts[-1]
            count = round(low * (high / low) ** rng.random())
            if count in known[family]:
                continue
            problem = family.at(count)
            valid = lambda name, problem=problem: find_graph(name, problem) is not None  # noqa: E731
            answer = lookup.find(problem, environment, valid)
            best = exhaustive(problem, 6)
            graphs = {"interpolated": find_graph(answer.graph, problem), "best": best}
            times = timed_together(Data.random(problem, device_for(problem)), graphs)
            ratio, noise = compare(times["interpolated"], times["best"])
            row = {"problem": str(problem), "reason": answer.reason, "regret": ratio}
            rows.append(row | {"noise": noise, "samples": samples(times, "best")})
            print(f"  {problem}: {answer.reason} {ratio:.3f} ± {noise:.3f}", flush=True)
            yield rows
    regrets = sorted(row["regret"] for row in rows)
    within = sum(regret <= 1.03 for regret in regrets)
    print(
        f"within 3 % of the best of all graphs at {within} of {len(regrets)} counts "
        f"({within / len(regrets):.0%}); median {median(regrets):.3f}, worst {regrets[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
