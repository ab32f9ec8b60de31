"""What a LoRA layer is made of, and whether anything about it keeps it from running as a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

Parts = tuple[Tensor, Tensor | None, Tensor, Tensor]  # W, b and the weights of lora_A and lora_B

PLAIN = (Parameter, Tensor)  # a subclass of these may mean anything by a product


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
    if (
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    ):
        return "global module hooks"
    own, narrow, wide = base._parameters, lora_A._parameters, lora_B._parameters
    W, b, A, B = own.get("weight"), own.get("bias"), narrow.get("weight"), wide.get("weight")
    if not (type(W) in PLAIN and type(A) in PLAIN and type(B) in PLAIN):
        return "tensor subclasses or missing weights"
    if b is not None and type(b) not in PLAIN:
        return "tensor subclasses or missing weights"
    if narrow.get("bias") is not None or wide.get("bias") is not None:
        return "a bias in the adapter"
    return W, b, A, B


def dropout_of(layer: Any) -> str:
    """Why a dropout layer keeps the fast path from holding now, ``""`` where it does not."""
    if type(layer) is torch.nn.Identity:
        return "hooks on its parts" if layer._forward_hooks or layer._forward_pre_hooks else ""
    if type(layer) is not torch.nn.Dropout:
        return f"a dropout of type {type(layer).__name__}"
    if layer.training and layer.p > 0:
        return f"dropout {layer.p:g} while training"
    return ""
