"""The problem that a LoRA layer poses, from its tensors and its call.

What decides it is first taken down in plain tuples, :data:`Layer` and :data:`Call`: torch.compile
can treat these as constants, which it cannot do with tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from autolora.graphs.function import LayerTensors
from autolora.nn.layer_tensors import base_layout
from autolora.problem import DTYPES, EAGER, Problem, Siblings

Stored = tuple[torch.dtype, bool] | None  # a tensor's dtype and whether it needs a gradient
# in_features, out_features, rank, layout, and of W (None if quantised), b, A, B, c and M the dtype
# and whether it needs a gradient
Layer = tuple[int, int, int, str, tuple[Stored, ...]]
# device type, number of axes of X, whether the last fits and none is empty, dtype of X and whether
# it needs a gradient, autocast's dtype, whether gradients are on, and whether dropout is
Call = tuple[str, int, bool, bool, torch.dtype, bool, torch.dtype | None, bool, bool]

_DTYPES = {getattr(torch, name): name for name in DTYPES}
_ADAPTER = ("A", "B", "c", "M")
_TRAINED = "the base layer is trained too"


def layer_facts(tensors: LayerTensors) -> Layer:
    """What a layer's problems depend on; may be traced by torch.compile."""
    W, b, A, B, c, M = tensors
    plain = isinstance(W, Tensor)
    stored = tuple(
        None if tensor is None else (tensor.dtype, tensor.requires_grad)
        for tensor in (W if plain else None, b, A, B, c, M)
    )
    layout = ("linear" if W.is_contiguous() else "conv1d") if plain else base_layout(W)
    return A.shape[1], B.shape[0], A.shape[0], layout, stored


def call_facts(x: Tensor, tensors: LayerTensors, p: float) -> Call:
    """What else a call's problem depends on, tokens apart; may be traced by torch.compile."""
    device = x.device.type
    # of a dynamic size or number a comparison is no constant, but a branch is
    fits = empty = dropout = False
    if x.dim() and x.shape[-1] == tensors[2].shape[1]:
        fits = True
    if x.numel() == 0:
        empty = True
    if p > 0:
        dropout = True
    return (
        device,
        x.dim(),
        fits,
        empty,
        x.dtype,
        x.requires_grad,
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        torch.is_grad_enabled(),
        dropout,
    )


def state_problem(
    layer: Layer,
    *,
    tokens: int,
    dtype: torch.dtype,
    device: str,
    compute_dtype: torch.dtype,
    dropout: bool,
    gradients: Iterable[str],
    mode: str = EAGER,
) -> Problem:
    """The problem of a layer.

    Args:
        layer: of :func:`layer_facts`.
        tokens: rows of X.
        dtype: of the base product.
        device: device type.
        compute_dtype: of the adapter branch.
        dropout: whether it is active.
        gradients: names of the tensors that need one.
        mode: how the layer runs.

    Raises:
        ValueError: there are no graphs for a dtype or the device.
    """
    in_features, out_features, rank, layout, (_, b, A, _, c, M) = layer
    assert A is not None
    return Problem(
        in_features=in_features,
        out_features=out_features,
        tokens=tokens,
        rank=rank,
        dtype=_name(dtype),
        device=device,
        layout=layout,
        bias=b is not None,
        adapter_dtype=_name(A[0]),
        compute_dtype=_name(compute_dtype),
        dropout=dropout,
        adapter_bias=c is not None,
        variant="lora" if M is None else "dora",
        gradients=tuple(gradients),
        mode=mode,
    )


def trainable(tensors: LayerTensors) -> dict[str, Tensor]:
    """The trainable tensors of a layer, by their names in a problem's gradients."""
    every = dict(zip(_ADAPTER, tensors[2:], strict=True))
    return {name: tensor for name, tensor in every.items() if isinstance(tensor, Tensor)}


def why_trained(tensors: LayerTensors) -> str:
    """Why the base layer needs gradients, ``""`` if it does not."""
    for each in tensors[:2]:
        if isinstance(each, Tensor) and each.requires_grad:
            own = getattr(each, "_fsdp_flattened", False)
            if own or getattr(each._base, "_is_flat_param", False):
                return "its base is flattened with trained parameters (FullyShardedDataParallel)"
            return _TRAINED
    return ""


def problem_of(
    layer: Layer,
    call: Call,
    tokens: int,
    compute_dtype: torch.dtype | None = None,
    mode: str = EAGER,
) -> Problem | str:
    """The problem that a call poses, or the reason why there are no graphs for it.

    Args:
        layer: of :func:`layer_facts`.
        call: of :func:`call_facts`.
        tokens: rows of X.
        compute_dtype: of the adapter branch, None for PEFT's.
        mode: how the layer runs.
    """
    device, axes, fits, empty, dtype, needs_dx, autocast, grad, dropout = call
    stored = layer[4]
    W, b, A, B, *_ = stored
    assert A is not None
    assert B is not None
    quantised = W is None
    outer = autocast if autocast is not None and not quantised else dtype
    adapter = {each[0] for each in stored[2:] if each is not None}
    dtypes = {dtype} | {each[0] for each in stored if each is not None}
    if axes < 2 or not fits or empty:
        return "no tokens" if axes > 1 else "input of one axis"
    if not {*dtypes, outer} <= _DTYPES.keys():
        return f"dtypes {', '.join(sorted(map(_name, dtypes)))}"
    if autocast is not None and torch.float64 in dtypes:
        return "float64 under autocast"
    if autocast is None or quantised:
        if W is not None and dtype != W[0]:
            return f"input is {dtype}, base weight {W[0]}"
        if b is not None and dtype != b[0]:
            return f"input is {dtype}, base bias {b[0]}"
    if len(adapter) > 1:
        return f"lora_A is {A[0]}, lora_B {B[0]}" + (
            "" if A[0] != B[0] else ", its bias or magnitude of another dtype"
        )
    if grad and any(each is not None and each[1] for each in (W, b)):
        return _TRAINED
    leaves = {"X": needs_dx, **dict(zip(_ADAPTER, (e and e[1] for e in stored[2:]), strict=True))}
    return state_problem(
        layer,
        tokens=tokens,
        dtype=outer,
        device=device,
        compute_dtype=compute_dtype or autocast or A[0],
        dropout=dropout,
        gradients=(name for name, needed in leaves.items() if needed and grad),
        mode=mode,
    )


def problem_of_siblings(
    layers: Sequence[Layer],
    call: Call,
    tokens: int,
    compute_dtype: torch.dtype | None,
    mode: str,
) -> Siblings | str:
    """The problem of layers with one X, or why they run one by one; see :func:`problem_of`."""
    found = [problem_of(layer, call, tokens, compute_dtype, mode) for layer in layers]
    problems = [problem for problem in found if isinstance(problem, Problem)]
    if len(problems) < len(found):
        return next(reason for reason in found if isinstance(reason, str))
    return Siblings.of(problems)


def problem_of_call(
    x: Tensor, tensors: LayerTensors, p: float, compute_dtype: torch.dtype | None
) -> Problem | str:
    """The problem that an eager call poses, or the reason why there are no graphs for it."""
    tokens = x.numel() // (x.shape[-1] or 1) if x.dim() else 1
    found = problem_of(layer_facts(tensors), call_facts(x, tensors, p), tokens, compute_dtype)
    return why_trained(tensors) if found == _TRAINED else found


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
