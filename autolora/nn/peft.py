"""PEFT models made fast: their LoRA layers get a subclass with a fast ``forward``.

Everything else stays PEFT's: parameters, names, saving, merging, adding and switching adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import AutoloraError
from autolora.graphs.function import LayerTensors
from autolora.nn.agreement import in_group
from autolora.nn.defaults import objective_of
from autolora.nn.dispatch import LayerState, left, run_layer
from autolora.nn.frozen import Frozen, freeze_in_group
from autolora.nn.layer_tensors import base_layout, dropout_of, plain_tensors

try:
    from peft.tuners import lora
    from peft.tuners.lora import dora
    from peft.tuners.lora.variants import DoraLinearVariant
except ImportError as error:  # pragma: no cover - depends on the environment
    raise AutoloraError(
        "accelerate() and restore() are for PEFT models, and peft is not installed: "
        "pip install 'autolora[peft]'; or use autolora.add_lora(model, rank=...) without PEFT"
    ) from error

_QUANTISED = ("Linear4bit", "Linear8bitLt")


class Accelerated:
    """What every accelerated layer has before the class that PEFT gave it."""

    _autolora: LayerState

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X ``(..., in_features)`` → Y ``(..., out_features)``; PEFT's own if it is not plain."""
        if args or kwargs:
            names = ", ".join(kwargs) or "more arguments"
            left(self._autolora, f"its forward was given {names}")
        elif not torch.compiler.is_compiling():
            found = peft_tensors(self)
            if not isinstance(found, str):
                Y = run_layer(self._autolora, x, *found)
                if Y is not None:
                    return Y
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return,misc]


class Linear(Accelerated, lora.Linear):  # type: ignore[misc]
    """A ``peft.tuners.lora.Linear`` that runs along the fastest measured graph."""


_CLASSES: dict[type, type] = {lora.Linear: Linear}


def accelerated_class(kind: type) -> type | None:
    """The fast subclass of a LoRA layer's class, None where there is none."""
    name = kind.__name__
    if name in _QUANTISED and kind is getattr(lora, name, None) and kind not in _CLASSES:
        _CLASSES[kind] = type(name, (Accelerated, kind), {"__module__": __name__})
    return _CLASSES.get(kind)


def __getattr__(name: str) -> type:
    """The fast quantised layers by their names, for pickle; PEFT has them with bitsandbytes."""
    kind = getattr(lora, name, None) if name in _QUANTISED else None
    made = None if kind is None else accelerated_class(kind)
    if made is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return made


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What :func:`accelerate` did.

    Args:
        taken: paths of the layers that now run along measured graphs.
        left: paths of the LoRA layers that stay PEFT's, each with the reason.
        notes: paths of layers taken that will use PEFT's path as they are set up now, and why.
        frozen: the plan that the layers choose from, None outside a process group.
    """

    taken: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    frozen: Frozen | None = None

    def __str__(self) -> str:
        lines = [
            f"autolora: {len(self.taken)} LoRA layers accelerated, {len(self.left)} left to PEFT"
        ]
        for title, pairs in (("left", self.left), ("PEFT's path for now", self.notes)):
            reasons: dict[str, list[str]] = {}
            for name, reason in pairs:
                reasons.setdefault(reason, []).append(name)
            lines += [
                f"  {title}: {len(names)} × {reason} ({names[0]}{', …' if len(names) > 1 else ''})"
                for reason, names in reasons.items()
            ]
        return "\n".join(lines if self.frozen is None else [*lines, str(self.frozen)])


def accelerate(
    model: nn.Module,
    *,
    compute_dtype: torch.dtype | None = None,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
) -> Acceleration:
    """Makes the LoRA layers of a PEFT model run along the fastest measured graphs.

    Results and gradients stay those of PEFT, to the rounding of the dtypes; dropout draws the mask
    that PEFT would draw. Linear layers, ``Conv1D`` and bitsandbytes' NF4 and int8 layers are taken,
    with LoRA, rsLoRA, LoRA-FA or DoRA. A layer calls PEFT's own ``forward`` whenever its fast path
    does not hold: adapters disabled, merged or several at once, ``adapter_names``, other variants,
    hooks on its parts. Undone by :func:`restore`.

    In a process group that is up already (torch.distributed), every rank should accelerate the
    model: it is frozen on rank 0's plan, see :func:`~autolora.freeze`, so that ranks in the same
    environment run the same graphs. Where the group comes up later, call ``freeze`` then. What
    ``autolora.tune(model)`` measures, again on every rank, is used at once.

    Args:
        model: a PEFT model, or any module that holds LoRA layers of PEFT.
        compute_dtype: in which the adapter branch runs. None is what PEFT does: the dtype of the
            adapter weights, or autocast's. With float32 adapters on a bfloat16 base,
            ``torch.bfloat16`` is much faster; weights and their gradients stay float32.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``, see
            :class:`~autolora.objective.Objective`. Unless given it is that of the environment
            variable ``AUTOLORA_OBJECTIVE``, or time.
        max_saved_bytes: that one call of a layer may keep for its backward pass; unless given
            that of ``AUTOLORA_MAX_SAVED_BYTES``, or no limit.

    Returns:
        What was taken and what was left, each with a reason.

    Raises:
        AutoloraError: the model holds no LoRA layer, compute_dtype is no floating dtype, or the
            objective or its limit is none.
    """
    if compute_dtype is not None and not compute_dtype.is_floating_point:
        raise AutoloraError(
            f"compute_dtype must be a floating dtype such as torch.bfloat16, not {compute_dtype}"
        )
    wanted = objective_of(objective, max_saved_bytes)
    report = Acceleration()
    for name, layer in lora_layers(model):
        reason = why_left(layer)
        if reason:
            report.left.append((name, reason))
            continue
        if not isinstance(layer, Accelerated):
            layer.__class__ = accelerated_class(type(layer))
        layer._autolora = LayerState(compute_dtype, wanted)
        report.taken.append(name)
        tensors = peft_tensors(layer)
        if isinstance(tensors, str):
            report.notes.append((name, tensors))
    if not report.taken and not report.left:
        raise AutoloraError(
            f"this {type(model).__name__} holds no PEFT LoRA layer; make one with "
            "peft.get_peft_model(model, peft.LoraConfig(...)), or use autolora.add_lora"
        )
    if report.taken and in_group():
        return replace(report, frozen=freeze_in_group(model))
    return report


def restore(model: nn.Module) -> list[str]:
    """Undoes :func:`accelerate`; the paths of the layers that are PEFT's own again."""
    restored = []
    for name, layer in model.named_modules():
        if isinstance(layer, Accelerated):
            layer.__class__ = type(layer).__mro__[2]
            del layer._autolora
            restored.append(name)
    return restored


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every LoRA layer of PEFT in a model, whatever its kind."""
    for name, module in model.named_modules():
        if isinstance(module, lora.LoraLayer):
            yield name, module


def why_left(layer: Any) -> str:
    """Why a LoRA layer of PEFT cannot be accelerated, ``""`` where it can."""
    kind = type(layer)
    if not isinstance(layer, Accelerated) and accelerated_class(kind) is None:
        return f"a {kind.__module__.rpartition('.')[2]}.{kind.__name__} layer"
    base = layer._modules.get("base_layer")
    if not base_layout(base):
        return f"its base is a {type(base).__name__}"
    if "forward" in layer.__dict__:
        return "its forward was replaced"
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        for name, weight in part.named_parameters():
            if not weight.is_meta and not bool(weight.isfinite().all()):
                return f"its adapter {name.partition('.')[0]} holds numbers that are not finite"
    return ""


def peft_tensors(layer: Any) -> tuple[LayerTensors, float, float] | str:
    """The tensors of a PEFT layer whose fast path holds now, its scaling and its dropout.

    Or why it does not hold.
    """
    if layer._disable_adapters:
        return "its adapters are disabled"
    if layer.merged_adapters:
        return "its adapter is merged"
    active = layer._active_adapter
    if type(active) is not str:
        if len(active) != 1:
            return "several active adapters" if active else "no active adapter"
        active = active[0]
    modules = layer._modules
    magnitude = None
    if active in layer.lora_variant:
        variant = type(layer.lora_variant[active])
        if variant is not DoraLinearVariant or dora.ENABLE_DORA_CACHING:
            return f"the variant {variant.__name__}"
        magnitude = modules["lora_magnitude_vector"]._modules.get(active)
        if type(magnitude) is not dora.DoraLinearLayer:
            return f"a magnitude of type {type(magnitude).__name__}"
    lora_A = modules["lora_A"]._modules.get(active)
    if lora_A is None:
        return "no active adapter"
    p = dropout_of(modules["lora_dropout"]._modules.get(active))
    if isinstance(p, str):
        return p
    if not layer.cast_input_dtype_enabled:
        return "its input casting is disabled"
    lora_B = modules["lora_B"]._modules.get(active)
    tensors = plain_tensors(modules["base_layer"], lora_A, lora_B, magnitude)
    if isinstance(tensors, str):
        return tensors
    s = layer.scaling[active]
    if type(s) is not float and type(s) is not int:
        return f"a scaling of type {type(s).__name__}"
    return tensors, s, p


def training_dropout(layer: Any) -> float:
    """The probability of dropout that the active adapter of a layer has in training."""
    return float(getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0.0))
