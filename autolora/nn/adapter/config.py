"""``adapter_config.json``: how PEFT's files say which layers have adapters, and of what kind."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolora.errors import AutoloraError, one_line
from autolora.nn.adapter.targets import by_pattern, matches_path

CONFIG = "adapter_config.json"

_NUMBER, _NAMES = (int, float), "a list of names"
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {  # the allowed types, and these in words
    "peft_type": ((str,), "text"),
    "r": ((int,), "a whole number"),
    "lora_alpha": (_NUMBER, "a number"),
    "lora_dropout": (_NUMBER, "a number"),
    "use_rslora": ((bool,), "true or false"),
    "lora_bias": ((bool,), "true or false"),
    "target_modules": ((str, list), f"{_NAMES} or a regular expression"),
    "exclude_modules": ((str, list), f"{_NAMES} or a regular expression"),
    "target_parameters": ((list,), _NAMES),
    "layers_to_transform": ((int, list), "a number or a list of numbers"),
    "layers_pattern": ((str, list), f"a name or {_NAMES}"),
    "rank_pattern": ((dict,), "an object of patterns and whole numbers"),
    "alpha_pattern": ((dict,), "an object of patterns and numbers"),
    "bias": ((str,), "text"),
    "init_lora_weights": ((bool, str), "true, false or text"),
}
_ITEMS: dict[str, tuple[type, ...]] = {
    "target_modules": (str,),
    "exclude_modules": (str,),
    "target_parameters": (str,),
    "layers_to_transform": (int,),
    "layers_pattern": (str,),
    "rank_pattern": (int,),
    "alpha_pattern": _NUMBER,
}
_UNSUPPORTED = (  # each computes, trains or stores something else than the layers of add_lora
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "megatron_config",
    "ensure_weight_tying",
)
_WITHOUT_EFFECT = (  # on what an adapter computes
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "fan_in_fan_out",  # the base layer says it
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
)
_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal", "eva", "lora_ga", "mica")

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of PEFT's ``LoraConfig`` that say what the adapters of a file are.

    Args:
        r: the rank.
        lora_alpha: s = alpha / rank, or alpha / √rank with ``use_rslora``.
        lora_dropout: of linear layers.
        use_rslora: see ``lora_alpha``.
        lora_bias: whether lora_B of linear layers has a bias.
        target_modules: ends of paths, a regular expression for whole paths, or ``"all-linear"``.
        exclude_modules: likewise, of layers without adapters.
        target_parameters: ends of paths of parameters.
        layers_to_transform: the numbers of the blocks that have adapters; empty for all.
        layers_pattern: names of the lists of these blocks.
        rank_pattern: other ranks, by patterns for the ends of paths.
        alpha_pattern: likewise other alphas.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    lora_bias: bool = False
    target_modules: str | list[str] = field(default_factory=list)
    exclude_modules: str | list[str] = field(default_factory=list)
    target_parameters: list[str] = field(default_factory=list)
    layers_to_transform: list[int] = field(default_factory=list)
    layers_pattern: list[str] = field(default_factory=list)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def has_module(self, path: str) -> bool:
        """Whether the module at a path in the model without adapters is to have one."""
        if self.exclude_modules and matches_path(path, self.exclude_modules):
            return False
        if not matches_path(path, self.target_modules):
            return False
        named = isinstance(self.target_modules, list) and path in self.target_modules
        if named or not self.layers_to_transform:
            return True
        return self._block_of(path) in self.layers_to_transform

    def has_parameter(self, path: str) -> bool:
        """Likewise the parameter at a path."""
        return matches_path(path, self.target_parameters)

    def size_of(self, path: str) -> tuple[int, float]:
        """Rank and alpha of the adapter of a module or parameter at a path."""
        rank = by_pattern(self.rank_pattern, path, self.r)
        return rank, by_pattern(self.alpha_pattern, path, self.lora_alpha)

    def _block_of(self, path: str) -> int | None:
        """The number of the block that a path leads through, None if it leads through none."""
        patterns = [rf"(?:^|.*?\.){name}" for name in self.layers_pattern] or [r".*?\.[^.]*"]
        for pattern in patterns:
            if found := re.match(rf"{pattern}\.(\d+)\.", path):
                return int(found[1])
        return None


def read_config(path: Path) -> AdapterConfig:
    """The configuration of a file, which layers of ``add_lora`` can have.

    Raises:
        AutoloraError: it cannot be read, is no ``LoraConfig``, or asks for something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise AutoloraError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AutoloraError(f"{path} is no JSON: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise AutoloraError(f"{path} must hold an object, not a {type(data).__name__}")
    given = {name: value for name, value in data.items() if value is not None}
    for name, value in given.items():
        _check(path, name, value)
    if (kind := given.get("peft_type")) != "LORA":
        raise AutoloraError(f"{path} is of peft_type {one_line(repr(kind))}; it must be LORA")
    for name in _UNSUPPORTED:
        if given.get(name) not in (None, False, 0, "", [], {}):
            _not_native(path, name, given[name])
    if given.get("bias", "none") != "none":
        _not_native(path, "bias", given["bias"])
    if (init := given.get("init_lora_weights", True)) not in _KEEP_THE_BASE:
        _not_native(path, "init_lora_weights", init, ", which changes the base weights")
    known = {*_FIELDS, *_UNSUPPORTED, *_WITHOUT_EFFECT}
    if unknown := sorted(n for n in given.keys() - known if given[n] not in (False, "", [], {})):
        names = one_line(", ".join(unknown))
        logger.warning("autolora: %s has fields that are not known here: %s", path, names)
    own = {n: value for n, value in given.items() if n in AdapterConfig.__dataclass_fields__}
    for name in ("layers_to_transform", "layers_pattern"):
        if name in own and not isinstance(own[name], list):
            own[name] = [] if own[name] == "" else [own[name]]
    return AdapterConfig(**own)


def _check(path: Path, name: str, value: Any) -> None:
    """Checks the type of a field.

    Raises:
        AutoloraError: it is another.
    """
    if name not in _FIELDS:
        return
    allowed, words = _FIELDS[name]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if type(value) not in allowed or any(type(each) not in _ITEMS[name] for each in items):
        raise AutoloraError(f"{name} in {path} must be {words}, not {one_line(repr(value), 80)}")


def _not_native(path: Path, name: str, value: Any, why: str = "") -> None:
    raise AutoloraError(
        f"{path} has {name} = {one_line(repr(value), 80)}{why}: layers of autolora.add_lora do not "
        "have that; load it by peft.PeftModel.from_pretrained, then use autolora.accelerate"
    )
