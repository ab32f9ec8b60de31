"""Strict mode: in training a miss is an error, and other environments do not answer."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache

from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.errors import AutoloraError, MissError
from autolora.nn.layer_state import forget
from autolora.nn.unmeasured import tuning_commands
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem

VARIABLE = "AUTOLORA_STRICT"

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_LAX = ("miss", "other-environment")  # what a layer would not have been answered in strict mode

logger = logging.getLogger("autolora")

_told: bool | None = None  # by strict(); None where the environment variable decides


def strict(on: bool = True) -> AbstractContextManager[object]:
    """Makes it an error that a layer in training finds no timings of its own environment.

    A layer whose call needs gradients and whose problem is a miss then raises
    :class:`~autolora.MissError` instead of taking the choice by FLOPs and bytes, and records of
    other environments do not answer. Nothing of the call is remembered: once the problem is tuned,
    the next call works. Calls without gradients, as in evaluation, never raise, nor do those that
    take the layer's plain path. :func:`~autolora.explain` tells of all of them, and never raises.

    It acts at once and for the whole process; as a context manager until the end of the block::

        autolora.strict()
        with autolora.strict():
            train(model)

    Until it is called, the environment variable ``AUTOLORA_STRICT`` decides, which layers read when
    they choose a graph: ``1``, ``true`` or ``yes`` is strict; nothing, ``0``, ``false`` or ``no``
    is not. To :func:`~autolora.record` a model that is not tuned yet, switch it off.

    Args:
        on: whether to be strict from now on.

    Returns:
        What puts back at the end of a with-block what held before.

    Raises:
        AutoloraError: ``on`` is neither True nor False.
    """
    if type(on) is not bool:
        raise AutoloraError(f"strict() must be given True or False, not {on!r}")
    undo = ExitStack()
    undo.callback(_switch, _told)
    _switch(on)
    return undo


def is_strict() -> bool:
    """Whether strict mode is on now."""
    return _meaning(os.environ.get(VARIABLE, "").strip()) if _told is None else _told


def miss_detail(problem: BaseProblem, how: str, strict: bool) -> str:
    """What a miss means, in words: how the graph is chosen, or that it is none in strict mode."""
    return f"an error in strict mode, else {how}" if strict and problem.gradients else how


def miss_error(
    problem: BaseProblem,
    environment: Environment,
    objective: Objective,
    lookup: Lookup,
    plan: str = "",
) -> MissError:
    """The error for a problem that nothing was measured for.

    Args:
        problem: which one.
        environment: on which machine, with which libraries.
        objective: what the graph is for.
        lookup: what was asked.
        plan: what holds it in memory, ``""`` where it is the files themselves.
    """
    purpose = "" if objective == TIME else f" for {objective}"
    files = ", ".join(str(layer.path) for layer in lookup.layers) or "no file"
    again, held = (" and autolora.freeze(model) again", f" ({plan})") if plan else ("", "")
    now, ahead = tuning_commands(problem, objective)
    return MissError(
        f"strict mode: no timings{purpose} for {problem} on {environment.device_name}; "
        f"{_closest(problem, environment, lookup)}; asked: {files}{held}. To measure it: "
        f"{now}{again}, or ahead of time: {ahead}. To run it unmeasured: autolora.strict(False)"
    )


def _switch(told: bool | None) -> None:
    global _told
    before = is_strict()
    _told = told
    if is_strict() != before:
        forget(_LAX)


@lru_cache(maxsize=64)
def _meaning(value: str) -> bool:
    """What a value of the variable means; one that means nothing is one warning."""
    if value.lower() not in (*_ON, *_OFF):
        logger.warning(
            "autolora: %s must be 1, true or yes, or 0, false or no, not %r; taken as 0",
            VARIABLE,
            value[:100],
        )
    return value.lower() in _ON


def _closest(problem: BaseProblem, environment: Environment, lookup: Lookup) -> str:
    """The closest record in words, and its differences with both values."""
    found = lookup.closest(problem, environment)
    if found is None:
        return "there are no records at all"
    record, names = found
    if not names:
        return "there is a record of it, but no graph that it names can be used"
    differences = ", ".join(
        f"{name} (wanted {_field(name, problem, environment)}, "
        f"found {_field(name, record.problem, record.environment)})"
        for name in names
    )
    return f"the closest record, {record.problem}, differs in {differences}"


def _field(name: str, problem: BaseProblem, environment: Environment) -> str:
    value = getattr(problem, name, getattr(environment, name, ""))
    return "+".join(value) or "none" if isinstance(value, tuple) else str(value) or "none"
