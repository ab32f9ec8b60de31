"""Times one LoRA layer, forward + backward: PEFT's own, autolora's, and the choice by FLOPs.

    OMP_WAIT_POLICY=passive python tools/bench_layer.py [--regime float32 ...] [--json FILE]

Everything that is compared runs interleaved in this process, on the same data; figures are medians
of paired ratios. Each problem is tuned first, into a temporary cache file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import peft
import torch
from torch import nn

import autolora
from autolora.graphs.space import flops_graph
from autolora.nn.adapted import adapted_layers
from autolora.nn.dispatch import pin
from autolora.timing.quantise import quantised
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
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Regime:
    """How the layer is trained.

    Args:
        base: dtype of the base, or what it is quantised to compute in.
        adapter: dtype of the adapters.
        target: the speed-up aimed at, as a geometric mean over the grid.
        autocast: whether in bfloat16.
        compute: autolora's compute_dtype.
        layout: linear, or nf4.
        lora: more of PEFT's configuration.
    """

    base: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    target: float | None = None
    autocast: bool = False
    compute: torch.dtype | None = None
    layout: str = "linear"
    lora: dict[str, Any] = field(default_factory=dict)


DROPOUT, DORA = {"lora_dropout": 0.1}, {"use_dora": True}
REGIMES = {
    "float32": Regime(target=1.20),
    "bfloat16": Regime(BF16, BF16, 1.15),
    "bfloat16, float32 adapters, autocast": Regime(BF16, target=1.20, autocast=True),
    "bfloat16, float32 adapters, compute_dtype": Regime(BF16, target=2.0, compute=BF16),
    "bfloat16, float32 adapters": Regime(BF16),
    "dropout, float32": Regime(target=1.15, lora=DROPOUT),
    "dropout, bfloat16": Regime(BF16, BF16, 1.15, lora=DROPOUT),
    "dropout, bfloat16, float32 adapters, autocast": Regime(
        BF16, target=1.15, autocast=True, lora=DROPOUT
    ),
    "nf4, float32": Regime(target=1.15, layout="nf4"),
    "nf4, bfloat16": Regime(BF16, BF16, 1.15, layout="nf4"),
    "nf4, bfloat16, float32 adapters, autocast": Regime(
        BF16, target=1.15, autocast=True, layout="nf4"
    ),
    "DoRA, float32": Regime(target=1.20, lora=DORA),
    "DoRA, bfloat16": Regime(BF16, BF16, 1.20, lora=DORA),
    "DoRA, dropout, float32": Regime(target=1.20, lora=DORA | DROPOUT),
}


class One(nn.Module):
    """A model of a single linear layer, which PEFT can adapt."""

    def __init__(self, in_features: int, out_features: int, regime: Regime) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False, dtype=regime.base)
        self.is_loaded_in_4bit = regime.layout == "nf4"
        if self.is_loaded_in_4bit:
            self.linear = quantised(self.linear.weight.data, None, "nf4")

    def forward(self, x):
        """X → Y."""
        return self.linear(x)


def peft_model(shape, rank, regime):
    """A PEFT model of one layer with adapters that have been trained a little."""
    _, i, o = shape
    torch.manual_seed(0)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["linear"], **regime.lora)
    model = peft.get_peft_model(One(i, o, regime), config, autocast_adapter_dtype=False)
    layer = model.base_model.model.linear
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        part.to(regime.adapter)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    return model.train()


def bench(regime, shape, rank, rounds, seconds):
    """Tunes one case and times it; the ratios and times of the case."""
    how = REGIMES[regime]
    tokens, i, o = shape
    models = {name: peft_model(shape, rank, how) for name in ("peft", "autolora", "flops")}
    context = torch.autocast("cpu", BF16) if how.autocast else nullcontext()
    for name in ("autolora", "flops"):
        autolora.accelerate(models[name], compute_dtype=how.compute)
    (adapted,) = adapted_layers(models["autolora"])
    start = time.perf_counter()
    tuned = autolora.tune(adapted.problem(tokens, autocast=BF16 if how.autocast else None))
    (record,) = tuned.records or tuned.skipped  # autocast and compute_dtype pose the same problem
    tuning = time.perf_counter() - start
    pin(models["flops"], flops_graph)
    models["floor"] = peft_model(shape, rank, how).base_model.model.linear.base_layer
    X = torch.randn(tokens, i, dtype=how.base, requires_grad=True)
    G = torch.randn(tokens, o, dtype=how.base)
    layers = {
        name: m if name == "floor" else m.base_model.model.linear for name, m in models.items()
    }
    samples = {name: [] for name in layers}
    names = list(layers)
    end = time.perf_counter() + seconds
    for number in range(rounds + 2):
        random.shuffle(names)
        for name in names:
            X.grad = None
            models[name].zero_grad(set_to_none=True)
            start = time.perf_counter()
            with context:
                Y = layers[name](X)
            Y.backward(G)
            if number >= 2:
                samples[name].append(time.perf_counter() - start)
        if number >= 12 and time.perf_counter() > end:
            break
    times = {name: median(taken) for name, taken in samples.items()}
    return {
        "regime": regime,
        "tokens": tokens,
        "in": i,
        "out": o,
        "rank": rank,
        "speedup": paired(samples["peft"], samples["autolora"])[0],
        "over_flops": paired(samples["flops"], samples["autolora"])[0],
        "overhead_removed": (times["peft"] - times["autolora"]) / (times["peft"] - times["floor"]),
        "tuning_s": tuning,
        "rounds": len(samples["peft"]),
        "ms": {name: round(t * 1e3, 3) for name, t in times.items()},
        "graph": record.winner,
    }


def main() -> None:
    """Runs the grid and prints a row per case and a summary per regime."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regime", nargs="*", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--rank", nargs="*", type=int, default=RANKS)
    parser.add_argument("--shape", nargs="*", type=int, help="indices into the list of shapes")
    parser.add_argument("--rounds", type=int, default=60, help="at most, per case")
    parser.add_argument("--seconds", type=float, default=4.0, help="per case, after 10 rounds")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOLORA_CACHE"] = str(Path(folder) / "timings.v1.json")
        for regime in options.regime:
            print(
                f"\n{regime}\n{'tokens':>7}{'in':>6}{'out':>6}{'rank':>6}{'PEFT':>10}{'ours':>10}"
                f"{'floor':>10}{'speed-up':>10}{'/FLOPs':>8}{'overhead':>10}{'tuning':>8}  graph"
            )
            for index, shape in enumerate(SHAPES):
                if options.shape and index not in options.shape:
                    continue
                for rank in options.rank:
                    row = bench(regime, shape, rank, options.rounds, options.seconds)
                    rows.append(row)
                    ms = row["ms"]
                    print(
                        f"{row['tokens']:>7}{row['in']:>6}{row['out']:>6}{rank:>6}"
                        f"{ms['peft']:>7.2f} ms{ms['autolora']:>7.2f} ms{ms['floor']:>7.2f} ms"
                        f"{row['speedup']:>9.3f}x{row['over_flops']:>7.3f}x"
                        f"{-row['overhead_removed']:>+10.0%}{row['tuning_s']:>6.1f} s"
                        f"  {row['graph']}",
                        flush=True,
                    )
            these = [row for row in rows if row["regime"] == regime]
            bare = geometric_mean(row["ms"]["peft"] / row["ms"]["floor"] for row in these)
            target = REGIMES[regime].target
            print(
                f"geometric mean {geometric_mean(r['speedup'] for r in these):.3f}x"
                f"{f' (target {target:.2f}x)' if target else ''}, "
                f"worst case {min(r['speedup'] for r in these):.3f}x; the bare layer would be "
                f"{bare:.3f}x; over the FLOPs choice "
                f"{geometric_mean(r['over_flops'] for r in these):.3f}x, worst "
                f"{min(r['over_flops'] for r in these):.3f}x; tuning at most "
                f"{max(r['tuning_s'] for r in these):.1f} s",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
