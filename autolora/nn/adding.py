"""``autolora.add_lora``: gives the layers and experts of a model their adapters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from autolora.nn.adapter.layers import unwrapped
from autolora.nn.adapter.targets import ALL_LINEAR, Targets, by_pattern, find_targets
from autolora.nn.defaults import objective_of
from autolora.nn.experts.native import LoRAExperts
from autolora.nn.linear import LoRALinear, check_adapter


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    target_modules: str | Collection[str] = ALL_LINEAR,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    lora_bias: bool = False,
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
        alpha: s = alpha / rank; defaults to the layer's rank, so that s = 1.
        target_modules: ``"all-linear"`` for every linear layer (of torch, ``Conv1D`` of
            transformers, NF4 and int8 layers of bitsandbytes) except the head (the output
            embedding, or a ``score`` or ``classifier`` of the model itself), and for every stacked
            weight of experts; a collection of names, which match the end of a path as in PEFT; or a
            regular expression for the whole path. The path of a stacked weight is its module's and
            its name, as in ``model.layers.0.mlp.experts.gate_up_proj``.
        rank_pattern: other ranks, as in PEFT: by regular expressions for the ends of paths, such as
            ``{"v_proj": 4}`` or, for a whole path, ``{"^model.layers.0.mlp.up_proj": 32}``.
        alpha_pattern: likewise other alphas.
        dropout: see :class:`LoRALinear`. Adapters on experts have none, as in PEFT, and no bias:
            with a dropout or ``lora_bias``, ``"all-linear"`` leaves experts out, with a warning.
        use_rslora: see :class:`LoRALinear`.
        lora_bias: see :class:`LoRALinear`.
        adapter_dtype: see :class:`LoRALinear`.
        compute_dtype: see :class:`LoRALinear`; experts compute in the dtype of their weights.
        objective: see :class:`LoRALinear`.
        max_saved_bytes: see :class:`LoRALinear`.
        siblings: see :class:`LoRALinear`.

    Returns:
        The same model.

    Raises:
        AutoloraError: nothing matched, experts are named together with a dropout or ``lora_bias``,
            or an argument is out of range.
    """
    lack = "dropout" if dropout else "bias" if lora_bias else ""
    return adapt(
        model,
        find_targets(model, target_modules, lack),
        rank=rank,
        alpha=alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        dropout=dropout,
        use_rslora=use_rslora,
        lora_bias=lora_bias,
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
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    **options: Any,
) -> nn.Module:
    """Freezes a model and gives targets adapters, in place.

    Args:
        model: that the targets were found in.
        targets: without experts if there is a dropout or a bias.
        rank: as the other arguments, see :func:`add_lora`.
        alpha: likewise.
        rank_pattern: likewise.
        alpha_pattern: likewise.
        options: of :func:`give_adapters`.

    Raises:
        AutoloraError: an argument is out of range; the model is as it was.
    """
    check_adapter(rank, rank if alpha is None else alpha)
    sizes = {}
    for path in targets.paths:
        own = by_pattern(rank_pattern or {}, path, rank)
        sizes[path] = own, by_pattern(alpha_pattern or {}, path, own if alpha is None else alpha)
    return give_adapters(model, targets, sizes, **options)


def give_adapters(
    model: nn.Module,
    targets: Targets,
    sizes: Mapping[str, tuple[int, float]],
    *,
    dropout: float = 0.0,
    lora_bias: bool = False,
    siblings: bool = True,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
    **options: Any,
) -> nn.Module:
    """Freezes a model and gives targets adapters of these sizes, in place.

    Args:
        model: that the targets were found in.
        targets: without experts if there is a dropout or a bias.
        sizes: rank and alpha by the path of a linear layer or stacked weight.
        dropout: of linear layers.
        lora_bias: of linear layers.
        siblings: of linear layers.
        objective: as in :func:`add_lora`.
        max_saved_bytes: likewise.
        options: further arguments of both :class:`LoRALinear` and :class:`LoRAExperts`.

    Raises:
        AutoloraError: an argument is out of range; the model is as it was.
    """
    for rank, alpha in sizes.values():
        check_adapter(rank, alpha, dropout)
    objective_of(objective, max_saved_bytes)
    options |= {"objective": objective, "max_saved_bytes": max_saved_bytes}
    linear = {"dropout": dropout, "lora_bias": lora_bias, "siblings": siblings, **options}
    model.requires_grad_(False)
    replaced: dict[nn.Module, nn.Module] = {}  # shared layers stay shared
    for path, layer in targets.linear:
        if layer not in replaced:
            rank, alpha = sizes[path]
            replaced[layer] = LoRALinear.from_linear(layer, rank, alpha=alpha, **linear)
        _replace(model, path, replaced[layer])
    for path, experts, names in targets.experts:
        if experts not in replaced:
            wrapper = experts
            for name in names:
                rank, alpha = sizes[f"{path}.{name}"]
                wrapper = LoRAExperts(wrapper, name, rank, alpha=alpha, **options)
            replaced[experts] = wrapper
        _replace(model, path, replaced[experts])
    return model


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(unwrapped(model.get_submodule(parent)), child, new)
