"""autolora where people train: in the Trainer of transformers, and in scripts that do not know it.

>>> from autolora.integrations import AutoloraCallback  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolora.integrations.callback import AutoloraCallback

__all__ = ["AutoloraCallback"]

STEPS = 3  # of a training run that are recorded
BUDGET = 60.0  # seconds to tune for them
TOO_SHORT = "the training ended before its first steps were recorded"


def __getattr__(name: str) -> Any:
    if name != "AutoloraCallback":
        raise AttributeError(f"module 'autolora.integrations' has no attribute {name!r}")
    from autolora.integrations.callback import AutoloraCallback

    return AutoloraCallback
