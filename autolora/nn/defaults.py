"""The default objective of layers, read from environment variables."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

from autolora.errors import AutoloraError
from autolora.objective import Objective, bytes_from

VARIABLE = "AUTOLORA_OBJECTIVE"
LIMIT_VARIABLE = "AUTOLORA_MAX_SAVED_BYTES"

logger = logging.getLogger("autolora")


def default_objective() -> Objective:
    """The objective of ``AUTOLORA_OBJECTIVE`` and ``AUTOLORA_MAX_SAVED_BYTES``; else time.

    An invalid value is ignored and logged once as a warning.
    """
    kind, limit = (os.environ.get(name, "").strip() for name in (VARIABLE, LIMIT_VARIABLE))
    objective = Objective()
    if kind:
        try:
            objective = Objective(kind)
        except AutoloraError as error:
            _warn_once(f"{VARIABLE}: {error}; taken as time")
    if limit:
        try:
            objective = Objective(objective.kind, bytes_from(limit))
        except AutoloraError as error:
            _warn_once(f"{LIMIT_VARIABLE} {error}; taken as no limit")
    return objective


def objective_of(kind: str | None, max_saved_bytes: int | None) -> Objective | None:
    """The objective of two optional arguments; None if both are None.

    If only one is given, the other is that of :func:`default_objective`.

    Raises:
        AutoloraError: a value is not allowed.
    """
    if kind is None and max_saved_bytes is None:
        return None
    default = default_objective()
    return Objective(
        default.kind if kind is None else kind,
        default.max_saved_bytes if max_saved_bytes is None else max_saved_bytes,
    )


def require_floating(compute_dtype: Any) -> None:
    """Checks the ``compute_dtype`` of a layer.

    Raises:
        AutoloraError: it is neither None nor a floating dtype of torch.
    """
    floating = getattr(compute_dtype, "is_floating_point", False)  # of a tensor it is a method
    if compute_dtype is not None and floating is not True:
        raise AutoloraError(
            f"compute_dtype must be a floating dtype such as torch.bfloat16, not {compute_dtype!r}"
        )


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning("autolora: %s", message)


forget_warnings = _warn_once.cache_clear  # so that invalid values are reported again
