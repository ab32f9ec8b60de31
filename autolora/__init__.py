"""LoRA layers that run the fastest measured computation graph.

A LoRA layer computes ``Y = X Wᵀ + b + s·(X Aᵀ) Bᵀ`` with a frozen ``W``. The same result and the
same gradients can be computed along hundreds of graphs; ``autolora`` times them before training and
reads the winners from a timing cache while training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autolora.version import __version__

if TYPE_CHECKING:
    from autolora.cache.files.store import TimingCache
    from autolora.capture.recording import record
    from autolora.errors import AutoloraError, MissError
    from autolora.nn.adapter.loading import load_adapter
    from autolora.nn.adapter.merging import disable, merge, unmerge
    from autolora.nn.adapter.saving import save_adapter
    from autolora.nn.adding import add_lora
    from autolora.nn.experts.native import LoRAExperts
    from autolora.nn.explanation import explain
    from autolora.nn.freezing.freeze import freeze, unfreeze
    from autolora.nn.linear import LoRALinear
    from autolora.nn.peft import accelerate, restore
    from autolora.nn.strict import strict
    from autolora.problem import Problem
    from autolora.tuning.entry import tune

__all__ = [
    "AutoloraError",
    "LoRAExperts",
    "LoRALinear",
    "MissError",
    "Problem",
    "TimingCache",
    "__version__",
    "accelerate",
    "add_lora",
    "disable",
    "explain",
    "freeze",
    "load_adapter",
    "merge",
    "record",
    "restore",
    "save_adapter",
    "strict",
    "tune",
    "unfreeze",
    "unmerge",
]

# Loaded on first use, so that `import autolora` costs next to nothing.
_HOMES = {
    "AutoloraError": "autolora.errors",
    "LoRAExperts": "autolora.nn.experts.native",
    "LoRALinear": "autolora.nn.linear",
    "MissError": "autolora.errors",
    "Problem": "autolora.problem",
    "TimingCache": "autolora.cache.files.store",
    "accelerate": "autolora.nn.peft",
    "add_lora": "autolora.nn.adding",
    "disable": "autolora.nn.adapter.merging",
    "explain": "autolora.nn.explanation",
    "freeze": "autolora.nn.freezing.freeze",
    "load_adapter": "autolora.nn.adapter.loading",
    "merge": "autolora.nn.adapter.merging",
    "record": "autolora.capture.recording",
    "restore": "autolora.nn.peft",
    "save_adapter": "autolora.nn.adapter.saving",
    "strict": "autolora.nn.strict",
    "tune": "autolora.tuning.entry",
    "unfreeze": "autolora.nn.freezing.freeze",
    "unmerge": "autolora.nn.adapter.merging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autolora' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
