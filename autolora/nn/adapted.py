"""The LoRA layers of a model, PEFT's and autolora's, and the problems that they pose."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolora.graphs.function import LayerTensors
from autolora.nn.experts.call import AdaptedWeight
from autolora.nn.experts.module import configured_top_k, implementation_of, why_not, why_not_in
from autolora.nn.experts.native import LoRAExperts
from autolora.nn.experts.native import adapted_weights as own_weights
from autolora.nn.experts.statement import state_experts
from autolora.nn.layer_state import LayerState
from autolora.nn.linear import LoRALinear
from autolora.nn.sharding.whole import device_of, whole_parameters
from autolora.nn.statement import layer_facts, state_problem, trainable, why_trained
from autolora.problem import EAGER, LOADS, BaseProblem, Experts


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A LoRA layer that can run as a graph.

    Args:
        name: path in the model.
        module: a :class:`~autolora.LoRALinear`, a :class:`~autolora.LoRAExperts` or a LoRA layer of
            PEFT.
        tensors: of the layer, as in its forward pass; of sharded ones without their numbers.
        dropout: probability in training.
        state: of the layer; a new one if a PEFT layer is not accelerated yet.
    """

    name: str
    module: nn.Module
    tensors: LayerTensors
    dropout: float
    state: LayerState

    def problem(
        self,
        tokens: int,
        *,
        gradients: Sequence[str] | None = None,
        autocast: torch.dtype | None = None,
        device: str | None = None,
        training: bool = True,
        mode: str = EAGER,
    ) -> BaseProblem:
        """The problem that this layer poses for an input of ``tokens`` rows.

        Args:
            tokens: rows of X.
            gradients: names of the tensors that need one; defaults to all.
            autocast: dtype of autocast, None if it is off.
            device: type of the training device; defaults to that of the weights.
            training: whether dropout is active.
            mode: how the layer runs.

        Raises:
            ValueError: there are no graphs for a dtype or the device, or the base is trained too.
        """
        needed = gradients is None or len(gradients) > 0
        if training and needed and (reason := why_trained(self.tensors)):
            raise ValueError(reason)
        compute_dtype = self.state.policy.compute_dtype or autocast or self.tensors[2].dtype
        return state_problem(
            layer_facts(self.tensors),
            tokens=tokens,
            dtype=self.base_dtype if autocast is None or self.quantised else autocast,
            device=device or self.device.type,
            compute_dtype=compute_dtype,
            dropout=training and self.dropout > 0,
            gradients=("X", *self.weights) if gradients is None else gradients,
            mode=mode,
        )

    @property
    def quantised(self) -> bool:
        """Whether the base is a quantised layer."""
        return not isinstance(self.tensors[0], torch.Tensor)

    @property
    def device(self) -> torch.device:
        """The device that the layer computes on."""
        return device_of(self.weights["A"])

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype of the base product without autocast."""
        W, _, A, *_ = self.tensors
        own = W.dtype if isinstance(W, torch.Tensor) else getattr(W, "compute_dtype", None)
        return own or A.dtype

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable tensors, by their names in a problem's gradients."""
        return trainable(self.tensors)


@dataclass(frozen=True, slots=True)
class AdaptedExperts(AdaptedLayer):
    """One stacked weight of a mixture's experts, with an adapter.

    Args:
        experts: the module of experts.
        top_k: experts of each token, None if that is not known before a call.
    """

    experts: Any = None
    top_k: int | None = None

    def problem(
        self,
        tokens: int,
        *,
        gradients: Sequence[str] | None = None,
        autocast: torch.dtype | None = None,
        device: str | None = None,
        training: bool = True,
        mode: str = EAGER,
        load: str = LOADS[0],
    ) -> Experts:
        """The problem of one projection for ``tokens`` rows of the router's input.

        Args:
            tokens: that the router gets.
            gradients: names of the tensors that need one; defaults to all.
            autocast: its dtype, None where it is off; experts compute in that of their weights.
            device: type of the training device; defaults to that of the weights.
            training: does not matter.
            mode: eager.
            load: how the tokens are spread over the experts.

        Raises:
            ValueError: the experts of each token are not known, or there are no graphs for a dtype
                or the device.
        """
        if self.top_k is None:
            raise ValueError("how many experts a token has is not known before a step")
        if reason := why_not_in(implementation_of(self.experts), self.base_dtype, autocast):
            raise ValueError(reason)
        return state_experts(
            self.experts,
            self.tensors[2],
            self.tensors[3],
            dtype=self.base_dtype,
            tokens=tokens,
            top_k=self.top_k,
            device=device or self.device.type,
            load=load,
            gradients=("X", *self.weights) if gradients is None else gradients,
        )

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.tensors[0].dtype  # type: ignore[no-any-return]


def is_wrapped_experts(module: Any) -> bool:
    """Whether a module is a wrapper, ours or PEFT's, of a stacked weight of a mixture's experts."""
    if isinstance(module, LoRAExperts):
        return True
    if "peft" not in sys.modules:
        return False
    from autolora.nn.peft import is_wrapped_experts as is_wrapper

    return is_wrapper(module)


def weights_of_experts(wrapper: Any) -> tuple[Any, dict[str, AdaptedWeight]] | str:
    """The module of experts in a wrapper, and the adapter of each of its weights, by name.

    Or why the wrapper's own path is used.
    """
    if isinstance(wrapper, LoRAExperts):
        return own_weights(wrapper)
    from autolora.nn.experts.wrappers import adapted_weights

    return adapted_weights(wrapper)


def lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The LoRA layers of a model, ours and those of PEFT of any class, with their paths."""
    for name, module in model.named_modules():
        if isinstance(module, (LoRALinear, LoRAExperts)):
            yield name, module
    if "peft" in sys.modules:  # otherwise the model cannot be PEFT's
        from autolora.nn.peft import lora_layers

        yield from lora_layers(model)


def why_never(module: Any) -> str:
    """Why a LoRA layer can never run as a graph, ``""`` if it can."""
    if isinstance(module, (LoRALinear, LoRAExperts)):
        return ""
    from autolora.nn.peft import why_left

    return why_left(module)


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """The LoRA layers of a model that can run as graphs, in the model's order."""
    return [layer for _, layer in _survey(model) if isinstance(layer, AdaptedLayer)]


def left_layers(model: nn.Module) -> list[tuple[str, str]]:
    """The paths of the LoRA layers that cannot run as graphs, each with the reason."""
    return [(name, reason) for name, reason in _survey(model) if isinstance(reason, str)]


def _survey(model: nn.Module) -> list[tuple[str, AdaptedLayer | str]]:
    with whole_parameters(model):
        return [(name, _adapted(name, module)) for name, module in lora_modules(model)]


def _adapted(name: str, module: Any) -> AdaptedLayer | str:
    if isinstance(module, LoRALinear):
        own = module._tensors_now()
        if isinstance(own, str):
            return own
        return _layer(name, module, own[0], module.dropout, module._autolora)
    if reason := why_never(module):
        return reason
    if is_wrapped_experts(module):
        return _adapted_experts(name, module)
    from autolora.nn.peft_internals import peft_tensors, training_dropout

    found = peft_tensors(module)
    if isinstance(found, str):
        return found
    state = getattr(module, "_autolora", None) or LayerState()
    return _layer(name, module, found[0], training_dropout(module), state)


def _layer(
    name: str, module: Any, tensors: LayerTensors, dropout: float, state: LayerState
) -> AdaptedLayer | str:
    if any(tensor.dim() != 2 for tensor in tensors[2:4]):
        return "weights that are not there between its calls"
    return AdaptedLayer(name, module, tensors, dropout, state)


def _adapted_experts(name: str, wrapper: Any) -> AdaptedLayer | str:
    found = weights_of_experts(wrapper)
    if isinstance(found, str):
        return found or "its module is running"
    experts, adapted = found
    if reason := why_not(experts, adapted):
        return reason
    own = adapted.get(wrapper.parameter_name)
    if own is None:
        return "no active adapter"
    seen = [c.problem.top_k for c in own.state.choices.values() if isinstance(c.problem, Experts)]
    W, b = (experts._parameters.get(f"{wrapper.parameter_name}{end}") for end in ("", "_bias"))
    return AdaptedExperts(
        name,
        wrapper,
        (W, b, own.A, own.B, None, None),
        0.0,
        own.state,
        experts,
        seen[-1] if seen else configured_top_k(experts),
    )
