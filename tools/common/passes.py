"""The paper's choice by time: the fastest forward pass first, then a backward pass for it."""

from __future__ import annotations

import time
from statistics import median

from autolora.graphs.unmeasured import untransposed_costs
from autolora.timing.accuracy import verdict
from autolora.timing.clock import measure_for
from autolora.timing.data import Data


def by_time_of_each_pass(problem, seconds, device):
    """The graph of the fastest forward pass, then the fastest backward pass that fits it."""
    data = Data.random(problem, device)
    graphs = [c.graph for c in untransposed_costs(problem) if verdict(c.graph, problem, device).ok]
    forwards = {graph.forward: graph for graph in graphs}
    best = min(forwards, key=lambda name: pass_time(data, forwards[name], seconds))
    fitting = {(g.dx, g.da, g.db): g for g in graphs if g.forward == best and "V" not in g.saves}
    return min(fitting.values(), key=lambda graph: pass_time(data, graph, seconds, backward=True))


def pass_time(data, graph, seconds, backward=False):
    """The median time of forward passes, or of backward passes."""
    measure = measure_for(data.X.device)
    forward, times, end = data.forward(graph), [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        data.clear()
        Y = forward() if backward else None
        times.append(measure((lambda Y=Y: Y.backward(data.G)) if backward else forward))
    return median(times)
