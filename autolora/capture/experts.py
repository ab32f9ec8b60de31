"""Notes on routed experts whose weights are stacked in 3-D parameters: which of them are tuned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from torch import Tensor, nn

from autolora.nn.adapter.targets import ALL_LINEAR, Targets, matches_path
from autolora.nn.experts.module import is_experts, stacks_of

# what PEFT renames to the stacked weights: names of the layers that experts used to be made of
_EARLIER_NAMES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def notes_of_experts(
    model: nn.Module, target_modules: str | Collection[str], targets: Targets
) -> list[str]:
    """Sentences about the stacked experts that the targets include.

    Args:
        model: before it is given adapters.
        target_modules: as in :func:`autolora.add_lora`.
        targets: what these were found to be.
    """
    adapted: dict[str, int] = {}
    weights: dict[str, None] = {}
    for path, experts, names in targets.experts:
        adapted[path.rpartition(".")[0]] = cast(int, experts.num_experts)
        weights |= dict.fromkeys(names)
    known = {path for path, *_ in (*targets.experts, *targets.left)}
    unnamed, others = _stacked_experts(model, target_modules, known)
    notes = []
    if adapted:
        which = " and ".join(weights)
        notes.append(f"{_who(adapted)} get adapters on {which} and are tuned")
    if unnamed:
        notes.append(
            f"{_who(unnamed)} left out: target_modules must name these weights, as in "
            "experts.gate_up_proj and experts.down_proj"
        )
    if others:
        notes.append(f"{_who(others)} left out: LoRA on these stays on PEFT's path")
    return notes


def _who(blocks: Mapping[str, int]) -> str:
    """The blocks, the first of their paths, and their experts, in words."""
    number = len(blocks)
    who = "1 mixture-of-experts block" if number == 1 else f"{number} mixture-of-experts blocks"
    where = next(iter(blocks)) + (", …" if number > 1 else "")
    return f"{who} ({where}) with {sum(blocks.values())} routed experts in stacked 3-D weights"


def _stacked_experts(
    model: nn.Module, target_modules: str | Collection[str], known: Collection[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """The number of experts by the path of their mixture-of-experts block.

    First those that could get adapters, then others: experts are a parameter ``(experts, ., .)`` of
    a module that says how many there are, or has a router ``(experts, in_features)`` within two
    levels above it.

    Args:
        model: of any kind.
        target_modules: that name a weight of the experts, maybe by an earlier name.
        known: paths of modules that are not looked at.
    """
    modules = dict(model.named_modules())
    unnamed: dict[str, int] = {}
    found: dict[str, int] = {}
    for path, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        stacked = {name: w.shape for name, w in own.items() if _is_stacked(w)}
        if (
            path in known
            or isinstance(module, nn.modules.conv._ConvNd)
            or not any(_is_targeted(path, name, target_modules) for name in stacked)
        ):
            continue
        shapes, parent = list(stacked.values()), path.rpartition(".")[0]
        if is_experts(module) and stacks_of(module):
            unnamed[parent] = shapes[0][0]
            continue
        if getattr(module, "num_experts", None) == shapes[0][0]:
            found[parent] = shapes[0][0]
            continue
        for block in (parent, parent.rpartition(".")[0]):
            matrices = {w for w in modules[block].parameters() if w.dim() == 2} - {*own.values()}
            if any(w.shape[0] == s[0] and w.shape[1] in s[1:] for w in matrices for s in shapes):
                found[block] = shapes[0][0]
                break
    return unnamed, found


def _is_stacked(weight: Tensor) -> bool:
    return weight.dim() == 3 and weight.is_floating_point() and min(weight.shape) > 1


def _is_targeted(path: str, name: str, target_modules: str | Collection[str]) -> bool:
    if target_modules == ALL_LINEAR:
        return True
    names = (path, *(f"{path}.{each}" for each in (name, *_EARLIER_NAMES)))
    return any(matches_path(each, target_modules) for each in names)
