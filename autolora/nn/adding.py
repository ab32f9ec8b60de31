"""``autolora.add_lora``: finds the layers and experts that are to get adapters, and wraps them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autolora.errors import AutoloraError
from autolora.nn.defaults import objective_of
from autolora.nn.experts.module import is_experts, stacks_of
from autolora.nn.experts.native import LoRAExperts
from autolora.nn.layer_tensors import base_layout
from autolora.nn.linear import LoRALinear, check_adapter

ALL_LINEAR = "all-linear"

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


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    target_modules: str | Collection[str] = ALL_LINEAR,
    dropout: float = 0.0,
    use_rslora: bool = False,
    adapter_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
    siblings: bool = True,
) -> nn.Module:
    """Freezes a model and gives its target layers adapters, in place.

    Linear layers become :class:`LoRALinear`. The stacked weights of a mixture's experts, in modules
    that follow the experts interface of transformers, get a :class:`LoRAExperts` each, nested as
    PEFT nests its wrappers: the innermost adapts ``gate_up_proj`` (or ``up_proj``), the outermost
    ``down_proj``. State dicts have PEFT's names, without its prefix ``base_model.model.``.

    Args:
        model: any module.
        rank: of every adapter; each expert has its own.
        alpha: s = alpha / rank; defaults to ``rank``, so that s = 1.
        target_modules: ``"all-linear"`` for every linear layer (of torch, ``Conv1D`` of
            transformers, NF4 and int8 layers of bitsandbytes) except the head (the output
            embedding, or a ``score`` or ``classifier`` of the model itself), and for every stacked
            weight of experts; a collection of names, which match the end of a path as in PEFT; or a
            regular expression for the whole path. The path of a stacked weight is its module's and
            its name, as in ``model.layers.0.mlp.experts.gate_up_proj``.
        dropout: see :class:`LoRALinear`. Adapters on experts have none, as in PEFT: with a dropout,
            ``"all-linear"`` leaves experts out and logs a warning.
        use_rslora: see :class:`LoRALinear`.
        adapter_dtype: see :class:`LoRALinear`.
        compute_dtype: see :class:`LoRALinear`; experts compute in the dtype of their weights.
        objective: see :class:`LoRALinear`.
        max_saved_bytes: see :class:`LoRALinear`.
        siblings: see :class:`LoRALinear`.

    Returns:
        The same model.

    Raises:
        AutoloraError: nothing matched, experts are named together with a dropout, or an argument is
            out of range.
    """
    return adapt(
        model,
        find_targets(model, target_modules, "dropout" if dropout else ""),
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        use_rslora=use_rslora,
        adapter_dtype=adapter_dtype,
        compute_dtype=compute_dtype,
        objective=objective,
        max_saved_bytes=max_saved_bytes,
        siblings=siblings,
    )


def adapt(
    model: nn.Module,
    targets: Targets,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    siblings: bool = True,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
    **options: Any,
) -> nn.Module:
    """Freezes a model and gives targets adapters, in place.

    Args:
        model: that the targets were found in.
        targets: without experts if there is a dropout.
        rank: as the other arguments, see :func:`add_lora`.
        alpha: likewise.
        dropout: of linear layers.
        siblings: of linear layers.
        objective: likewise.
        max_saved_bytes: likewise.
        options: further arguments of both :class:`LoRALinear` and :class:`LoRAExperts`.

    Raises:
        AutoloraError: an argument is out of range; the model is as it was.
    """
    alpha = rank if alpha is None else alpha
    check_adapter(rank, alpha, dropout)
    objective_of(objective, max_saved_bytes)
    options |= {"alpha": alpha, "objective": objective, "max_saved_bytes": max_saved_bytes}
    model.requires_grad_(False)
    replaced: dict[nn.Module, nn.Module] = {}  # shared layers stay shared
    for path, layer in targets.linear:
        if layer not in replaced:
            replaced[layer] = LoRALinear.from_linear(
                layer, rank, dropout=dropout, siblings=siblings, **options
            )
        _replace(model, path, replaced[layer])
    for path, experts, names in targets.experts:
        if experts not in replaced:
            wrapper = experts
            for name in names:
                wrapper = LoRAExperts(wrapper, name, rank, **options)
            replaced[experts] = wrapper
        _replace(model, path, replaced[experts])
    return model


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
            f"{_some(model)}"
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


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _some(model: nn.Module) -> str:
    names = []
    for path, module in model.named_modules():
        if base_layout(module):
            names.append(path.rpartition(".")[2])
        elif is_experts(module):
            names += stacks_of(module)
    last = list(dict.fromkeys(names))
    return (", ".join(last[:8]) + (", …" if len(last) > 8 else "")) or "none"
