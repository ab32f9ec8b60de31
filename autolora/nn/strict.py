"""What a miss leads to: one warning with the command that tunes the problem, or an error.

In strict mode a miss in training is an error, and records of other environments are not used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache

from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.errors import AutoloraError, MissError
from autolora.nn.layer_state import forget
from autolora.objective import TIME, Objective
from autolora.problem import COMPILED, BaseProblem

VARIABLE = "AUTOLORA_STRICT"

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_LAX = ("miss", "other-mode", "other-environment")  # reasons that strict mode does not allow

logger = logging.getLogger("autolora")

_told: bool | None = None  # the argument of strict(); None: use the environment variable
_expected = 0  # blocks in which misses are not reported
_noticed: set[tuple[str, str, str, str]] = set()
forget_notices = _noticed.clear  # so that misses are reported again


def strict(on: bool = True) -> AbstractContextManager[object]:
    """Turns strict mode on or off: layers in training need timings of their own environment.

    A call that needs gradients and whose problem is a miss raises :class:`~autolora.MissError`
    instead of using the graph chosen by FLOPs and bytes; records of other environments are not
    used. Once the problem is tuned, the next call works. Calls without gradients, as in evaluation,
    and calls that use the layer's own ``forward`` never raise. :func:`~autolora.explain` reports
    misses without raising.

    Strict mode holds for the whole process, or until the end of a with-block::

        autolora.strict()
        with autolora.strict():
            train(model)

    Without a call, the environment variable ``AUTOLORA_STRICT`` is read whenever a layer chooses a
    graph: ``1``, ``true`` or ``yes`` is strict; unset, ``0``, ``false`` or ``no`` is not. Turn
    strict mode off to :func:`~autolora.record` a model that is not tuned yet.

    Args:
        on: whether to turn it on.

    Returns:
        A context manager that restores the previous state.

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
    """Whether strict mode is on now; not while misses are expected."""
    if _expected:
        return False
    return _meaning(os.environ.get(VARIABLE, "").strip()) if _told is None else _told


def are_misses_expected() -> bool:
    """Whether somebody is going to tune what is missed."""
    return _expected > 0


def notice_unmeasured(problem: BaseProblem, objective: Objective, how: str, lack: str = "") -> None:
    """Warns once per rank, dtype, device and objective that a problem should be tuned.

    Args:
        problem: without timings for the objective.
        objective: of the layer.
        how: its graph was chosen, in words.
        lack: which objectives the timings of the problem are for, ``""`` if there are none.
    """
    kind = (problem.tune_options, problem.traits, problem.device, str(objective))
    if kind in _noticed or _expected:
        return
    _noticed.add(kind)
    runs = f"its graph is {how}" if how.startswith("chosen") else f"it runs {how.split(',')[0]}"
    what = f"no timings for {problem}; {runs}"
    logger.warning(
        "autolora: %s. To measure instead: %s, or ahead of time: %s",
        f"the timings for {problem} are {lack}" if lack else what,
        *tuning_commands(problem, objective),
    )


@contextmanager
def misses_expected() -> Iterator[None]:
    """Within the block misses are neither reported nor errors: they are going to be tuned."""
    global _expected
    _expected += 1
    try:
        yield
    finally:
        _expected -= 1


def tuning_commands(problem: BaseProblem, objective: Objective) -> tuple[str, str]:
    """The Python call and the shell command that measure a problem."""
    options = "" if objective.kind == "time" else f" --objective {objective.kind}"
    if objective.max_saved_bytes is not None:
        options += f" --max-saved-bytes {objective.max_saved_bytes}"
    compiled = ", compiled=True" * (problem.mode == COMPILED)
    return (
        f"autolora.tune(model, tokens={problem.tokens}{compiled})",
        f"autolora tune MODEL {problem.tune_options} "
        f"--device {problem.device} --tokens {problem.tokens}{options}",
    )


def miss_detail(problem: BaseProblem, how: str, strict: bool) -> str:
    """Describes a miss: how the graph is chosen, or that it is an error in strict mode."""
    return f"an error in strict mode, else {how}" if strict and problem.gradients else how


def miss_error(
    problem: BaseProblem,
    environment: Environment,
    objective: Objective,
    lookup: Lookup,
    plan: str = "",
) -> MissError:
    """The error for a problem without timings.

    Args:
        problem: of the layer.
        environment: of its device.
        objective: what the graph is chosen for.
        lookup: that missed.
        plan: the origin of a frozen layer's records, ``""`` if they are read from the files.
    """
    purpose = "" if objective == TIME else f" for {objective}"
    files = ", ".join(str(layer.path) for layer in lookup.layers) or "no file"
    refreeze, origin = (" and autolora.freeze(model) again", f" ({plan})") if plan else ("", "")
    now, ahead = tuning_commands(problem, objective)
    return MissError(
        f"strict mode: no timings{purpose} for {problem} on {environment.device_name}; "
        f"{_closest(problem, environment, lookup)}; asked: {files}{origin}. To measure it: "
        f"{now}{refreeze}, or ahead of time: {ahead}. To run it unmeasured: autolora.strict(False)"
    )


def _switch(told: bool | None) -> None:
    global _told
    before = is_strict()
    _told = told
    if is_strict() != before:
        forget(_LAX)


@lru_cache(maxsize=64)
def _meaning(value: str) -> bool:
    """Whether a value of the variable is strict; an invalid one is logged once."""
    if value.lower() not in (*_ON, *_OFF):
        logger.warning(
            "autolora: %s must be 1, true or yes, or 0, false or no, not %r; taken as 0",
            VARIABLE,
            value[:100],
        )
    return value.lower() in _ON


def _closest(problem: BaseProblem, environment: Environment, lookup: Lookup) -> str:
    """Describes the closest record and the fields in which it differs."""
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
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"
