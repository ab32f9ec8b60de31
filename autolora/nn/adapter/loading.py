"""``autolora.load_adapter``: PEFT's files into the layers of ``add_lora``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from autolora.errors import AutoloraError, one_line
from autolora.nn.adapter.config import CONFIG, AdapterConfig, read_config
from autolora.nn.adapter.files import WEIGHTS, read_weights
from autolora.nn.adapter.layers import (
    PREFIX,
    Layer,
    Place,
    bare,
    nested,
    placed_layers,
    refuse_peft,
    some,
    unwrapped,
    walk,
    weights_of,
)
from autolora.nn.adapter.targets import ALL_LINEAR, Targets, find_targets, names_of_targets
from autolora.nn.adding import give_adapters
from autolora.nn.experts.module import FLOATS, features_of, is_experts, stacks_of
from autolora.nn.layer_tensors import base_layout
from autolora.nn.linear import check_adapter, scaling_of, sizes_of


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    adapter_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
    siblings: bool = True,
) -> nn.Module:
    """Reads adapters that ``save_adapter`` or PEFT's ``save_pretrained`` wrote, in place.

    A model without adapters is frozen and gets those that ``adapter_config.json`` names, as by
    ``add_lora``; they may be trained on. In a model of ``add_lora`` the adapters take the values of
    the file; they keep their dtypes and their dropout.

    Args:
        model: the one that the adapters were made for, with layers of ``add_lora`` or without.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        adapter_dtype: of the adapters that are added; defaults to that of the file.
        compute_dtype: of the layers that are added, see :class:`~autolora.LoRALinear`.
        objective: likewise.
        max_saved_bytes: likewise.
        siblings: likewise.

    Returns:
        The same model.

    Raises:
        AutoloraError: the files cannot be read, hold something else than LoRA on linear layers and
            stacked experts, or do not fit the model, which then is as it was.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutoloraError(
            f"no such folder: {folder}; an adapter is a folder with {CONFIG} and {WEIGHTS}"
        )
    refuse_peft(model)
    config = read_config(folder / CONFIG)
    weights = read_weights(folder)
    root = unwrapped(model)
    if placed := placed_layers(root):
        if merged := [place.path for place, layer in placed if layer.merged]:
            raise AutoloraError(f"{some(merged)} are merged; call autolora.unmerge(model) first")
        places = [place for place, _ in placed]
        _require_fit(folder, root, places, weights, _other_scalings(config, placed))
        _fill(_named(placed) | _bases(places), weights)
        return model
    targets, places, sizes = _targets(config, root, folder)
    _require_fit(folder, root, places, weights)
    give_adapters(
        root,
        targets,
        sizes,
        dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        lora_bias=config.lora_bias,
        compute_dtype=compute_dtype,
        objective=objective,
        max_saved_bytes=max_saved_bytes,
        siblings=siblings,
    )
    for name, weight in _named(placed_layers(root)).items():
        found = weights[name]
        weight.data = found.to(weight.device, adapter_dtype or found.dtype, copy=True)
    _fill(_bases(places), weights)
    return model


def _named(placed: Iterable[tuple[Place, Layer]]) -> dict[str, Tensor]:
    """The weights of adapters by their names in the file."""
    return {
        f"{PREFIX}{place.module}.{end}": weight
        for place, layer in placed
        for end, weight in weights_of(layer).items()
    }


def _bases(places: Iterable[Place]) -> dict[str, Tensor]:
    return {name: weight for place in places for name, weight in place.base_weights.items()}


def _fill(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Gives weights of the model the values that the file has for them, if it has."""
    with torch.no_grad():
        for name in held.keys() & weights.keys():
            held[name].copy_(weights[name])


def _targets(
    config: AdapterConfig, root: nn.Module, folder: Path
) -> tuple[Targets, list[Place], dict[str, tuple[int, float]]]:
    """What a configuration adapts in a model without adapters, with their ranks and alphas.

    Raises:
        AutoloraError: nothing, or something that is neither a linear layer nor a stack of experts.
    """
    names = config.target_modules
    if isinstance(names, str) and names.lower() == ALL_LINEAR:
        every = find_targets(root, ALL_LINEAR).linear
        config = replace(config, target_modules=[path for path, _ in every])
    targets, places, sizes = Targets([], []), [], {}
    for path, module in list(walk(root))[1:]:
        stacks = _stacks(config, path, module, folder)
        chosen = config.has_module(path) or _has_weight(config, path, module)
        if (chosen or stacks) and any(each.is_meta for each in module.parameters(recurse=False)):
            raise AutoloraError(f"{path} is on the meta device; load the model's weights first")
        if chosen:
            if not (base_layout(module) or isinstance(module, nn.Linear)):
                _refuse(f"target_modules include {path}", module, folder)
            targets.linear.append((path, module))
            sizes[path] = rank, _ = _size(config, path, module)
            sized = (rank, *sizes_of(module), 1, config.lora_bias)
            places.append(Place(path, path, *sized, module))
        if stacks:
            targets.experts.append((path, module, stacks))
        for name, where in zip(stacks, nested(path, len(stacks)), strict=True):
            weight, experts = f"{path}.{name}", cast(int, module.num_experts)
            sizes[weight] = rank, _ = config.size_of(weight)
            places.append(Place(weight, where, rank, *features_of(module, name), experts))
    if not places:
        raise AutoloraError(
            f"{folder / CONFIG} names no layer of this {type(root).__name__}, which has "
            f"{names_of_targets(root)}"
        )
    return targets, places, sizes


def _stacks(config: AdapterConfig, path: str, module: nn.Module, folder: Path) -> list[str]:
    """The names of the stacked weights of a module that a configuration adapts."""
    found = []
    for name in module._parameters:
        if config.has_parameter(f"{path}.{name}"):
            if is_experts(module) and name in stacks_of(module):
                found.append(name)
            elif not _has_weight(config, path, module):
                _refuse(f"target_parameters include {path}.{name}", module, folder)
    return found


def _has_weight(config: AdapterConfig, path: str, module: nn.Module) -> bool:
    """Whether a configuration adapts a linear layer by the path of its weight."""
    return isinstance(module, nn.Linear) and config.has_parameter(f"{path}.weight")


def _size(config: AdapterConfig, path: str, module: nn.Module) -> tuple[int, float]:
    return config.size_of(f"{path}.weight" if _has_weight(config, path, module) else path)


def _refuse(what: str, module: nn.Module, folder: Path) -> None:
    raise AutoloraError(
        f"{folder / CONFIG}: {what} ({type(module).__name__}), and layers of autolora.add_lora "
        "adapt linear layers and stacked experts alone; load it by peft.PeftModel.from_pretrained, "
        "then use autolora.accelerate"
    )


def _other_scalings(config: AdapterConfig, placed: Iterable[tuple[Place, Layer]]) -> list[str]:
    """How the scalings of layers differ from those of a configuration."""
    found = []
    for place, layer in placed:
        rank, alpha = _size(config, place.path, bare(layer))
        check_adapter(rank, alpha)
        s = scaling_of(rank, alpha, config.use_rslora)
        if not math.isclose(s, layer.scaling, rel_tol=1e-6):
            found.append(
                f"{place.path} scales by {s:g} in the file and by {layer.scaling:g} in the model"
            )
    return found


def _require_fit(
    folder: Path,
    root: nn.Module,
    places: Sequence[Place],
    weights: Mapping[str, Tensor],
    differences: Sequence[str] = (),
) -> None:
    """Compares the weights of a file with those that a model is to have.

    Raises:
        AutoloraError: they differ in names, shapes or otherwise.
    """
    expected = {name: shape for place in places for name, shape in place.shapes.items()}
    known = expected | {name: tuple(weight.shape) for name, weight in _bases(places).items()}
    shapes = [
        f"{name} is {tuple(weights[name].shape)} in the file and {shape} in the model"
        for name, shape in known.items()
        if name in weights and weights[name].shape != shape
    ]
    dtypes = [f"{name} is {w.dtype}" for name, w in weights.items() if w.dtype not in FLOATS]
    missing = [name for name in expected if name not in weights]
    unexpected = [one_line(name) for name in weights if name not in known]
    reasons = {
        "": [*shapes, *dtypes, *differences],
        "it lacks ": missing,
        "it has besides ": unexpected,
    }
    found = [f"{words}{some(names)}" for words, names in reasons.items() if names]
    if found:
        raise AutoloraError(f"{folder} does not fit this {type(root).__name__}: {'; '.join(found)}")
