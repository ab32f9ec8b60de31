"""The warning that a layer runs a graph that was not measured, and the command that measures it."""

from __future__ import annotations

import logging

from autolora.objective import Objective
from autolora.problem import BaseProblem

logger = logging.getLogger("autolora")

_noticed: set[tuple[str, str, str, str]] = set()
forget_notices = _noticed.clear  # so that misses are reported again


def notice_unmeasured(problem: BaseProblem, objective: Objective, lack: str = "") -> None:
    """Warns once per rank, dtype, device and objective that a problem should be tuned.

    Args:
        problem: without timings for the objective.
        objective: of the layer.
        lack: which objectives the timings of the problem are for, ``""`` if there are none.
    """
    kind = (problem.tune_options, problem.traits, problem.device, str(objective))
    if kind in _noticed:
        return
    _noticed.add(kind)
    what = f"no timings for {problem}; its graph is chosen by FLOPs and bytes"
    logger.warning(
        "autolora: %s. To measure instead: %s, or ahead of time: %s",
        f"the timings for {problem} are {lack}" if lack else what,
        *tuning_commands(problem, objective),
    )


def tuning_commands(problem: BaseProblem, objective: Objective) -> tuple[str, str]:
    """The Python call and the shell command that measure a problem."""
    options = "" if objective.kind == "time" else f" --objective {objective.kind}"
    if objective.max_saved_bytes is not None:
        options += f" --max-saved-bytes {objective.max_saved_bytes}"
    return (
        f"autolora.tune(model, tokens={problem.tokens})",
        f"autolora tune MODEL {problem.tune_options} "
        f"--device {problem.device} --tokens {problem.tokens}{options}",
    )
