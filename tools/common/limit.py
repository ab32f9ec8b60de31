"""The least time that a machine needs for a layer, and where a graph spends more than that.

A product needs at least its FLOPs at the rate of a large product in its dtype, and its bytes, each
tensor once, at the bandwidth of a large copy: the longer of the two is its limit, and the sum of
the limits that of a graph. What stays in a cache moves faster than a large copy, so that a small
step may take less than its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median

import torch

from autolora.graphs.contraction import Contraction
from autolora.graphs.graph import moved_bytes
from autolora.graphs.operators import onednn
from autolora.graphs.source import lines, statement
from autolora.graphs.tensors import run_dtype, sizes_of, slow_dtypes
from autolora.graphs.unmeasured import untransposed_costs
from autolora.timing.clock import measure_for
from autolora.timing.data import DROPOUT, SCALING


@dataclass(frozen=True)
class Speeds:
    """The speed of a machine.

    Args:
        flops_per_ns: of a large product, by dtype.
        bytes_per_ns: read and written by a large copy.
    """

    flops_per_ns: dict[str, float]
    bytes_per_ns: float

    @classmethod
    def measured(cls, device, dtypes, size=None):
        """Takes the best of several products of square matrices, by any library, and of copies.

        Args:
            device: that is measured.
            dtypes: names of them.
            size: rows of the matrices; by default enough to keep the device busy.
        """
        measure = measure_for(device)
        size = size or (8192 if device.type == "cuda" else 2048)
        rates = {}
        for dtype in dtypes:
            made = torch.randn(2, size, size, device=device).to(getattr(torch, dtype))
            slow = device.type == "cpu" and dtype in slow_dtypes()  # torch.mm would take minutes
            runs = [partial(in_float32, *made)] if slow else [partial(torch.mm, *made)]
            if device.type == "cpu" and dtype == "float32":
                runs.append(partial(onednn, *made))
            rates[dtype] = 2 * size**3 / min(measure(run) for run in runs for _ in range(5))
        source, target = torch.ones(2, 8 * size * size, device=device)
        copied = 2 * source.nbytes / min(measure(lambda: target.copy_(source)) for _ in range(5))
        return cls(rates, copied)

    def limit_ns(self, flops, moved, dtype):
        """The least time of FLOPs in a dtype and of the bytes that they read and write."""
        return max(flops / self.flops_per_ns[dtype] if flops else 0.0, moved / self.bytes_per_ns)


def in_float32(left, right):
    """A product of 16-bit matrices as graphs compute it where the processor is slow in them."""
    return onednn(left.float(), right.float()).to(left.dtype)


def least_ns(problem, speeds):
    """The least sum of the limits of the steps of any graph."""
    sizes = sizes_of(problem)
    known = {}

    def limit(step):
        if step not in known:
            dtype = run_dtype(step, problem) if isinstance(step, Contraction) else problem.dtype
            known[step] = speeds.limit_ns(step.flops(sizes), moved_bytes(step, problem), dtype)
        return known[step]

    graphs = (cost.graph for cost in untransposed_costs(problem))
    return min((sum(map(limit, graph.steps(problem))) for graph in graphs), default=inf)


def timed_steps(graph, data, speeds, rounds=20, measure=None):
    """The steps of a graph, one after the other as it runs them, each beside its own limit.

    Conversions between dtypes are steps of their own. The graph that PEFT runs has no steps here.

    Args:
        graph: a composed graph.
        data: the tensors of the problem.
        speeds: of the machine.
        rounds: over all steps; times are medians.
        measure: times one call.
    """
    if graph.is_reference:
        return []
    problem, device = data.problem, data.X.device
    measure = measure or measure_for(device)
    given = {name: _detached(getattr(data, name)) for name in ("X", "W", "b", "A", "B", "c", "M")}
    given |= {"Q": data.W, "G": data.G, "s": SCALING, "sk": SCALING, "p": DROPOUT}
    steps = list(_named(graph, problem))
    runs = [statement(line) for _, line in steps]
    taken, moved = [[] for _ in steps], [0] * len(steps)
    with torch.no_grad():
        for _ in range(rounds):
            values = dict(given)
            for number, (_, line) in enumerate(steps):

                def run(number=number, line=line, values=values):
                    values[line.writes] = runs[number](values)

                taken[number].append(measure(run))
                tensors = (values[name] for name in (*line.reads, line.writes))
                moved[number] = sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
    found = []
    for (step, line), times, size in zip(steps, taken, moved, strict=True):
        product = isinstance(step, Contraction)
        flops = step.flops(sizes_of(problem)) if step else 0
        dtype = run_dtype(step, problem) if product else problem.dtype
        found.append(
            {
                "step": step.formula if step else line.text,
                "flops": flops,
                "bytes": size,
                "ms": median(times) / 1e6,
                "limit_ms": speeds.limit_ns(flops, size, dtype) / 1e6,
            }
        )
    return found


def _named(graph, problem):
    """Each line of a graph with its step, None for a conversion."""
    passes = (graph.forward_steps(problem), graph.backward_steps(problem))
    for steps, written in zip(passes, lines(graph, problem), strict=True):
        left = list(steps)
        for line in written:
            yield left.pop(0) if left and line.writes == left[0].out else None, line


def _detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value
