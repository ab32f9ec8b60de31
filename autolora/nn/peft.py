"""Acceleration of PEFT models: their LoRA layers get a subclass with a fast ``forward``.

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
from autolora.nn.defaults import objective_of, require_floating
from autolora.nn.dispatch import left, run_layer
from autolora.nn.experts.running import leave_compiled, run_wrapped
from autolora.nn.freezing.agreement import in_group
from autolora.nn.freezing.freeze import Frozen, freeze_in_group
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import base_layout, why_no_layout
from autolora.nn.sharding.units import sharded_class, unsharded_class
from autolora.nn.sharding.whole import numbers_of, whole_parameters
from autolora.nn.statement import why_trained

try:
    from peft.tuners import lora

    from autolora.nn.experts.wrappers import ParamWrapper as PEFTsWrapper
    from autolora.nn.experts.wrappers import adapted_weights, adapts_linear, why_wrapper_left
    from autolora.nn.peft_internals import adapter_weights, peft_tensors, unexpected
except ImportError as error:  # pragma: no cover - depends on the environment
    raise AutoloraError(
        "accelerate() and restore() are for PEFT models, and peft is not installed: "
        "pip install 'autolora[peft]'; or use autolora.add_lora(model, rank=...) without PEFT"
    ) from error

_QUANTISED = ("Linear4bit", "Linear8bitLt")
_BASES = {  # what a layer is to a user, by the module of PEFT that its class is in
    "aqlm": "an AQLM layer",
    "awq": "an AWQ layer",
    "eetq": "an EETQ layer",
    "gptq": "a GPTQ layer",
    "hqq": "an HQQ layer",
    "inc": "a layer of Intel Neural Compressor",
    "te": "a layer of Transformer Engine",
    "torchao": "a torchao layer",
    "tp_layer": "a parallel layer of Megatron",
}


class Accelerated:
    """Mixin of the accelerated layers; comes before PEFT's class in the bases."""

    _autolora: LayerState

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X ``(..., in_features)`` → Y ``(..., out_features)``, by PEFT if no graph applies."""
        if args or kwargs:
            names = ", ".join(kwargs) or "more arguments"
            left(self._autolora, f"its forward was given {names}")
        else:
            found = peft_tensors(self)
            if not isinstance(found, str):
                Y = run_layer(self._autolora, x, *found, self)
                if Y is not None:
                    return Y
            elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
                left(self._autolora, found)
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return,misc]

    def _tensors_now(self) -> tuple[LayerTensors, float, float] | str:
        """Tensors, scaling and dropout, or why no graph applies."""
        return peft_tensors(self)


class Linear(Accelerated, lora.Linear):  # type: ignore[misc]
    """A ``peft.tuners.lora.Linear`` that runs the fastest measured graph."""


class AcceleratedWeight(Accelerated):
    """Mixin for PEFT's wrappers of single parameters: of a mixture's experts, or a linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the wrapped module, by PEFT if no graph applies."""
        if adapts_linear(self):
            return super().forward(x, *args, **kwargs)
        found = adapted_weights(self)
        if torch.compiler.is_compiling():
            leave_compiled(found)
        elif (Y := run_wrapped(found, self._autolora, x, args, kwargs)) is not None:
            return Y
        return super(Accelerated, self).forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]


_CLASSES: dict[type, type] = {lora.Linear: Linear}
if PEFTsWrapper is not None:
    ParamWrapper = type("ParamWrapper", (AcceleratedWeight, PEFTsWrapper), {"__module__": __name__})
    _CLASSES[PEFTsWrapper] = ParamWrapper


def accelerated_class(kind: type) -> type | None:
    """The accelerated subclass of a LoRA layer's class, None if there is none."""
    name = kind.__name__
    if (inner := unsharded_class(kind)) is not kind:
        made = accelerated_class(inner)
        return None if made is None else sharded_class(kind, made)
    if name in _QUANTISED and kind is getattr(lora, name, None) and kind not in _CLASSES:
        _CLASSES[kind] = type(name, (Accelerated, kind), {"__module__": __name__})
    return _CLASSES.get(kind)


def __getattr__(name: str) -> type:
    """The accelerated quantised classes, which pickle finds by name; they need bitsandbytes."""
    kind = getattr(lora, name, None) if name in _QUANTISED else None
    made = None if kind is None else accelerated_class(kind)
    if made is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return made


@dataclass(frozen=True, slots=True)
class Acceleration:
    """The report of :func:`accelerate`.

    Args:
        taken: paths of the layers that now run measured graphs.
        left: paths of the LoRA layers that stay PEFT's, each with the reason.
        notes: paths of accelerated layers that run PEFT's ``forward`` in their current state, each
            with the reason.
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
    siblings: bool = True,
) -> Acceleration:
    """Makes the LoRA layers of a PEFT model run the fastest measured graphs.

    Results and gradients equal PEFT's up to rounding, and dropout uses the same mask as PEFT. The
    base may be a linear layer, a ``Conv1D``, an NF4 or int8 layer of bitsandbytes, or the stacked
    weights of a mixture's experts in a module of transformers' experts interface; the adapter
    LoRA, rsLoRA, LoRA-FA or DoRA. A layer falls back to PEFT's ``forward`` while its adapters are
    disabled, merged or more than one, for ``adapter_names``, for other variants, and when there are
    hooks on its submodules. If the installed PEFT differs from those that autolora knows, the layer
    is left unchanged and the report says why. :func:`restore` undoes the acceleration.

    If a torch.distributed process group is already initialised, call this on every rank: the model
    is frozen on rank 0's plan (see :func:`~autolora.freeze`), so that ranks in the same environment
    run the same graphs. If the group is initialised later, call ``freeze`` then. Results of
    ``autolora.tune(model)``, also called on every rank, are used immediately.

    Args:
        model: a PEFT model, or any module that contains LoRA layers of PEFT.
        compute_dtype: dtype of the adapter branch. None does what PEFT does: the dtype of the
            adapter weights, or autocast's. With float32 adapters on a bfloat16 base,
            ``torch.bfloat16`` is much faster; weights and their gradients stay float32.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``, see
            :class:`~autolora.objective.Objective`. Defaults to the environment variable
            ``AUTOLORA_OBJECTIVE``, then to time.
        max_saved_bytes: limit on the bytes that one call of a layer keeps for its backward pass.
            Defaults to ``AUTOLORA_MAX_SAVED_BYTES``, then to no limit.
        siblings: whether layers that get the very same input, such as q, k and v, run together
            where that was measured to be faster.

    Returns:
        The layers accelerated and the layers left, each of these with a reason.

    Raises:
        AutoloraError: the model has no LoRA layer, compute_dtype is not a floating dtype, or the
            objective or its limit is invalid.
    """
    require_floating(compute_dtype)
    wanted = objective_of(objective, max_saved_bytes)
    report = Acceleration()
    taken = []
    with whole_parameters(model):
        for name, layer in lora_layers(model):
            if reason := why_left(layer):
                _restore(layer)
                report.left.append((name, reason))
                continue
            if not isinstance(layer, Accelerated):
                layer.__class__ = accelerated_class(type(layer))
                layer._autolora = LayerState(compute_dtype, wanted, siblings)
            elif not layer._autolora.chooses(compute_dtype, wanted, siblings):
                layer._autolora = LayerState(compute_dtype, wanted, siblings)
            report.taken.append(name)
            taken.append((name, layer))
        for name, layer in taken:
            if reason := path_of_peft(layer):
                report.notes.append((name, reason))
    if not report.taken and not report.left:
        raise AutoloraError(
            f"this {type(model).__name__} holds no PEFT LoRA layer; make one with "
            "peft.get_peft_model(model, peft.LoraConfig(...)), or use autolora.add_lora"
        )
    if report.taken and in_group():
        return replace(report, frozen=freeze_in_group(model))
    return report


def restore(model: nn.Module) -> list[str]:
    """Undoes :func:`accelerate`; returns the paths of the restored layers."""
    return [name for name, layer in model.named_modules() if _restore(layer)]


def is_wrapped_experts(layer: Any) -> bool:
    """Whether a layer is PEFT's wrapper of a stacked weight of a mixture's experts."""
    wrapper = PEFTsWrapper is not None and isinstance(layer, PEFTsWrapper)
    return wrapper and not adapts_linear(layer)


def path_of_peft(layer: Any) -> str:
    """Why an accelerated layer runs PEFT's ``forward`` in its current state, ``""`` if not."""
    if is_wrapped_experts(layer):
        found = adapted_weights(layer)
        return found if isinstance(found, str) else ""
    tensors = peft_tensors(layer)
    if isinstance(tensors, str):
        return tensors
    return why_trained(tensors[0]) if layer.training else ""


def _restore(layer: Any) -> bool:
    if not isinstance(layer, Accelerated):
        return False
    kind: Any = type(layer)
    inner = unsharded_class(kind)
    plain: Any = next(each for each in inner.__mro__ if not issubclass(each, Accelerated))
    layer.__class__ = plain if inner is kind else sharded_class(kind, plain)
    del layer._autolora
    return True


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every LoRA layer of PEFT in a model, of any class, with its path."""
    for name, module in model.named_modules():
        if isinstance(module, lora.LoraLayer):
            yield name, module


def why_left(layer: Any) -> str:
    """Why a LoRA layer of PEFT cannot be accelerated, ``""`` if it can."""
    kind = unsharded_class(type(layer))
    if not isinstance(layer, Accelerated) and accelerated_class(kind) is None:
        module = kind.__module__.rpartition(".")[2]
        return _BASES.get(module) or f"a {module}.{kind.__name__} layer"
    base = layer._modules.get("base_layer")
    if PEFTsWrapper is not None and isinstance(layer, PEFTsWrapper):
        if reason := why_wrapper_left(layer):
            return reason
    elif not base_layout(base):
        return why_no_layout(base)
    if "forward" in layer.__dict__:
        return "its forward was replaced"
    if reason := unexpected(layer):
        return reason
    for adapter, weight in adapter_weights(layer):
        weight = numbers_of(weight)
        if not weight.is_meta and not bool(weight.isfinite().all()):
            return f"its adapter {adapter} holds numbers that are not finite"
    return ""
