"""What layers are used for unless they are told: the objective that the environment names."""

from __future__ import annotations

import logging
import os

from autolora.errors import AutoloraError
from autolora.objective import Objective, bytes_from

VARIABLE = "AUTOLORA_OBJECTIVE"
LIMIT_VARIABLE = "AUTOLORA_MAX_SAVED_BYTES"

logger = logging.getLogger("autolora")

_told: set[tuple[str, str]] = set()


def default_objective() -> Objective:
    """That of ``AUTOLORA_OBJECTIVE`` and ``AUTOLORA_MAX_SAVED_BYTES``; time where they are not set.

    A value that is none is one logged warning, and then as if it were not set.
    """
    kind, limit = os.environ.get(VARIABLE, "").strip(), os.environ.get(LIMIT_VARIABLE, "").strip()
    objective = Objective()
    if kind:
        try:
            objective = Objective(kind)
        except AutoloraError as error:
            _warn(VARIABLE, kind, f"{error}; taken as time")
    if limit:
        try:
            objective = Objective(objective.kind, bytes_from(limit))
        except AutoloraError as error:
            _warn(LIMIT_VARIABLE, limit, f"{LIMIT_VARIABLE} {error}; taken as no limit")
    return objective


def objective_of(kind: str | None, max_saved_bytes: int | None) -> Objective | None:
    """The objective of arguments; None where there are none, so that the environment decides.

    Raises:
        AutoloraError: a value that is not allowed.
    """
    if kind is None and max_saved_bytes is None:
        return None
    default = default_objective()
    return Objective(
        default.kind if kind is None else kind,
        default.max_saved_bytes if max_saved_bytes is None else max_saved_bytes,
    )


def forget_warnings() -> None:
    """Lets wrong values be reported again."""
    _told.clear()


def _warn(variable: str, value: str, message: str) -> None:
    if (variable, value) not in _told:
        _told.add((variable, value))
        where = "" if variable in message else f"{variable}: "
        logger.warning("autolora: %s%s", where, message)
