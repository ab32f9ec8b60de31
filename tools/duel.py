"""Times two graphs of one problem against each other, forward and backward.

    OMP_WAIT_POLICY=passive python tools/duel.py GRAPH OTHER [--in 512 --out 512 --tokens 2048 ...]

Each graph is a name as ``autolora show --verbose`` prints it, ``reference`` for PEFT's. They run in
turn, in random order; the figure is the median of the paired ratios with its standard error. For
example, whether the merged weight is worth saving for the backward pass:

    python tools/duel.py --rank 128 --dtype bfloat16
        merged/h=recomputed/dX=merged/dA=via_z/dB=via_h
        merged/h=recomputed/V=saved/dX=merged/dA=via_z/dB=via_h
"""

from __future__ import annotations

from statistics import median

import torch
from common.arguments import parsed, parser_for
from common.results import samples, write
from common.timing import interleaved

from autolora.graphs.space import find_graph
from autolora.problem import LAYOUTS, VARIANTS, Problem
from autolora.timing.accuracy import verdict
from autolora.timing.clock import measure_for
from autolora.timing.data import Data
from autolora.timing.device import plain_torch, settle_allocator
from autolora.timing.statistics import paired


def main() -> None:
    """Prints both times, their ratio, and whether each graph is as accurate as PEFT's."""
    parser = parser_for(__doc__)
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
    options = vars(parsed(parser))
    names, rounds, path, _ = (options.pop(key) for key in ("graphs", "rounds", "json", "threads"))
    gradients = ("X", "A", "B", "M") if options["variant"] == "dora" else ("X", "A", "B")
    problem = Problem(**options, gradients=gradients)
    graphs = [find_graph(name, problem) for name in names]
    for name, graph in zip(names, graphs, strict=True):
        if graph is None:
            parser.error(f"{name} is no graph of {problem}")
    device = torch.device(problem.device)
    print(problem)
    with plain_torch(device):
        settle_allocator(device)
        data = Data.random(problem, device)
        times = interleaved(
            dict(enumerate(map(data.step, graphs))),
            rounds,
            warmup=2,
            prepare=lambda _: data.clear(),
            measure=measure_for(device),
        )
        for name, graph, taken in zip(names, graphs, times.values(), strict=True):
            judged = verdict(graph, problem, device)
            print(f"{median(taken) / 1e6:9.3f} ms  {name}  {judged.reason or 'accurate'}")
    ratio, noise = paired(*times.values())
    print(f"the second is {ratio:.3f}x ± {noise:.3f} as fast as the first")
    found = {"graphs": names, "samples": samples(times, 0), "ratio": ratio, "noise": noise}
    write(path, [{"problem": problem.to_json(), **found}])


if __name__ == "__main__":
    main()
