"""Shows what autograd keeps from forward to backward for one layer: PEFT's beside autolora's.

    python tools/saved_bytes.py [--regime float32 ...] [--json FILE]

Counted is what torch.autograd.graph.saved_tensors_hooks sees and what is still held when the
forward has returned: each storage once, X included where it is kept, parameters and W left out.
``default`` is the graph that runs untuned; ``leanest`` and ``largest`` are, of all valid graphs but
PEFT's own, those that keep the least and the most. Graphs that keep the same tensors of the same
forward are measured once. It exits with 1 if any graph keeps more than PEFT's layer does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: nothing here is downloaded

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import autolora
from autolora.graphs.graph import REFERENCE
from autolora.graphs.space import valid_graphs
from autolora.nn.adapted import adapted_layers
from autolora.nn.dispatch import pin
from autolora.timing.quantise import quantised

BF16 = torch.bfloat16
MIB = 2**20
DROPOUT, DORA = {"lora_dropout": 0.1}, {"use_dora": True}


@dataclass(frozen=True)
class Regime:
    """How the layer is trained.

    Args:
        base: dtype of the base, or what it is quantised to compute in.
        adapter: dtype of the adapters.
        autocast: whether in bfloat16.
        compute: autolora's compute_dtype.
        layout: linear, conv1d or nf4.
        lora: more of PEFT's configuration.
    """

    base: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    autocast: bool = False
    compute: torch.dtype | None = None
    layout: str = "linear"
    lora: dict[str, Any] = field(default_factory=dict)


REGIMES = {
    "float32": Regime(),
    "bfloat16": Regime(BF16, BF16),
    "bfloat16, float32 adapters": Regime(BF16),
    "bfloat16, float32 adapters, autocast": Regime(BF16, autocast=True),
    "bfloat16, float32 adapters, compute_dtype": Regime(BF16, compute=BF16),
    "float32, bfloat16 adapters": Regime(adapter=BF16),
    "dropout, float32": Regime(lora=DROPOUT),
    "dropout, bfloat16": Regime(BF16, BF16, lora=DROPOUT),
    "DoRA, float32": Regime(lora=DORA),
    "DoRA, bfloat16": Regime(BF16, BF16, lora=DORA),
    "DoRA, dropout, float32": Regime(lora=DORA | DROPOUT),
    "DoRA, dropout, bfloat16": Regime(BF16, BF16, lora=DORA | DROPOUT),
    "nf4, bfloat16": Regime(BF16, BF16, layout="nf4"),
    "nf4, bfloat16, float32 adapters": Regime(BF16, layout="nf4"),
    "nf4, float32, autocast": Regime(autocast=True, layout="nf4"),
    "conv1d, float32": Regime(layout="conv1d"),
    "conv1d, bfloat16": Regime(BF16, BF16, layout="conv1d"),
}


class One(nn.Module):
    """A model of a single layer, which PEFT can adapt."""

    def __init__(self, layer: nn.Module, layout: str) -> None:
        super().__init__()
        self.layer = layer
        self.is_loaded_in_4bit = layout == "nf4"  # what PEFT asks

    def forward(self, x):
        """X → Y."""
        return self.layer(x)


class Held:
    """A tensor that autograd holds; it goes when autograd lets go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def peft_model(regime, in_features, out_features, rank):
    """A PEFT model of one layer, in training."""
    torch.manual_seed(0)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=regime.base)
    if regime.layout == "nf4":
        layer = quantised(layer.weight.data, None, "nf4")
    elif regime.layout == "conv1d":
        layer = Conv1D(out_features, in_features).to(regime.base)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["layer"],
        fan_in_fan_out=regime.layout == "conv1d",
        **regime.lora,
    )
    model = peft.get_peft_model(One(layer, regime.layout), config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(regime.adapter)
    return model.train()


def kept_bytes(model, X, context):
    """What one forward leaves in the hands of autograd beside the parameters."""
    held = WeakSet()

    def keep(tensor):
        it = Held(tensor)
        held.add(it)
        return it

    with context, torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it.tensor):
        Y = model(X)
    storages = [it.tensor.untyped_storage() for it in held]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for parameter in model.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    del Y  # until here it holds the graph, and the graph what is counted
    return sum(sizes.values())


def measure(name, tokens, in_features, out_features, rank):
    """One regime: PEFT's layer, the default choice, and every valid graph."""
    regime = REGIMES[name]
    context = torch.autocast("cpu", BF16) if regime.autocast else nullcontext()
    model = peft_model(regime, in_features, out_features, rank)
    X = torch.randn(1, tokens, in_features, dtype=regime.base, requires_grad=True)
    theirs = kept_bytes(model, X, context)
    autolora.accelerate(model, compute_dtype=regime.compute)
    (layer,) = adapted_layers(model)
    problem = layer.problem(tokens, autocast=BF16 if regime.autocast else None)

    def run(chooser):
        pin(model, chooser)
        kept = kept_bytes(model, X, context)
        (choice,) = layer.state.choices.values()
        if choice.problem != problem or choice.executable is None:
            raise SystemExit(f"{name}: {choice.problem} ran PEFT's path: {choice.detail}")
        return {
            "bytes": kept,
            "ratio": kept / theirs,
            "graph": choice.graph.name,
            "derived_bytes": choice.graph.saved_bytes(problem),
        }

    default = run(None)
    graphs = [graph for graph in valid_graphs(problem).values() if graph.forward != REFERENCE]
    distinct = {(graph.forward, graph.saved(problem)): graph for graph in reversed(graphs)}
    every = [run(lambda _, graph=graph: graph) for graph in distinct.values()]
    every.sort(key=lambda row: (row["bytes"], len(row["graph"])))
    return {
        "regime": name,
        "problem": problem.to_json(),
        "x_bytes": X.untyped_storage().nbytes(),
        "graphs": len(graphs),
        "peft": {"bytes": theirs, "ratio": 1.0},
        "default": default,
        "leanest": every[0],
        "largest": every[-1],
        "larger_than_peft": [row for row in every if row["bytes"] > theirs],
    }


def main() -> None:
    """Prints a row for each regime."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regime", nargs="*", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--in-features", type=int, default=768)
    parser.add_argument("--out-features", type=int, default=768)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(
        f"{options.tokens} tokens, {options.in_features}→{options.out_features}, rank "
        f"{options.rank}; MiB kept from forward to backward, and the share of PEFT's\n"
        f"{'regime':<43}{'X':>6}{'PEFT':>8}{'default':>15}{'leanest':>15}{'largest':>15}"
        f"{'graphs':>8}  leanest graph"
    )
    rows = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["AUTOLORA_CACHE"] = str(Path(place) / "timings.v1.json")  # nothing is tuned
        for name in options.regime:
            row = measure(
                name, options.tokens, options.in_features, options.out_features, options.rank
            )
            rows.append(row)
            figures = "".join(
                f"{row[kind]['bytes'] / MIB:>9.2f}{row[kind]['ratio']:>6.2f}"
                for kind in ("default", "leanest", "largest")
            )
            print(
                f"{name:<43}{row['x_bytes'] / MIB:>6.2f}{row['peft']['bytes'] / MIB:>8.2f}"
                f"{figures}{row['graphs']:>8}  {row['leanest']['graph']}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    larger = [(row, each) for row in rows for each in row["larger_than_peft"]]
    if larger:
        raise SystemExit(
            "\n".join(
                f"{row['regime']}: {each['graph']} keeps {each['bytes']} bytes, PEFT's layer "
                f"{row['peft']['bytes']}"
                for row, each in larger
            )
        )
    print("No graph keeps more than PEFT's layer.")


if __name__ == "__main__":
    main()
