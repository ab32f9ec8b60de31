"""The tables of docs/graphs.md, held to the code."""

import re
from pathlib import Path

import pytest
from cases import small

from autolora.graphs.space import find_graph, valid_graphs
from autolora.graphs.tensors import sizes_of

PAGE = (Path(__file__).parents[2] / "docs/graphs.md").read_text(encoding="utf-8")
SIZES = {"in_features": 7, "out_features": 11, "tokens": 13, "rank": 3}
PROBLEM = small(**SIZES)
BASE = "dX=lowrank/dA=via_z/dB=via_h"


def rows(title):
    """The rows of the last table of a section, as lists of cells."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)[-1]
    cells = re.compile(r"(?<!\\)\|")
    return [[c.strip() for c in cells.split(line)[1:-1]] for line in table.splitlines()[2:]]


def flops(text):
    """The number of a formula like ``2mio + 4mir``."""
    sizes, total = sizes_of(PROBLEM), 0
    for factor, axes in re.findall(r"(\d+)([a-z]+)", text):
        term = int(factor)
        for axis in axes:
            term *= sizes[axis]
        total += term
    return total


@pytest.mark.parametrize("row", rows("Forward"), ids=lambda row: row[1])
def test_the_forwards(row):
    name = row[1].strip("`")
    graph = next(g for g in valid_graphs(PROBLEM).values() if g.forward == name)
    sizes = sizes_of(PROBLEM)
    steps = graph.forward_steps(PROBLEM)
    assert flops(row[3]) == sum(step.flops(sizes) for step in steps)


@pytest.mark.parametrize("row", rows("Backward"), ids=lambda row: row[0])
def test_the_backwards(row):
    _, name, cost, kept = row
    graph = find_graph(f"base_first/{name.strip('`')}", PROBLEM)
    sizes = sizes_of(PROBLEM)
    assert flops(cost) == sum(step.flops(sizes) for step in graph.backward_steps(PROBLEM))
    assert set(kept.split(", ")) == set(graph.saved(PROBLEM)) - {"W", "A", "B"}


def test_all_of_the_paper_is_there():
    assert [row[0] for row in rows("Backward")[:8]] == [f"B{n}" for n in range(1, 9)]
    assert {part for row in rows("Forward") for part in row[0].split(", ")} >= {
        f"F{n}" for n in range(1, 5)
    }


def test_the_forwards_of_dora():
    listed = {row[0].strip("`") for row in rows("DoRA")}
    dora = small(variant="dora", gradients=("X", "A", "B", "M"))
    assert listed == {graph.forward for graph in valid_graphs(dora).values()} - {"reference"}


def test_the_number_of_graphs():
    (number,) = re.findall(r"(\d+) graphs for a plain layer", PAGE)
    assert int(number) == len(valid_graphs(small(tokens=64, in_features=64, out_features=64)))
