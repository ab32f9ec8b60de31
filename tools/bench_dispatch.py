"""Times what is left when the tensor operations are nothing: dispatch, a tiny layer, the import.

    OMP_WAIT_POLICY=passive python tools/bench_dispatch.py [--json FILE]

Dispatch is the whole call of an accelerated layer whose graph has been replaced by one that gives a
ready tensor, less the same call of an empty module. The tiny layer is 64→64 with one token, forward
and backward, against PEFT's own, interleaved. The import is ``import torch, autolora`` against
``import torch``, in new processes in turns.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import torch
from common.arguments import parsed, parser_for, temporary_cache
from common.models import layer_of, one_layer
from common.regimes import Regime
from common.results import sample, samples, write
from common.timing import interleaved
from torch import nn

import autolora
from autolora.nn.adapted import adapted_layers
from autolora.timing.statistics import paired


class Empty(nn.Module):
    """A module that does nothing."""

    def forward(self, x):
        """X → X."""
        return x


def per_call(call, calls=2000):
    """Nanoseconds of one call in each of several batches."""
    found = []
    for _ in range(15):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        found.append((time.perf_counter_ns() - start) / calls)
    return found


def dispatch():
    """Microseconds of look-up and dispatch on a hit, for a PEFT layer and for LoRALinear.

    ``least`` is the least of the batches, since nothing can make a call faster.
    """
    x = torch.randn(1, 64)
    Y = torch.randn(1, 64)
    peft_layer = one_layer(Regime(), 64, 64, 8)
    autolora.accelerate(peft_layer)
    layers = {
        "PEFT layer": layer_of(peft_layer),
        "LoRALinear": autolora.LoRALinear(64, 64, 8, alpha=8),
    }
    figures = {}
    with torch.no_grad():
        empty = Empty()
        nothing = min(per_call(lambda: empty(x)))
        for name, layer in layers.items():
            (adapted,) = adapted_layers(layer)
            autolora.tune(adapted.problem(1, gradients=()))
            layer(x)
            (choice,) = layer._autolora.choices.values()
            assert choice.reason == "exact", choice
            if choice.executable is None:
                raise SystemExit("the reference graph won: nothing is dispatched; run again")
            choice.executable = replace(choice.executable, forward=lambda *_: (Y, ()))
            taken = [(ns - nothing) / 1e3 for ns in per_call(lambda layer=layer: layer(x))]
            figures[name] = {"least": min(taken), **sample(taken)}
    return figures


def tiny():
    """Speed-up over PEFT's layer where only overhead counts."""
    plain = one_layer(Regime(), 64, 64, 8)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    autolora.tune(adapted_layers(fast)[0].problem(1))
    x, G = torch.randn(1, 64, requires_grad=True), torch.randn(1, 64)

    def ten_calls(layer):
        for _ in range(10):
            layer(x).backward(G)

    layers = {"peft": layer_of(plain), "autolora": layer_of(fast)}
    steps = {name: lambda layer=layer: ten_calls(layer) for name, layer in layers.items()}
    times = interleaved(steps, 400, warmup=0)
    return {
        "speedup": paired(times["peft"], times["autolora"])[0],
        "us": {name: median(taken) / 1e4 for name, taken in times.items()},
        "samples": samples(times, "peft"),  # ten calls
    }


def imports(pairs=15):
    """Milliseconds that ``import autolora`` adds to ``import torch``."""
    added = []
    for _ in range(pairs):
        took = {}
        for code in ("import torch", "import torch, autolora"):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            took[code] = time.perf_counter() - start
        added.append((took["import torch, autolora"] - took["import torch"]) * 1e3)
    return sample(added)


def main() -> None:
    """Prints the three figures."""
    options = parsed(parser_for(__doc__))
    figures = {}
    with temporary_cache():
        for name, found in (("dispatch_us", dispatch), ("tiny", tiny), ("import_ms", imports)):
            figures[name] = found()
            write(options.json, [figures])
    for name, us in figures["dispatch_us"].items():
        print(f"look-up and dispatch on a hit, {name}: {us['least']:.2f} µs a call")
    us = figures["tiny"]["us"]
    print(
        f"1 token, 64→64, forward + backward: PEFT {us['peft']:.1f} µs, autolora "
        f"{us['autolora']:.1f} µs, {figures['tiny']['speedup']:.2f}x"
    )
    print(f"import autolora adds {figures['import_ms']['median']:.0f} ms to import torch")


if __name__ == "__main__":
    main()
