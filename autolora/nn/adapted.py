"""Finding the LoRA layers of a model, PEFT's and ours, and stating the problem that each poses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolora.nn.linear import LoRALinear
from autolora.nn.parts import plain_parts
from autolora.nn.plan import Site
from autolora.problem import GRADIENTS, Problem


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A LoRA layer that can run as a graph.

    Args:
        name: its path in the model.
        module: a :class:`~autolora.LoRALinear` or a ``peft.tuners.lora.Linear``.
        W: the base weight, likewise b, A and B.
        b: its bias.
        A: lora_A's weight.
        B: lora_B's weight.
        site: its memory; a fresh one where a PEFT layer was not accelerated yet.
    """

    name: str
    module: nn.Module
    W: torch.Tensor
    b: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    site: Site

    def problem(
        self,
        tokens: int,
        *,
        gradients: Sequence[str] = GRADIENTS,
        autocast: torch.dtype | None = None,
        device: str | None = None,
    ) -> Problem:
        """The problem that this layer poses for an input of ``tokens`` rows.

        Args:
            tokens: rows of X.
            gradients: which of X, A, B need one.
            autocast: its dtype, None where it is off.
            device: type of the device that will train it; where its weights are unless given.

        Raises:
            ValueError: dtype or device is none that graphs exist for.
        """
        return Problem(
            in_features=self.W.shape[1],
            out_features=self.W.shape[0],
            tokens=tokens,
            rank=self.A.shape[0],
            dtype=_name(autocast or self.W.dtype),
            device=device or self.W.device.type,
            bias=self.b is not None,
            adapter_dtype=_name(self.A.dtype),
            compute_dtype=_name(self.site.compute_dtype or autocast or self.A.dtype),
            gradients=tuple(gradients),
        )


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """The LoRA layers of a model that can run as graphs, in the model's order."""
    return [layer for _, layer in _survey(model) if isinstance(layer, AdaptedLayer)]


def left_layers(model: nn.Module) -> list[tuple[str, str]]:
    """The paths of those that cannot, each with the reason."""
    return [(name, reason) for name, reason in _survey(model) if isinstance(reason, str)]


def _survey(model: nn.Module) -> list[tuple[str, AdaptedLayer | str]]:
    found: list[tuple[str, AdaptedLayer | str]] = []
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            found.append((name, _ours(name, module)))
    if "peft" in sys.modules:  # a model of PEFT's cannot exist before
        from autolora.nn.peft import lora_layers

        found += [(name, _peft(name, module)) for name, module in lora_layers(model)]
    return found


def _ours(name: str, module: LoRALinear) -> AdaptedLayer | str:
    if module.dropout and module.training:
        return f"dropout {module.dropout:g} while training"
    parts = plain_parts(module.base_layer, module.lora_A, module.lora_B)
    return parts if isinstance(parts, str) else AdaptedLayer(name, module, *parts, module._autolora)


def _peft(name: str, module: Any) -> AdaptedLayer | str:
    from autolora.nn.peft import peft_parts, why_left

    reason = why_left(module)
    if reason:
        return reason
    parts = peft_parts(module)
    if isinstance(parts, str):
        return parts
    tensors, _ = parts
    return AdaptedLayer(name, module, *tensors, getattr(module, "_autolora", None) or Site())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
