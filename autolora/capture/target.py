"""TARGET of the command line: a model with LoRA layers on the meta device, and its input."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.experts import notes_of_experts
from autolora.capture.hf_config import CONFIG, LONGEST, HFInputs, hf_inputs_of, load_config
from autolora.capture.model_file import (
    INPUTS,
    ModelFile,
    NoModuleError,
    load_model_file,
    load_model_module,
)
from autolora.errors import AutoloraError
from autolora.nn.adapted import adapted_layers, left_layers
from autolora.nn.adapter.targets import find_targets
from autolora.nn.adding import adapt
from autolora.nn.layer_state import choose_anew
from autolora.problem import QUANTISED, BaseProblem, Problem

DEFAULT_BATCH_SIZE, DEFAULT_SEQ_LEN = 4, LONGEST

_PYTHON = re.compile(r"(?P<path>.+\.py)(?::(?P<name>.*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)(?::(?P<name>.*))?", re.DOTALL)
_ALLOWED = (
    "model.py, package.module, either with :NAME, or a Hugging Face config.json or its folder"
)


@dataclass(frozen=True, slots=True)
class Adapters:
    """The LoRA layers and dtypes that a target is to be trained with.

    Args:
        rank: of the adapters to add; None if the model has its own.
        alpha: as in :func:`autolora.add_lora`.
        target_modules: as there.
        dtype: of the base model; its own unless given.
        adapter_dtype: of A and B. Unless given: that of the model's adapters, else the base's dtype
            in a model file, and float32 for a Hugging Face model with a narrower base, as in PEFT.
        compute_dtype: in which the adapter branch runs; as in PEFT unless given.
        dropout: of the adapters to add.
        dora: whether these are DoRA's.
        lora_bias: whether their lora_B has a bias.
        quantised: how the base layers will be: ``"nf4"`` or ``"int8"``, computed in ``dtype``.

    Raises:
        AutoloraError: dora, lora_bias and quantised do not go together, or are out of range.
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

    @property
    def lack(self) -> str:
        """What these adapters have and those on a mixture's experts cannot have, or ``""``."""
        given = (bool(self.dropout), "dropout"), (self.dora, "DoRA"), (self.lora_bias, "bias")
        return next((what for asked, what in given if asked), "")

    def of(self, problem: BaseProblem) -> BaseProblem:
        """The problem of a plain LoRA layer, changed to that of these adapters."""
        if not isinstance(problem, Problem):
            return problem
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
            unless the user's code says so.
        lack: why it has no ``inputs``, ``""`` where none are expected.
        seq_len: default sequence length.
        notes: what was ignored or left out.
        added: the adapters that were added, None if the model has its own.
    """

    model: nn.Module
    inputs: Callable[[int, int], Any] | None = None
    lack: str = ""
    seq_len: int = DEFAULT_SEQ_LEN
    notes: list[str] = field(default_factory=list)
    added: Adapters | None = None


def load_target(target: str, adapters: Adapters) -> Target:
    """Reads ``model.py[:NAME]``, ``package.module[:NAME]``, a ``config.json``, or its folder.

    Raises:
        AutoloraError: there is no such file or module, it holds no model, or the model has no LoRA
            layers and no rank is given.
    """
    code = _code(target)
    loaded = _from_config(Path(target), adapters) if code is None else _from_code(code, adapters)
    loaded.model.train()
    _require_lora(loaded.model, target)
    return loaded


def is_code(target: str) -> bool:
    """Whether a target is a Python file or module, there or not."""
    return _code(target) is not None


def _code(target: str) -> re.Match[str] | None:
    """The path or module, and the name, of a target that is code; None for a configuration."""
    path = Path(target)
    if path.is_dir():
        is_package = (path / "__init__.py").is_file() and not (path / CONFIG).exists()
        return _MODULE.fullmatch(target) if is_package else None
    if match := _PYTHON.fullmatch(target):
        return match
    return None if path.exists() or path.suffix == ".json" else _MODULE.fullmatch(target)


def _from_code(match: re.Match[str], adapters: Adapters) -> Target:
    where, name = match[1], match["name"]
    if name == "":
        raise AutoloraError(f"nothing after the colon; TARGET must be {_ALLOWED}")
    label = Path(where).name
    file = _load(where, name, match.re is _PYTHON)
    model = file.model
    given = file.inputs and partial(_meta_inputs, file.inputs, adapters.dtype)
    made = None if given else hf_inputs_of(model)
    target = Target(
        model,
        given,
        "" if given else f"{label} has no {INPUTS}(batch_size, seq_len)",
        made.seq_len if made else DEFAULT_SEQ_LEN,
    )
    if adapted_layers(model) or left_layers(model):
        _convert(model, adapters)
        own = f"{label} brings its own LoRA layers: the rank it gives them holds"
        notes = [] if adapters.rank is None else [own]
        return replace(target, model=model.to("meta"), notes=notes)
    if adapters.dtype is not None:
        model.to(adapters.dtype)
    notes = _add(model, adapters, adapters.adapter_dtype)
    return replace(target, model=model.to("meta"), notes=notes, added=adapters)


def _load(where: str, name: str | None, is_file: bool) -> ModelFile:
    if is_file:
        path = Path(where)
        if not path.is_file():
            raise AutoloraError(f"no such file: {path}")
        return load_model_file(path, name)
    try:
        return load_model_module(where, name)
    except NoModuleError as error:
        raise AutoloraError(
            f"no such file, folder or module: {where} ({error}); TARGET must be {_ALLOWED}"
        ) from error


def _from_config(path: Path, adapters: Adapters) -> Target:
    if path.is_dir():
        folder, path = path, path / CONFIG
        if not path.is_file():
            raise AutoloraError(f"{folder} holds no {CONFIG}; TARGET must be {_ALLOWED}")
    elif not path.exists():
        raise AutoloraError(f"no such file or folder: {path}; TARGET must be {_ALLOWED}")
    elif path.suffix != ".json":
        raise AutoloraError(f"{path} is neither Python nor JSON; TARGET must be {_ALLOWED}")
    model, ignored = load_config(path, adapters.dtype)
    narrow = model.dtype in (torch.bfloat16, torch.float16)
    adapter_dtype = adapters.adapter_dtype or (torch.float32 if narrow else None)
    notes = ignored + _add(model, adapters, adapter_dtype)
    return Target(model, seq_len=HFInputs(model).seq_len, notes=notes, added=adapters)


def _add(model: nn.Module, adapters: Adapters, adapter_dtype: torch.dtype | None) -> list[str]:
    """Adds the adapters asked for; notes on what gets none."""
    if adapters.rank is None:
        return []
    targets = find_targets(model, adapters.target_modules, adapters.lack)
    notes = notes_of_experts(model, adapters.target_modules, targets)
    adapt(
        model,
        targets,
        rank=adapters.rank,
        alpha=adapters.alpha,
        dropout=adapters.dropout,
        adapter_dtype=adapter_dtype,
        compute_dtype=adapters.compute_dtype,
    )
    return notes


def _convert(model: nn.Module, adapters: Adapters) -> None:
    """Gives a model with LoRA layers the dtypes asked for."""
    own = {id(w) for layer in adapted_layers(model) for w in layer.weights.values()}
    for tensor in (*model.parameters(), *model.buffers()):
        dtype = adapters.adapter_dtype if id(tensor) in own else adapters.dtype
        if dtype is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    if adapters.compute_dtype is not None:
        if "peft" in sys.modules:  # only an accelerated layer of PEFT's has a compute_dtype
            from autolora.nn.peft import accelerate, lora_layers

            if any(lora_layers(model)):
                accelerate(model)
        states = [layer.state for layer in adapted_layers(model)]
        choose_anew(states, compute_dtype=adapters.compute_dtype)


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


def _meta_inputs(
    make: Callable[[int, int], Any], dtype: torch.dtype | None, batch_size: int, seq_len: int
) -> Any:
    return _on_meta(make(batch_size, seq_len), dtype)


def _on_meta(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta", dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {name: _on_meta(each, dtype) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_on_meta(each, dtype) for each in value)
    return value
