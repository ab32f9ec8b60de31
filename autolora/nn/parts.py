"""What a LoRA layer is made of, and whether anything about it keeps it from running as a graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.modules import module as torch_module

_PLAIN = (Parameter, Tensor)


class Parts(NamedTuple):
    """The tensors of a LoRA layer: W, b and the weights of lora_A and lora_B."""

    W: Tensor
    b: Tensor | None
    A: Tensor
    B: Tensor


def plain_parts(base: Any, lora_A: Any, lora_B: Any) -> Parts | str:
    """The tensors of three plain linear layers, or why they are not plain.

    Runs at every call of a layer, so it looks straight into the modules' dictionaries.
    """
    for part in (base, lora_A, lora_B):
        if type(part) is not Linear:
            return f"a part of type {type(part).__name__}"
        if (
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or part._backward_pre_hooks
        ):
            return "hooks on its parts"
        if "forward" in part.__dict__:
            return "a replaced forward on its parts"
    if torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "global module hooks"
    W, b = base._parameters.get("weight"), base._parameters.get("bias")
    A, B = lora_A._parameters.get("weight"), lora_B._parameters.get("weight")
    if not (type(W) in _PLAIN and type(A) in _PLAIN and type(B) in _PLAIN):
        return "tensor subclasses or missing weights"
    if lora_A._parameters.get("bias") is not None or lora_B._parameters.get("bias") is not None:
        return "a bias in the adapter"
    if b is not None and type(b) not in _PLAIN:
        return "tensor subclasses or missing weights"
    return Parts(W, b, A, B)


def dropout_of(layer: Any) -> str:
    """Why a dropout layer keeps the fast path from holding now, ``""`` where it does not."""
    if type(layer) is torch.nn.Identity:
        return "hooks on its parts" if layer._forward_hooks or layer._forward_pre_hooks else ""
    if type(layer) is not torch.nn.Dropout:
        return f"a dropout of type {type(layer).__name__}"
    if layer.training and layer.p > 0:
        return f"dropout {layer.p:g} while training"
    return ""
