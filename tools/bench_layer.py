"""Times one LoRA layer, forward + backward: PEFT's own, autolora's, and the choice by FLOPs.

    OMP_WAIT_POLICY=passive python tools/bench_layer.py [--regime float32 ...] [--json FILE]
    python tools/bench_layer.py --device cuda --sizes 2048x4096x4096 [--compiled]

All variants run in turn in this process, on the same data; figures are medians of paired ratios.
Each problem is tuned first, into a temporary cache file. On a GPU what one step allocates at its
peak is noted too.
"""

from __future__ import annotations

import time
from statistics import geometric_mean

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.devices import device_option, sizes_option
from common.models import layer_of, one_layer
from common.regimes import Regime
from common.results import samples, write
from common.timing import against_peft, interleaved

import autolora
from autolora.graphs.unmeasured import flops_graph
from autolora.nn.adapted import adapted_layers
from autolora.nn.choosing import pin
from autolora.timing.clock import measure_for, peak_memory
from autolora.timing.statistics import paired

SHAPES = [  # tokens, in, out
    (2048, 512, 512),
    (2048, 512, 1376),
    (2048, 1376, 512),
    (2048, 768, 768),
    (1024, 1024, 4096),
    (1024, 2048, 2048),
]
RANKS = [8, 32, 128]
TARGETS = {  # regime → the speed-up aimed at, as a geometric mean over the grid
    "float32": 1.20,
    "bfloat16": 1.15,
    "bfloat16, float32 adapters, autocast": 1.20,
    "bfloat16, float32 adapters, compute_dtype": 2.0,
    "bfloat16, float32 adapters": None,
    "dropout, float32": 1.15,
    "dropout, bfloat16": 1.15,
    "dropout, bfloat16, float32 adapters, autocast": 1.15,
    "nf4, float32": 1.15,
    "nf4, bfloat16": 1.15,
    "nf4, bfloat16, float32 adapters, autocast": 1.15,
    "DoRA, float32": 1.20,
    "DoRA, bfloat16": 1.20,
    "DoRA, dropout, float32": 1.20,
}


def bench(name, shape, rank, options):
    """Tunes and times one case; returns its figures."""
    regime, device = Regime.of(name), options.device
    tokens, i, o = shape
    models = {key: one_layer(regime, i, o, rank, device) for key in ("peft", "autolora", "flops")}
    for key in ("autolora", "flops"):
        autolora.accelerate(models[key], compute_dtype=regime.compute)
    (adapted,) = adapted_layers(models["autolora"])
    start = time.perf_counter()
    problem = adapted.problem(tokens, autocast=regime.autocast_dtype)
    tuned = autolora.tune(problem, effort=options.effort, compiled=options.compiled)
    tuning = time.perf_counter() - start
    (record,) = tuned.records or tuned.skipped  # autocast and compute_dtype pose the same problem
    pin(models["flops"], flops_graph)
    layers = {key: layer_of(model) for key, model in models.items()}
    layers["floor"] = layer_of(one_layer(regime, i, o, rank, device)).base_layer
    X = torch.randn(tokens, i, dtype=regime.base, device=device, requires_grad=True)
    G = torch.randn(tokens, o, dtype=regime.base, device=device)
    if options.compiled:
        torch._dynamo.reset()
        for layer in layers.values():
            layer.compile(dynamic=False)

    context = regime.context(device.type)

    def clear(key):
        X.grad = None
        layers[key].zero_grad(set_to_none=True)

    def step(layer):
        with context:
            Y = layer(X)
        Y.backward(G)

    steps = {key: lambda layer=layer: step(layer) for key, layer in layers.items()}
    measure = measure_for(device)
    limits = {"warmup": 2, "seconds": options.seconds}
    times = interleaved(steps, options.rounds, **limits, prepare=clear, measure=measure)
    peaks = {}
    for key in steps:
        clear(key)
        peaks[key] = peak_memory(steps[key], device)
    sizes = {"regime": name, "tokens": tokens, "in": i, "out": o, "rank": rank}
    return sizes | {
        "compiled": options.compiled,
        "peak_bytes": peaks,
        **against_peft(times),
        "over_flops": paired(times["flops"], times["autolora"])[0],
        "tuning_s": tuning,
        "samples": samples(times, "peft", "flops"),
        "graph": record.winner,
    }


def summarise(name, rows):
    """Prints the means and worst cases of a regime."""
    speedups, over = ([row[key] for row in rows] for key in ("speedup", "over_flops"))
    bare = geometric_mean(row["ms"]["peft"] / row["ms"]["floor"] for row in rows)
    target = TARGETS[name]
    print(
        f"geometric mean {geometric_mean(speedups):.3f}x"
        f"{f' (target {target:.2f}x)' if target else ''}, worst case {min(speedups):.3f}x; the "
        f"bare layer would be {bare:.3f}x; over the FLOPs choice {geometric_mean(over):.3f}x, "
        f"worst {min(over):.3f}x; tuning at most {max(row['tuning_s'] for row in rows):.1f} s",
        flush=True,
    )


def main() -> None:
    """Runs the grid and prints a row per case and a summary per regime."""
    parser = parser_for(__doc__)
    choice_of(parser, "--regime", TARGETS)
    parser.add_argument("--rank", nargs="*", type=int, default=RANKS)
    parser.add_argument("--shape", nargs="*", type=int, help="indices into the list of shapes")
    sizes_option(parser)
    device_option(parser)
    parser.add_argument("--compiled", action="store_true", help="compile each layer")
    parser.add_argument("--effort", default="normal", help="of autolora.tune")
    parser.add_argument("--rounds", type=int, default=60, help="at most, per case")
    parser.add_argument("--seconds", type=float, default=4.0, help="per case, after 10 rounds")
    options = parsed(parser)
    shapes = options.sizes or [SHAPES[index] for index in options.shape or range(len(SHAPES))]
    rows = []
    with temporary_cache():
        for name in options.regime:
            print(
                f"\n{name}\n{'tokens':>7}{'in':>6}{'out':>6}{'rank':>6}{'PEFT':>10}{'ours':>10}"
                f"{'floor':>10}{'speed-up':>10}{'/FLOPs':>8}{'overhead':>10}{'tuning':>8}  graph"
            )
            these = []
            for shape in shapes:
                for rank in options.rank:
                    row = bench(name, shape, rank, options)
                    these.append(row)
                    write(options.json, rows + these)
                    ms = "".join(f"{row['ms'][k]:>7.2f} ms" for k in ("peft", "autolora", "floor"))
                    print(
                        f"{row['tokens']:>7}{row['in']:>6}{row['out']:>6}{rank:>6}{ms}"
                        f"{row['speedup']:>9.3f}x{row['over_flops']:>7.3f}x"
                        f"{-row['overhead_removed']:>+10.0%}{row['tuning_s']:>6.1f} s"
                        f"  {row['graph']}",
                        flush=True,
                    )
            summarise(name, these)
            rows += these


if __name__ == "__main__":
    main()
