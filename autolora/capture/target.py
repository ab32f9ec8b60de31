"""TARGET, as the command line names a model: its LoRA layers on the meta device, and its input."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.hf_config import CONFIG, load_config
from autolora.capture.model_file import load_model_file
from autolora.errors import AutoloraError
from autolora.nn.adapted import adapted_layers, left_layers
from autolora.nn.linear import add_lora
from autolora.problem import QUANTISED, Problem

logger = logging.getLogger("autolora")

DEFAULT_BATCH_SIZE, DEFAULT_SEQ_LEN = 4, 512

_PYTHON = re.compile(r"(?P<path>.+\.py)(?::(?P<name>.*))?", re.DOTALL)
_ALLOWED = "model.py, model.py:NAME, or a Hugging Face config.json or its folder"


@dataclass(frozen=True, slots=True)
class Adapters:
    """The LoRA layers and dtypes that a target is to be trained with.

    Args:
        rank: of the adapters to add; None where the model brings its own.
        alpha: as in :func:`autolora.add_lora`, likewise target_modules.
        target_modules: which layers get one.
        dtype: of the base model; its own unless given.
        adapter_dtype: of A and B. Unless given: what the model brings, else the base's dtype in a
            model file and float32 for a Hugging Face model with a narrower base, as PEFT does.
        compute_dtype: in which the adapter branch runs; what PEFT would do unless given.
        dropout: of the adapters to add, likewise the rest.
        dora: whether they are DoRA's.
        lora_bias: whether lora_B has a bias.
        quantised: how the base layers will be: ``"nf4"`` or ``"int8"``, computed in ``dtype``.

    Raises:
        AutoloraError: the last three do not go together, or a value is out of range.
    """

    rank: int | None = None
    alpha: float | None = None
    target_modules: str | Collection[str] = "all-linear"
    dtype: torch.dtype | None = None
    adapter_dtype: torch.dtype | None = None
    compute_dtype: torch.dtype | None = None
    dropout: float = 0.0
    dora: bool = False
    lora_bias: bool = False
    quantised: str = ""

    def __post_init__(self) -> None:
        if self.dora and self.lora_bias:
            raise AutoloraError("DoRA with a bias in lora_B has no graphs but PEFT's")
        if self.dora and self.quantised == "int8":
            raise AutoloraError("DoRA on int8 layers has no graphs but PEFT's")
        if self.quantised and self.quantised not in QUANTISED:
            raise AutoloraError(f"quantised must be one of {', '.join(QUANTISED)}")

    def of(self, problem: Problem) -> Problem:
        """The problem of a plain LoRA layer, as it is with these adapters."""
        gradients = problem.gradients
        if "A" in gradients or "B" in gradients:
            gradients += ("M",) * self.dora + ("c",) * self.lora_bias
        return replace(
            problem,
            layout=self.quantised or problem.layout,
            adapter_bias=self.lora_bias,
            variant="dora" if self.dora else "lora",
            gradients=gradients,
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A model to be tuned.

    Args:
        model: with LoRA layers, in train mode, on the meta device.
        inputs: ``(batch_size, seq_len)`` → the arguments of its forward, on the meta device; None
            where nothing tells what they are.
        seq_len: that a batch has unless the user says otherwise.
        notes: what the user should know about how it was read.
        added: the adapters that it was given, None where it brings its own.
    """

    model: nn.Module
    inputs: Callable[[int, int], Any] | None
    seq_len: int = DEFAULT_SEQ_LEN
    notes: list[str] = field(default_factory=list)
    added: Adapters | None = None


def load_target(target: str, adapters: Adapters) -> Target:
    """Reads ``model.py[:name]``, a Hugging Face ``config.json``, or the folder of one.

    Raises:
        AutoloraError: there is no such file, it holds no model, or a model without LoRA layers and
            no rank was given.
    """
    match = _PYTHON.fullmatch(target)
    loaded = (
        _from_file(Path(match["path"]), match["name"], adapters)
        if match and not Path(target).is_dir()
        else _from_config(Path(target), adapters)
    )
    loaded.model.train()
    _require_lora(loaded.model, target)
    return loaded


def _from_file(path: Path, name: str | None, adapters: Adapters) -> Target:
    if not path.is_file():
        raise AutoloraError(f"no such file: {path}")
    if name == "":
        raise AutoloraError(f"nothing after the colon; TARGET must be {_ALLOWED}")
    file = load_model_file(path, name)
    model = file.model

    def inputs(batch_size: int, seq_len: int) -> Any:
        return _on_meta(file.inputs(batch_size, seq_len), adapters.dtype)

    given = inputs if file.example_inputs else None
    if _has_lora(model):
        _convert(model, adapters)
        own = f"{path.name} brings its own LoRA layers: the rank it gives them holds"
        notes = [] if adapters.rank is None else [own]
        return Target(model.to("meta"), given, notes=notes)
    if adapters.dtype is not None:
        model.to(adapters.dtype)
    _add(model, adapters, adapters.adapter_dtype)
    return Target(model.to("meta"), given, added=adapters)


def _from_config(path: Path, adapters: Adapters) -> Target:
    if path.is_dir():
        folder, path = path, path / CONFIG
        if not path.is_file():
            raise AutoloraError(f"{folder} holds no {CONFIG}; TARGET must be {_ALLOWED}")
    elif not path.exists():
        raise AutoloraError(f"no such file or folder: {path}; TARGET must be {_ALLOWED}")
    elif path.suffix != ".json":
        raise AutoloraError(f"{path} is neither Python nor JSON; TARGET must be {_ALLOWED}")
    made = load_config(path, adapters.dtype)
    narrow = made.model.dtype in (torch.bfloat16, torch.float16)
    adapter_dtype = adapters.adapter_dtype or (torch.float32 if narrow else None)
    _add(made.model, adapters, adapter_dtype)
    seq_len = min(DEFAULT_SEQ_LEN, made.longest or DEFAULT_SEQ_LEN)
    return Target(made.model, made.inputs, seq_len, made.notes, adapters)


def _add(model: nn.Module, adapters: Adapters, adapter_dtype: torch.dtype | None) -> None:
    if adapters.rank is None:
        return
    add_lora(
        model,
        rank=adapters.rank,
        alpha=adapters.alpha,
        target_modules=adapters.target_modules,
        dropout=adapters.dropout,
        adapter_dtype=adapter_dtype,
        compute_dtype=adapters.compute_dtype,
    )


def _convert(model: nn.Module, adapters: Adapters) -> None:
    """Gives a model with LoRA layers the dtypes asked for; adapters keep theirs unless told."""
    if adapters.dtype is not None:
        own = {id(p): p.dtype for layer in adapted_layers(model) for p in layer.weights.values()}
        for parameter in model.parameters():
            if parameter.is_floating_point() and id(parameter) not in own:
                parameter.data = parameter.data.to(adapters.dtype)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(adapters.dtype)
    if adapters.adapter_dtype is not None:
        for layer in adapted_layers(model):
            for weight in layer.weights.values():
                weight.data = weight.data.to(adapters.adapter_dtype)
    if adapters.compute_dtype is not None:
        if "peft" in sys.modules:  # only an accelerated layer of PEFT's has a compute_dtype
            from autolora.nn.peft import accelerate, lora_layers

            if any(lora_layers(model)):
                accelerate(model)
        for layer in adapted_layers(model):
            layer.state.compute_dtype = adapters.compute_dtype


def _require_lora(model: nn.Module, name: str) -> None:
    if adapted_layers(model):
        return
    left = left_layers(model)
    if left:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in left))
        raise AutoloraError(
            f"none of the {len(left)} LoRA layers of {name} can be tuned: {reasons}"
        )
    raise AutoloraError(
        f"{name} has no LoRA layers; say which rank they are to have: --rank 8 "
        "(and --target-modules, unless all linear layers get one)"
    )


def _has_lora(model: nn.Module) -> bool:
    return bool(adapted_layers(model) or left_layers(model))


def _on_meta(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta", dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {name: _on_meta(each, dtype) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_on_meta(each, dtype) for each in value)
    return value
