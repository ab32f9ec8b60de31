"""What a layer runs where nothing was measured for it, and the notice that says how to measure."""

from __future__ import annotations

import logging

from autolora.graphs.graph import Graph
from autolora.graphs.space import analytic_graph, surely_accurate, written_costs
from autolora.objective import Objective, beyond
from autolora.problem import QUANTISED, Problem

logger = logging.getLogger("autolora")

_noticed: set[tuple[int, str, str, str]] = set()


def untuned_graph(problem: Problem, objective: Objective) -> tuple[Graph, str]:
    """The choice without measurements, and how it was made, in words.

    By FLOPs and bytes; for memory, and where that graph is not within the limit, by FLOPs among the
    graphs that keep the fewest bytes. All are surely as accurate as the reference.
    """
    graph = analytic_graph(problem)
    if objective.kind != "memory" and objective.admits(graph.saved_bytes(problem)):
        return graph, "chosen by FLOPs and bytes"
    best = min(
        (cost for cost in written_costs(problem) if surely_accurate(cost.graph, problem)),
        key=lambda c: (c.saved_bytes, c.flops, c.bytes, c.graph.name),
        default=None,
    )
    lean = graph if best is None else best.graph
    least = lean.saved_bytes(problem)
    detail = "chosen by FLOPs of those that keep least"
    return lean, detail if objective.admits(least) else f"{detail}; {beyond(objective, least)}"


def forget_notices() -> None:
    """Lets misses be reported again."""
    _noticed.clear()


def notice_miss(problem: Problem, objective: Objective) -> None:
    """Once per rank, dtype, device and objective: which command would tune what was not found."""
    _notice(
        problem, objective, "no timings for {}; its graph is chosen by FLOPs and bytes. To measure"
    )


def notice_lack(problem: Problem, objective: Objective, lack: str) -> None:
    """Likewise, that what was found was measured for other objectives."""
    _notice(problem, objective, f"the timings for {{}} are {lack}. To measure")


def tuning_commands(problem: Problem, objective: Objective) -> tuple[str, str]:
    """What would measure a problem: a call in Python, and a command ahead of time."""
    options = " --dropout 0.1" * problem.dropout + " --lora-bias" * problem.adapter_bias
    options += " --dora" * (problem.variant == "dora")
    options += f" --quantised {problem.layout}" if problem.layout in QUANTISED else ""
    options += "" if objective.kind == "time" else f" --objective {objective.kind}"
    if objective.max_saved_bytes is not None:
        options += f" --max-saved-bytes {objective.max_saved_bytes}"
    return (
        f"autolora.tune(model, tokens={problem.tokens})",
        f"autolora tune MODEL --rank {problem.rank} --dtype {problem.dtype} "
        f"--device {problem.device} --tokens {problem.tokens}{options}",
    )


def _notice(problem: Problem, objective: Objective, words: str) -> None:
    kind = (problem.rank, problem.kind, problem.device, str(objective))
    if kind in _noticed:
        return
    _noticed.add(kind)
    now, ahead = tuning_commands(problem, objective)
    logger.warning(
        "autolora: %s instead: %s, or ahead of time: %s", words.format(problem), now, ahead
    )
