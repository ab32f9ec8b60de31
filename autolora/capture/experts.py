"""Routed experts whose weights are stacked in 3-D parameters, for which there are no graphs yet."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from autolora.nn.linear import matches_path

# what PEFT renames to the stacked weights: names of the layers that experts used to be made of
_EARLIER_NAMES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def note_of_experts(model: nn.Module, target_modules: str | Collection[str]) -> list[str]:
    """A sentence about the stacked experts that the targets include, if there are any.

    Args:
        model: before it is given adapters.
        target_modules: as in :func:`autolora.add_lora`.
    """
    blocks = _stacked_experts(model, target_modules)
    if not blocks:
        return []
    number = len(blocks)
    who = "1 mixture-of-experts block" if number == 1 else f"{number} mixture-of-experts blocks"
    where = next(iter(blocks)) + (", …" if number > 1 else "")
    return [
        f"{who} ({where}) with {sum(blocks.values())} routed experts in stacked 3-D weights "
        "left out: LoRA on these stays on PEFT's path"
    ]


def _stacked_experts(model: nn.Module, target_modules: str | Collection[str]) -> dict[str, int]:
    """The number of experts by the path of their mixture-of-experts block.

    Experts are a parameter ``(experts, ., .)`` of a module that says how many there are, or has a
    router ``(experts, in_features)`` within two levels above it.
    """
    modules = dict(model.named_modules())
    found: dict[str, int] = {}
    for path, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        stacked = {name: w.shape for name, w in own.items() if _is_stacked(w)}
        if isinstance(module, nn.modules.conv._ConvNd) or not any(
            _is_targeted(path, name, target_modules) for name in stacked
        ):
            continue
        shapes, parent = list(stacked.values()), path.rpartition(".")[0]
        if getattr(module, "num_experts", None) == shapes[0][0]:
            found[parent] = shapes[0][0]
            continue
        for block in (parent, parent.rpartition(".")[0]):
            matrices = {w for w in modules[block].parameters() if w.dim() == 2} - {*own.values()}
            if any(w.shape[0] == s[0] and w.shape[1] in s[1:] for w in matrices for s in shapes):
                found[block] = shapes[0][0]
                break
    return found


def _is_stacked(weight: Tensor) -> bool:
    return weight.dim() == 3 and weight.is_floating_point() and min(weight.shape) > 1


def _is_targeted(path: str, name: str, target_modules: str | Collection[str]) -> bool:
    if target_modules == "all-linear":
        return True
    names = (path, *(f"{path}.{each}" for each in (name, *_EARLIER_NAMES)))
    return any(matches_path(each, target_modules) for each in names)
