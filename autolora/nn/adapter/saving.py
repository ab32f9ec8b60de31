"""``autolora.save_adapter``: the adapters of ``add_lora`` in PEFT's files."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autolora.cache.files.disk import replace_file, temporary_file, write_all
from autolora.errors import AutoloraError
from autolora.nn.adapter.config import CONFIG
from autolora.nn.adapter.files import WEIGHTS, safetensors
from autolora.nn.adapter.layers import (
    PREFIX,
    Layer,
    Place,
    bare,
    native_layers,
    placed_layers,
    unwrapped,
    walk,
    weights_of,
)
from autolora.nn.adapter.merging import unmerged
from autolora.nn.experts.module import is_experts
from autolora.nn.layer_tensors import PLAIN, base_layout
from autolora.nn.linear import LoRALinear, scaling_of

# Of a transformers model with stacked experts PEFT takes a module with such a name for the layers
# that experts used to be made of, and adapts the stacked weights instead.
_RENAMED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")

_EMBEDDINGS = {"embed_tokens", "lm_head"}  # PEFT saves them whole where they have adapters

logger = logging.getLogger("autolora")


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Writes the adapters of a model as PEFT does, whose ``PeftModel.from_pretrained`` reads them.

    ``adapter_model.safetensors`` is byte for byte what PEFT writes; ``adapter_config.json`` says
    which layers they belong to. Each file is replaced whole, once both are written, or neither. The
    files of merged or disabled adapters are the same.

    Args:
        model: with layers of ``add_lora``.
        folder: made if it does not exist.

    Raises:
        AutoloraError: the model has no such layers, its weights are spread over several ranks,
            PEFT's format cannot say what it is, or a file cannot be written.
    """
    native_layers(model)
    root = unwrapped(model)
    placed = placed_layers(root)
    config = _config(root, placed)
    tensors = _tensors(placed)
    if _EMBEDDINGS.intersection(config["target_modules"]):
        tensors |= _embeddings(root, placed)
    data = safetensors().save(_separate(tensors), metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True)
    _write(Path(folder), {WEIGHTS: data, CONFIG: text.encode()})


def _tensors(placed: Iterable[tuple[Place, Layer]]) -> dict[str, Tensor]:
    """The weights of the adapters by their names.

    Raises:
        AutoloraError: one is not there as a whole, or the model is itself a layer.
    """
    found: dict[str, Tensor] = {}
    for place, layer in placed:
        if not place.path.partition(".")[0]:
            raise AutoloraError(
                f"the model is itself a {type(layer).__name__}, and PEFT's files name layers of "
                "a model; save one that holds it"
            )
        for end, weight in weights_of(layer).items():
            name = f"{PREFIX}{place.module}.{end}"
            if type(weight) not in PLAIN or weight.is_meta or weight.shape != place.shapes[name]:
                raise AutoloraError(
                    f"{place.module}.{end} is a {type(weight).__name__} {tuple(weight.shape)} on "
                    f"{weight.device}, not a whole weight {place.shapes[name]}; gather the weights "
                    "first"
                )
            found[name] = weight
    return found


def _embeddings(root: Any, placed: Iterable[tuple[Place, Layer]]) -> dict[str, Tensor]:
    """The weights of an adapted head itself, which PEFT saves too."""
    if not hasattr(root, "get_input_embeddings"):
        return {}
    own = (root.get_input_embeddings(), root.get_output_embeddings())
    found: dict[str, Tensor] = {}
    for place, layer in placed:
        if layer in own:
            found |= {n: unmerged(layer, weight) for n, weight in place.base_weights.items()}
    return found


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, and none in the memory of another."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        found[name] = (tensor.clone() if storage in seen else tensor).detach().contiguous()
        seen.add(storage)
    return found


def _config(root: nn.Module, placed: list[tuple[Place, Layer]]) -> dict[str, Any]:
    """The fields of ``adapter_config.json``."""
    linear = [layer for _, layer in placed if isinstance(layer, LoRALinear)]
    biased = {place.bias for place, _ in placed}
    if len(biased) > 1:
        raise AutoloraError(
            "lora_bias is one setting for all layers in PEFT's files, and only some of this "
            f"{type(root).__name__} have a bias in lora_B (none on experts can)"
        )
    dropout, *others = {getattr(layer, "dropout", 0.0) for _, layer in placed}
    if others:
        dropout = 0.0
        logger.warning(
            "autolora: layers differ in dropout, which PEFT's files cannot say: taken as 0"
        )
    use_rslora = all(layer.use_rslora for _, layer in placed)
    as_weights = _as_weights(root, placed) if dropout == 0 and biased == {False} else set()
    paths = {place.path: f"{place.path}.weight" for place, _ in placed if place.path in as_weights}
    keyed = [(paths.get(place.path, place.path), layer) for place, layer in placed]
    r, rank_pattern = _patterns({key: layer.rank for key, layer in keyed})
    alpha, alpha_pattern = _patterns({key: _alpha(layer, use_rslora) for key, layer in keyed})
    modules = [path for path, _ in walk(root) if path]
    parameters = [f"{path}.{name}" for path, each in walk(root) for name in bare(each)._parameters]
    chosen = {place.path for place, each in placed if isinstance(each, LoRALinear)} - as_weights
    target_modules = _endings(chosen, modules, 1)
    more = [path for path in modules if path not in chosen and _ends(path, target_modules)]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": type(root).__name__,
            "parent_library": type(root).__module__,
        },
        "base_model_name_or_path": getattr(root, "name_or_path", None) or None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": use_rslora,
        "use_dora": False,
        "lora_bias": biased == {True},
        "bias": "none",
        "fan_in_fan_out": any(base_layout(layer.base_layer) == "conv1d" for layer in linear),
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": target_modules,
        "exclude_modules": "|".join(map(re.escape, more)) or None,
        "target_parameters": _endings({key for key, _ in keyed} - chosen, parameters, 2) or None,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _as_weights(root: nn.Module, placed: Iterable[tuple[Place, Layer]]) -> set[str]:
    """The paths of the linear layers that PEFT finds by the path of their weight alone."""
    if not any(is_experts(bare(module)) for _, module in walk(root)):
        return set()
    return {
        place.path
        for place, layer in placed
        if place.path.rpartition(".")[2] in _RENAMED and base_layout(layer.base_layer) == "linear"
    }


def _alpha(layer: Layer, use_rslora: bool) -> float:
    """The alpha that gives the layer's scaling with its rank."""
    if scaling_of(layer.rank, layer.alpha, use_rslora) == layer.scaling:
        return layer.alpha
    return layer.scaling * (math.sqrt(layer.rank) if use_rslora else layer.rank)


def _patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and patterns for the paths that have others, in any order."""
    default = Counter(values.values()).most_common(1)[0][0]
    by_name: dict[str, set[float]] = defaultdict(set)
    for path, value in values.items():
        by_name[path.rpartition(".")[2]].add(value)
    patterns = {}
    for path, value in values.items():
        name = path.rpartition(".")[2]
        if value != default:
            alike = len(by_name[name]) == 1
            patterns[re.escape(name) if alike else f"^{re.escape(path)}"] = value
    return default, patterns


def _endings(chosen: Iterable[str], every: Iterable[str], parts: int) -> list[str]:
    """The ends of the paths chosen, of so many parts, or the whole path where others end so too."""

    def end(path: str) -> str:
        return ".".join(path.split(".")[-parts:])

    chosen = set(chosen)
    others = {end(path) for path in every if path not in chosen}
    return sorted({path if end(path) in others else end(path) for path in chosen})


def _ends(path: str, endings: Iterable[str]) -> bool:
    return any(path == each or path.endswith(f".{each}") for each in endings)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces files of a folder, each as a whole, once all of them are written.

    Raises:
        AutoloraError: one cannot be written; then none is replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            written = {}
            for name, data in files.items():
                if (folder / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder")
                path, file = stack.enter_context(temporary_file(folder / name))
                write_all(file, data)
                written[name] = path
            for name, path in written.items():
                replace_file(path, folder / name)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        cause = getattr(error, "strerror", None) or error
        raise AutoloraError(f"cannot write the adapter to {folder}: {cause}") from error
