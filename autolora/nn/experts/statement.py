"""The problem that one stacked weight of a mixture's experts poses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from autolora.nn.experts.module import implementation_of
from autolora.problem import Experts


def state_experts(
    module: Any,
    A: Tensor,
    B: Tensor,
    *,
    dtype: torch.dtype,
    tokens: int,
    top_k: int,
    device: str,
    load: str,
    gradients: Iterable[str],
) -> Experts:
    """The problem of one projection.

    Args:
        module: of experts.
        A: the adapters of all experts, ``(experts × rank, in_features)``.
        B: ``(out_features, rank × experts)``.
        dtype: of the experts' weights.
        tokens: that the router gets.
        top_k: experts of each token.
        device: its type.
        load: how the tokens are spread over the experts.
        gradients: names of the tensors that need one.

    Raises:
        ValueError: there are no graphs for a dtype or the device.
    """
    return Experts(
        in_features=A.shape[1],
        out_features=B.shape[0],
        tokens=tokens,
        experts=module.num_experts,
        top_k=top_k,
        rank=A.shape[0] // module.num_experts,
        dtype=_name(dtype),
        device=device,
        layout="conv1d" if module.is_transposed else "linear",
        bias=bool(module.has_bias),
        adapter_dtype=_name(A.dtype),
        implementation=implementation_of(module),
        load=load,
        gradients=tuple(gradients),
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
