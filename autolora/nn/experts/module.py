"""What autolora reads of a module of experts of transformers, and why it may not run it.

Such modules follow transformers' experts interface: they name their weights and say how these are
stored, and any of several implementations computes what their own code does.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import torch

from autolora.nn.layer_tensors import PLAIN, changed
from autolora.problem import DTYPES, IMPLEMENTATIONS

_INTERFACE = "transformers.integrations.moe"
_FLAGS = ("has_gate", "has_bias", "is_transposed")
FLOATS = frozenset(getattr(torch, name) for name in DTYPES)
_TOP_K = (  # where configurations say how many experts a token has
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "top_k_experts",
    "moe_k",
)


def is_experts(module: Any) -> bool:
    """Whether a module follows transformers' experts interface."""
    forward = getattr(type(module), "forward", None)
    return (
        getattr(forward, "__globals__", {}).get("__name__") == _INTERFACE
        and all(type(getattr(module, name, None)) is bool for name in _FLAGS)
        and isinstance(getattr(module, "num_experts", None), int)
    )


def implementation_of(module: Any) -> str:
    """How a module runs its experts, in transformers' words."""
    return getattr(module.config, "_experts_implementation", None) or "eager"


def projections_of(module: Any) -> tuple[str, str]:
    """The names of a module's weights, in the order in which they are used."""
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def stacks_of(module: Any) -> list[str]:
    """The names of a module's weights that can have adapters, in the order of its parameters.

    PEFT nests its wrappers in that order, the first innermost.
    """
    used = projections_of(module)
    return [
        name
        for name, weight in module._parameters.items()
        if name in used and _is_stack(weight, module) and weight.dtype in FLOATS
    ]


def features_of(module: Any, name: str) -> tuple[int, int]:
    """in_features and out_features of each matrix of a stacked weight."""
    first, second = module._parameters[name].shape[1:]
    return (first, second) if module.is_transposed else (second, first)


def why_not(module: Any, adapted: Collection[str]) -> str:
    """Why a module of experts runs as PEFT runs it, ``""`` if it can run graphs.

    Args:
        module: that :func:`is_experts`.
        adapted: the names of its weights that have adapters.
    """
    names = projections_of(module)
    if unknown := sorted(set(adapted) - set(names)):
        return f"experts with adapters on {unknown[0]}"
    if getattr(module, "_is_expert_parallel", False):
        return "experts spread over several ranks"
    if reason := changed(module):
        return reason
    if implementation_of(module) not in IMPLEMENTATIONS:
        return f"experts by {implementation_of(module)}"
    if module.num_experts == 1:
        return "a single expert"  # whose adapter PEFT takes for that of a linear layer
    for name in names:
        weight = module._parameters.get(name)
        if not _is_stack(weight, module):
            return f"experts whose {name} is not a stack of {module.num_experts} matrices"
        if weight.dtype not in FLOATS:
            return f"experts in {weight.dtype}"
        narrow = weight.dtype.itemsize < 4 and implementation_of(module) == "eager"
        if narrow and _computes_wider(module.__class__):
            return "experts whose own code computes in float32"
        if module.has_bias and type(module._parameters.get(f"{name}_bias")) not in PLAIN:
            return f"experts without {name}_bias"
    return ""


def why_not_in(implementation: str, dtype: torch.dtype, autocast: torch.dtype | None) -> str:
    """Why experts have no graphs that compute as PEFT's path does, ``""`` if they have.

    Args:
        implementation: of the experts.
        dtype: of their weights.
        autocast: its dtype, None where it is off.
    """
    if autocast not in (None, dtype) and implementation != "grouped_mm":  # which ignores autocast
        return f"experts in {dtype} under autocast"
    if dtype == torch.float64 and implementation == "grouped_mm":
        return "torch has no grouped products in float64"
    return ""


def _is_stack(weight: Any, module: Any) -> bool:
    """Whether a weight is a plain tensor with one matrix for each expert."""
    return type(weight) in PLAIN and weight.dim() == 3 and weight.shape[0] == module.num_experts


@lru_cache(maxsize=256)
def _computes_wider(kind: type) -> bool:
    """Whether the own code of a class of experts, its ``eager`` implementation, names float32."""
    try:
        source = inspect.getsource(inspect.unwrap(inspect.getattr_static(kind, "forward")))
    except (OSError, TypeError):
        return False
    return "float32" in source or ".float()" in source


def configured_top_k(module: Any) -> int | None:
    """The experts of each token by the module's configuration, None if that does not say."""
    for name in _TOP_K:
        if isinstance(found := getattr(module.config, name, None), int) and found > 0:
            return found
    return None
