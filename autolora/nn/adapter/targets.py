"""The layers and stacked weights of experts that are to get adapters, by PEFT's rules."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from torch import nn

from autolora.errors import AutoloraError
from autolora.nn.experts.module import is_experts, stacks_of
from autolora.nn.experts.native import LoRAExperts
from autolora.nn.layer_tensors import base_layout

ALL_LINEAR = "all-linear"
N = TypeVar("N", int, float)

_HEADS = ("score", "classifier")  # of classification models of transformers

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to get adapters.

    Args:
        linear: paths and linear layers.
        experts: paths and modules of experts, each with the names of its stacked weights.
        left: the same of experts that are left out, since their adapters lack what is asked for.
    """

    linear: list[tuple[str, nn.Module]]
    experts: list[tuple[str, nn.Module, list[str]]]
    left: list[tuple[str, nn.Module, list[str]]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Of the linear layers and of the stacked weights."""
        stacks = [f"{path}.{name}" for path, _, names in self.experts for name in names]
        return [path for path, _ in self.linear] + stacks


def find_targets(
    model: nn.Module, target_modules: str | Collection[str], lack: str = ""
) -> Targets:
    """The linear layers and stacked weights of experts that are to get adapters.

    Args:
        model: before it is given adapters.
        target_modules: as in :func:`add_lora`.
        lack: what the adapters are to have that those on experts cannot, such as ``"dropout"``.

    Raises:
        AutoloraError: nothing matched, or experts are named although their adapters lack something.
    """
    linear, experts = [], []
    adapted = {each.base_layer for each in model.modules() if isinstance(each, LoRAExperts)}
    for path, module in model.named_modules(remove_duplicate=False):
        if base_layout(module) and _is_targeted(path, module, target_modules, model):
            linear.append((path, module))
        elif is_experts(module) and module not in adapted:
            names = [
                name
                for name in stacks_of(module)
                if target_modules == ALL_LINEAR or matches_path(f"{path}.{name}", target_modules)
            ]
            experts += [(path, module, names)] if names else []
    targets = Targets(linear, experts)
    if lack and experts:
        targets = _without_experts(targets, target_modules, lack)
    if not targets.linear and not targets.experts:
        raise AutoloraError(
            f"target_modules {target_modules!r} match no linear layer of this "
            f"{type(model).__name__} and no stacked weight of experts without adapters; it has "
            f"{names_of_targets(model)}"
        )
    if "" in (path for path, *_ in (*targets.linear, *targets.experts)):
        instead = (
            "a torch.nn.Linear; use autolora.LoRALinear.from_linear(model, ...)"
            if targets.linear
            else "a module of experts; use autolora.LoRAExperts(model, 'gate_up_proj', ...)"
        )
        raise AutoloraError(f"the model is itself {instead}")
    return targets


def matches_path(path: str, target_modules: str | Collection[str]) -> bool:
    """Whether a regular expression or one of several names matches a path, as in PEFT.

    Raises:
        AutoloraError: the regular expression is invalid.
    """
    if isinstance(target_modules, str):
        try:
            return re.fullmatch(target_modules, path) is not None
        except re.error as error:
            raise AutoloraError(
                f"target_modules {target_modules!r} is no regular expression: {error}"
            ) from None
    return any(path == target or path.endswith(f".{target}") for target in target_modules)


def by_pattern(patterns: Mapping[str, N], path: str, default: N) -> N:
    """The value of the first pattern that matches the end of a path, as in PEFT.

    Raises:
        AutoloraError: a pattern is no regular expression.
    """
    return next((patterns[each] for each in patterns if _ending(each).match(path)), default)


@lru_cache(maxsize=4096)
def _ending(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise AutoloraError(f"the pattern {pattern!r} is no regular expression: {error}") from None


def _is_targeted(
    path: str, layer: nn.Module, target_modules: str | Collection[str], model: nn.Module
) -> bool:
    if target_modules == ALL_LINEAR:
        get = getattr(model, "get_output_embeddings", None)
        head = get() if callable(get) else None
        return layer is not head if head is not None else path not in _HEADS
    return matches_path(path, target_modules)


def _without_experts(targets: Targets, target_modules: str | Collection[str], lack: str) -> Targets:
    """The targets without experts, if these are not named."""
    path, _, names = targets.experts[0]
    where = f"{path}.{names[0]}"
    if target_modules != ALL_LINEAR:
        raise AutoloraError(
            f"target_modules {target_modules!r} include {where}, a stacked weight of experts, and "
            f"adapters on these have no {lack}, as in PEFT: leave out the {lack}, or name linear "
            "layers alone"
        )
    number = sum(len(names) for _, _, names in targets.experts)
    logger.warning(
        "autolora: %s get no adapters, since adapters on these have no %s, as in PEFT; leave out "
        "the %s to adapt them as well",
        f"{number} stacked weights of experts ({where}, …)"
        if number > 1
        else f"the stacked weight of experts {where}",
        lack,
        lack,
    )
    return Targets(targets.linear, [], targets.experts)


def names_of_targets(model: nn.Module) -> str:
    """The names of what can have an adapter in a model, at most eight."""
    names = []
    for path, module in model.named_modules():
        if base_layout(module):
            names.append(path.rpartition(".")[2])
        elif is_experts(module):
            names += stacks_of(module)
    last = list(dict.fromkeys(names))
    return (", ".join(last[:8]) + (", …" if len(last) > 8 else "")) or "none"
