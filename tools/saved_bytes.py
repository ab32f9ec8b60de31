"""Shows the bytes that autograd saves for backward in one layer: PEFT's beside autolora's.

    python tools/saved_bytes.py [--regime float32 ...] [--json FILE]

Counts what ``torch.autograd.graph.saved_tensors_hooks`` sees and what is still held when the
forward has returned: each storage once, X included where it is saved, parameters and W excluded.
``default`` is the graph that runs untuned; ``leanest`` and ``largest`` are, of all valid graphs but
PEFT's own, those that save the least and the most. Graphs that save the same tensors of the same
forward are measured once. Exits with 1 if any graph saves more than PEFT's layer does.
"""

from __future__ import annotations

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.memory import kept_bytes
from common.models import one_layer
from common.regimes import Regime
from common.results import write

import autolora
from autolora.graphs.graph import REFERENCE
from autolora.graphs.space import valid_graphs
from autolora.nn.adapted import adapted_layers
from autolora.nn.choosing import pin

MIB = 2**20
REGIMES = (
    "float32",
    "bfloat16",
    "bfloat16, float32 adapters",
    "bfloat16, float32 adapters, autocast",
    "bfloat16, float32 adapters, compute_dtype",
    "float32, bfloat16 adapters",
    "dropout, float32",
    "dropout, bfloat16",
    "DoRA, float32",
    "DoRA, bfloat16",
    "DoRA, dropout, float32",
    "DoRA, dropout, bfloat16",
    "nf4, bfloat16",
    "nf4, bfloat16, float32 adapters",
    "nf4, float32, autocast",
    "conv1d, float32",
    "conv1d, bfloat16",
)


def measure(name, tokens, in_features, out_features, rank):
    """One regime: PEFT's layer, the default choice, and every valid graph."""
    regime = Regime.of(name)
    context = regime.context()
    model = one_layer(regime, in_features, out_features, rank)
    X = torch.randn(1, tokens, in_features, dtype=regime.base, requires_grad=True)
    theirs = kept_bytes(lambda: model(X), model.parameters(), context)
    autolora.accelerate(model, compute_dtype=regime.compute)
    (layer,) = adapted_layers(model)
    problem = layer.problem(tokens, autocast=regime.autocast_dtype)

    def run(chooser):
        pin(model, chooser)
        kept = kept_bytes(lambda: model(X), model.parameters(), context)
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
    parser = parser_for(__doc__)
    choice_of(parser, "--regime", REGIMES)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--in-features", type=int, default=768)
    parser.add_argument("--out-features", type=int, default=768)
    parser.add_argument("--rank", type=int, default=16)
    options = parsed(parser)
    sizes = (options.tokens, options.in_features, options.out_features, options.rank)
    print(
        f"{options.tokens} tokens, {options.in_features}→{options.out_features}, rank "
        f"{options.rank}; MiB kept from forward to backward, and the share of PEFT's\n"
        f"{'regime':<43}{'X':>6}{'PEFT':>8}{'default':>15}{'leanest':>15}{'largest':>15}"
        f"{'graphs':>8}  leanest graph"
    )
    rows = []
    with temporary_cache():  # nothing is tuned
        for name in options.regime:
            row = measure(name, *sizes)
            rows.append(row)
            write(options.json, rows)
            figures = "".join(
                f"{row[kind]['bytes'] / MIB:>9.2f}{row[kind]['ratio']:>6.2f}"
                for kind in ("default", "leanest", "largest")
            )
            print(
                f"{name:<43}{row['x_bytes'] / MIB:>6.2f}{row['peft']['bytes'] / MIB:>8.2f}"
                f"{figures}{row['graphs']:>8}  {row['leanest']['graph']}",
                flush=True,
            )
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
