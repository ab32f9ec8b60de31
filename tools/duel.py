"""Times two graphs of one problem against each other, forward and backward.

    OMP_WAIT_POLICY=passive python tools/duel.py GRAPH OTHER [--in 512 --out 512 --tokens 2048 ...]

Each is a name as ``autolora show --verbose`` prints it, ``reference`` for PEFT's. They take turns
in an order drawn anew each round; the figure is the median of the paired ratios with its standard
error. For example, whether the merged weight is worth keeping for the backward pass:

    python tools/duel.py --rank 128 --dtype bfloat16
        merged/h=recomputed/dX=merged/dA=via_z/dB=via_h
        merged/h=recomputed/V=saved/dX=merged/dA=via_z/dB=via_h
"""

from __future__ import annotations

import argparse
import random
from statistics import median

import torch

from autolora.graphs.space import find_graph
from autolora.problem import LAYOUTS, VARIANTS, Problem
from autolora.timing.accuracy import verdict
from autolora.timing.clock import measure_for
from autolora.timing.data import Data
from autolora.timing.device import plain_torch, settle_allocator
from autolora.timing.statistics import paired


def main() -> None:
    """Prints both times, their ratio, and whether each graph is as accurate as PEFT's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graphs", nargs=2, metavar="GRAPH")
    parser.add_argument("--in", dest="in_features", type=int, default=512)
    parser.add_argument("--out", dest="out_features", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapter-dtype", default="")
    parser.add_argument("--compute-dtype", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layout", default="linear", choices=LAYOUTS)
    parser.add_argument("--variant", default="lora", choices=VARIANTS)
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--rounds", type=int, default=60)
    options = vars(parser.parse_args())
    names, rounds = options.pop("graphs"), options.pop("rounds")
    gradients = ("X", "A", "B", "M") if options["variant"] == "dora" else ("X", "A", "B")
    problem = Problem(**options, gradients=gradients)
    graphs = [find_graph(name, problem) for name in names]
    for name, graph in zip(names, graphs, strict=True):
        if graph is None:
            parser.error(f"{name} is no graph of {problem}")
    device = torch.device(problem.device)
    measure = measure_for(device)
    print(problem)
    with plain_torch(device):
        settle_allocator(device)
        data = Data.random(problem, device)
        steps = [data.step(graph) for graph in graphs]
        times = [[], []]
        for number in range(rounds + 2):
            for which in random.sample((0, 1), 2):
                data.clear()
                taken = measure(steps[which])
                if number >= 2:
                    times[which].append(taken)
        for name, graph, taken in zip(names, graphs, times, strict=True):
            judged = verdict(graph, problem, device)
            print(f"{median(taken) / 1e6:9.3f} ms  {name}  {judged.reason or 'accurate'}")
    ratio, noise = paired(*times)
    print(f"the second is {ratio:.3f}x ± {noise:.3f} as fast as the first")


if __name__ == "__main__":
    main()
