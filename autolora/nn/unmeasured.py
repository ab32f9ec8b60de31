"""The notice that a layer runs a graph that was not measured, with the command that measures."""

from __future__ import annotations

import logging

from autolora.objective import Objective
from autolora.problem import BaseProblem

logger = logging.getLogger("autolora")

_noticed: set[tuple[str, str, str, str]] = set()


def forget_notices() -> None:
    """Lets misses be reported again."""
    _noticed.clear()


def notice_miss(problem: BaseProblem, objective: Objective) -> None:
    """Once per rank, dtype, device and objective: which command would tune what was not found."""
    _notice(
        problem, objective, "no timings for {}; its graph is chosen by FLOPs and bytes. To measure"
    )


def notice_lack(problem: BaseProblem, objective: Objective, lack: str) -> None:
    """Likewise, that what was found was measured for other objectives."""
    _notice(problem, objective, f"the timings for {{}} are {lack}. To measure")


def tuning_commands(problem: BaseProblem, objective: Objective) -> tuple[str, str]:
    """What would measure a problem: a call in Python, and a command ahead of time."""
    options = "" if objective.kind == "time" else f" --objective {objective.kind}"
    if objective.max_saved_bytes is not None:
        options += f" --max-saved-bytes {objective.max_saved_bytes}"
    return (
        f"autolora.tune(model, tokens={problem.tokens})",
        f"autolora tune MODEL {problem.tune_options} "
        f"--device {problem.device} --tokens {problem.tokens}{options}",
    )


def _notice(problem: BaseProblem, objective: Objective, words: str) -> None:
    kind = (problem.tune_options, problem.traits, problem.device, str(objective))
    if kind in _noticed:
        return
    _noticed.add(kind)
    now, ahead = tuning_commands(problem, objective)
    logger.warning(
        "autolora: %s instead: %s, or ahead of time: %s", words.format(problem), now, ahead
    )
