"""The problem that a LoRA layer poses, from its tensors and its call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.function import LayerTensors
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import base_layout
from autolora.problem import DTYPES, Problem

_DTYPES = {getattr(torch, name): name for name in DTYPES}


def state_problem(
    tensors: LayerTensors,
    *,
    tokens: int,
    dtype: torch.dtype,
    device: str,
    compute_dtype: torch.dtype,
    dropout: bool,
    gradients: Iterable[str],
) -> Problem:
    """The problem of a layer with these tensors.

    Args:
        tensors: of the layer.
        tokens: rows of X.
        dtype: of the base product.
        device: device type.
        compute_dtype: of the adapter branch.
        dropout: whether it is active.
        gradients: names of the tensors that need one.

    Raises:
        ValueError: there are no graphs for a dtype or the device.
    """
    W, b, A, B, c, M = tensors
    return Problem(
        in_features=A.shape[1],
        out_features=B.shape[0],
        tokens=tokens,
        rank=A.shape[0],
        dtype=_name(dtype),
        device=device,
        layout=_layout(W),
        bias=b is not None,
        adapter_dtype=_name(A.dtype),
        compute_dtype=_name(compute_dtype),
        dropout=dropout,
        adapter_bias=c is not None,
        variant="lora" if M is None else "dora",
        gradients=tuple(gradients),
    )


def trainable(tensors: LayerTensors) -> dict[str, Tensor]:
    """The trainable tensors of a layer, by their names in a problem's gradients."""
    _, _, A, B, c, M = tensors
    every = {"A": A, "B": B, "c": c, "M": M}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def problem_of(
    state: LayerState, x: Tensor, tensors: LayerTensors, p: float = 0.0
) -> Problem | str:
    """The problem that a call poses, or the reason why there are no graphs for it."""
    W, b, A, B, *_ = tensors
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    quantised = not isinstance(W, Tensor)
    outer = autocast if autocast is not None and not quantised else x.dtype
    adapter = {tensor.dtype for tensor in trainable(tensors).values()}
    dtypes = {x.dtype, *adapter} | {t.dtype for t in (W, b) if isinstance(t, Tensor)}
    if x.dim() < 2 or x.shape[-1] != A.shape[1] or not x.numel():
        return "no tokens" if x.dim() > 1 else "input of one axis"
    if not {*dtypes, outer} <= _DTYPES.keys():
        return f"dtypes {', '.join(sorted(map(_name, dtypes)))}"
    if autocast is not None and torch.float64 in dtypes:
        return "float64 under autocast"
    if autocast is None or quantised:
        if not quantised and x.dtype != W.dtype:
            return f"input is {x.dtype}, base weight {W.dtype}"
        if b is not None and x.dtype != b.dtype:
            return f"input is {x.dtype}, base bias {b.dtype}"
    if len(adapter) > 1:
        return f"lora_A is {A.dtype}, lora_B {B.dtype}" + (
            "" if A.dtype != B.dtype else ", its bias or magnitude of another dtype"
        )
    grad = torch.is_grad_enabled()
    if grad and any(t.requires_grad for t in (W, b) if isinstance(t, Tensor)):
        return "the base layer is trained too"
    leaves = {"X": x, **trainable(tensors)} if grad else {}
    return state_problem(
        tensors,
        tokens=x.numel() // x.shape[-1],
        dtype=outer,
        device=device,
        compute_dtype=state.compute_dtype or autocast or A.dtype,
        dropout=p > 0,
        gradients=(name for name, leaf in leaves.items() if leaf.requires_grad),
    )


def _layout(W: Any) -> str:
    if isinstance(W, Tensor):
        return "linear" if W.is_contiguous() else "conv1d"
    return base_layout(W)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
