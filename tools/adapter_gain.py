"""Shows how much of a small adapter survives rounding: gain and errors of several graphs.

    python tools/adapter_gain.py [--dtype bfloat16 float16 float32] [--json FILE]

The gain of Y is ``⟨Y − Y₀, ΔY⟩ / ‖ΔY‖²`` with Y₀ the same graph at B = 0 and ΔY the exact effect of
the adapter: 1 if the sum keeps it, 0 if rounding swallows it. That of dX is the same for the
gradient of X. The errors are ``‖V − V₆₄‖ / ‖V₆₄‖`` against float64. One table a dtype, one block of
rows for each size of the adapter, ‖s·BA‖ / ‖W‖. Figures are means over several draws of the data; ±
is the standard error of a gain, which grows as the adapter shrinks below the rounding of Y.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import torch
from common.arguments import choice_of, parsed, parser_for
from common.results import sample, write

from autolora.graphs.reference import reference
from autolora.graphs.space import reference_graph, valid_graphs
from autolora.problem import Problem
from autolora.timing.data import SCALING, Data

DTYPES = ["bfloat16", "float16", "float32"]
SIZES = [1e-1, 1e-2, 1e-3, 1e-4]
# a forward and the route to dX that adds in the same way
ROUTES = [("merged", "merged"), ("base_first", "lowrank"), ("one_product", "one_product")]


def graph_of(problem, forward, dx):
    """The graph of these two routes that saves the most; its other products are the narrow ones."""
    found = [
        graph
        for graph in valid_graphs(problem).values()
        if (graph.forward, graph.dx, graph.da, graph.db) == (forward, dx, "via_z", "via_h")
        and not graph.transposed
    ]
    return max(found, key=lambda graph: len(graph.saves))


def outputs(data, graph):
    """Y and dX along a graph, converted to float64."""
    data.clear()
    Y = data.forward(graph)()
    Y.backward(data.G)
    return {"Y": Y.detach().double(), "dX": data.X.grad.double()}


def exact(data):
    """Y and dX by plain autograd on the defining equation in float64, of the rounded tensors."""
    X, W, A, B, G = (t.detach().double() for t in (data.X, data.W, data.A, data.B, data.G))
    X.requires_grad_()
    Y = reference(X, (W, None, A, B, None, None), SCALING)
    Y.backward(G)
    return {"Y": Y.detach(), "dX": X.grad}


def without(data):
    """The same data at B = 0."""
    return replace(data, B=torch.zeros_like(data.B).requires_grad_())


def figures(problem, size, seed):
    """The figures of each graph at one size of the adapter, for one draw."""
    data = Data.random(problem, torch.device(problem.device), magnitude=size, seed=seed)
    right, bare = exact(data), exact(without(data))
    graphs = {"reference": reference_graph(problem)}
    graphs |= {forward: graph_of(problem, forward, dx) for forward, dx in ROUTES}
    found = {}
    for name, graph in graphs.items():
        with_adapter, at_zero = outputs(data, graph), outputs(without(data), graph)
        row = found[name, graph.name] = {}
        for output, value in with_adapter.items():
            effect = (right[output] - bare[output]).flatten()
            moved = (value - at_zero[output]).flatten()
            row[f"gain_{output}"] = float(moved @ effect / (effect @ effect))
            error = (value - right[output]).norm() / right[output].norm()
            row[f"error_{output}"] = float(error)
    return found


def rows_of(problem, size, draws):
    """A row for each graph at one size of the adapter."""
    drawn = [figures(problem, size, seed) for seed in range(draws)]
    rows = []
    for route, name in drawn[0]:
        each = [one[route, name] for one in drawn]
        row = {"dtype": problem.dtype, "size": size, "route": route, "graph": name}
        row["samples"] = {key: sample([one[key] for one in each], 9) for key in each[0]}
        for key in each[0]:
            values = [one[key] for one in each]
            row[key] = mean(values)
            if "gain" in key:
                row[f"{key}_se"] = stdev(values) / draws**0.5 if draws > 1 else None
        rows.append(row)
    return rows


def gain(row, output):
    """A gain and its standard error."""
    noise = row[f"gain_{output}_se"]
    return f"{row[f'gain_{output}']:.3f}" + ("" if noise is None else f" ±{noise:.3f}")


def main() -> None:
    """Prints a table for each dtype."""
    parser = parser_for(__doc__)
    choice_of(parser, "--dtype", DTYPES, ["bfloat16"])
    parser.add_argument(
        "--shape", nargs=3, type=int, default=[1024, 512, 512], metavar=("TOKENS", "IN", "OUT")
    )
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--size", nargs="*", type=float, default=SIZES, help="‖s·BA‖ / ‖W‖")
    parser.add_argument("--draws", type=int, default=8, help="of the random data, per row")
    options = parsed(parser)
    tokens, i, o = options.shape
    rows = []
    for dtype in options.dtype:
        problem = Problem(i, o, tokens, options.rank, dtype, "cpu")
        print(
            f"\n{dtype}, {tokens} tokens, {i}→{o}, rank {options.rank}\n"
            f"{'‖s·BA‖/‖W‖':<12}{'graph':<13}{'gain of Y':>14}{'gain of dX':>16}"
            f"{'error of Y':>12}{'error of dX':>13}"
        )
        for size in options.size:
            for row in rows_of(problem, size, options.draws):
                rows.append(row)
                first = f"{size:g}" if row["route"] == "reference" else ""
                print(
                    f"{first:<12}{row['route']:<13}{gain(row, 'Y'):>14}{gain(row, 'dX'):>16}"
                    f"{row['error_Y']:>12.2e}{row['error_dX']:>13.2e}",
                    flush=True,
                )
            write(options.json, rows)


if __name__ == "__main__":
    main()
