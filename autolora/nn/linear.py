"""A linear layer with LoRA without PEFT: :class:`LoRALinear`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import AutoloraError
from autolora.graphs.function import LayerTensors
from autolora.nn.defaults import objective_of
from autolora.nn.dispatch import run_layer
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import base_layout, plain_tensors
from autolora.problem import DEVICES


class LoRALinear(nn.Module):
    """``Y = X Wᵀ + b + s·((dropout(X) Aᵀ) Bᵀ + c)``, W and b frozen, along the fastest graph.

    Parameters have PEFT's names and layouts: ``base_layer.weight`` (out_features, in_features),
    ``base_layer.bias`` (out_features,), ``lora_A.weight`` (rank, in_features), ``lora_B.weight``
    (out_features, rank) and, with ``lora_bias``, ``lora_B.bias`` (out_features,). X is
    ``(..., in_features)`` and Y ``(..., out_features)``. As in PEFT, A is initialised as in
    :class:`torch.nn.Linear`, B and c to zero.

    Args:
        in_features: columns of X.
        out_features: columns of Y.
        rank: of the update ``s·B A``.
        alpha: s = alpha / rank, or alpha / √rank with ``use_rslora``.
        dropout: probability of dropping an element of X in the adapter branch during training.
        bias: whether the base layer has a bias.
        use_rslora: use the scaling of rank-stabilised LoRA (arXiv 2312.03732).
        lora_bias: whether lora_B has a bias, c.
        device: of all parameters.
        dtype: of the base layer.
        adapter_dtype: of A and B; defaults to ``dtype``, or torch's default on a quantised base.
        compute_dtype: of the adapter branch; defaults to ``adapter_dtype``, or autocast's dtype.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``. Defaults
            to the environment variable ``AUTOLORA_OBJECTIVE``, then to time.
        max_saved_bytes: limit on the bytes that one call keeps for its backward pass. Defaults to
            ``AUTOLORA_MAX_SAVED_BYTES``, then to no limit.
        siblings: whether it may run together with layers that get the very same input.

    Raises:
        AutoloraError: rank, alpha, dropout, the objective or its limit is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        alpha: float,
        dropout: float = 0.0,
        bias: bool = True,
        use_rslora: bool = False,
        lora_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        adapter_dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        objective: str | None = None,
        max_saved_bytes: int | None = None,
        siblings: bool = True,
    ) -> None:
        super().__init__()
        base = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        state = LayerState(compute_dtype, objective_of(objective, max_saved_bytes), siblings)
        self._wrap(base, rank, alpha, dropout, use_rslora, lora_bias, adapter_dtype, state)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        rank: int,
        *,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        lora_bias: bool = False,
        adapter_dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        objective: str | None = None,
        max_saved_bytes: int | None = None,
        siblings: bool = True,
    ) -> LoRALinear:
        """Wraps an existing layer; its parameters are frozen and shared, not copied."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        state = LayerState(compute_dtype, objective_of(objective, max_saved_bytes), siblings)
        layer._wrap(linear, rank, alpha, dropout, use_rslora, lora_bias, adapter_dtype, state)
        return layer.train(linear.training)

    def _wrap(
        self,
        base: Any,
        rank: int,
        alpha: float,
        dropout: float,
        use_rslora: bool,
        lora_bias: bool,
        adapter_dtype: torch.dtype | None,
        state: LayerState,
    ) -> None:
        check_adapter(rank, alpha, dropout)
        self.in_features, self.out_features = sizes = sizes_of(base)
        warn_of_rank(rank, *sizes)
        self.rank = rank
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.scaling = scaling_of(rank, alpha, use_rslora)
        self.dropout = dropout
        self.merged = self.disabled = False
        self._autolora = state
        self.base_layer = base.requires_grad_(False)
        dtype = getattr(base, "compute_dtype", None) or base.weight.dtype
        place: dict[str, Any] = {
            "device": base.weight.device,
            "dtype": adapter_dtype or (dtype if dtype.is_floating_point else None),
        }
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, self.out_features, bias=lora_bias, **place)
        for parameter in self.lora_B.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """X ``(..., in_features)`` → Y ``(..., out_features)``."""
        found = self._tensors_now()
        Y = None if isinstance(found, str) else run_layer(self._autolora, x, *found, self)
        return self._plain_forward(x) if Y is None else Y

    def _tensors_now(self) -> tuple[LayerTensors, float, float] | str:
        """Tensors, scaling and dropout, or why no graph applies."""
        if reason := why_base_alone(self):
            return reason
        modules = self._modules
        tensors = plain_tensors(modules["base_layer"], modules["lora_A"], modules["lora_B"])
        if isinstance(tensors, str):
            return tensors
        return tensors, self.scaling, self.dropout if self.training else 0.0

    def _plain_forward(self, x: Tensor) -> Tensor:
        """The defining equation in plain autograd, calling the submodules and their hooks."""
        Y = self.base_layer(x)
        if why_base_alone(self):
            return Y  # type: ignore[no-any-return]
        A, B = self.lora_A, self.lora_B
        compute = self._autolora.policy.compute_dtype
        if compute is None or x.device.type not in DEVICES:
            h = F.dropout(x.to(A.weight.dtype), self.dropout, self.training)
            return (Y + B(A(h)) * self.scaling).to(Y.dtype)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, compute, enabled=compute != A.weight.dtype):
            h = F.dropout(x.to(compute), self.dropout, self.training)
            return (Y + B(A(h)) * self.scaling).to(Y.dtype)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight; some models read its dtype or device."""
        return self.base_layer.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Rank, alpha and dropout, for ``print(model)``."""
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def sizes_of(base: Any) -> tuple[int, int]:
    """in_features and out_features; a ``Conv1D`` of transformers has no such attributes."""
    if base_layout(base) == "conv1d":
        return base.weight.shape[0], base.weight.shape[1]
    return base.in_features, base.out_features


def why_base_alone(layer: Any) -> str:
    """Why a layer without PEFT leaves its adapter out now, ``""`` if it does not.

    Args:
        layer: a :class:`LoRALinear` or :class:`~autolora.LoRAExperts`.
    """
    if layer.disabled:
        return "its adapters are disabled"
    return "its adapter is merged" if layer.merged else ""


def check_adapter(rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Checks what every adapter is made with.

    Raises:
        AutoloraError: an argument is out of range.
    """
    if type(rank) is not int or rank < 1:
        raise AutoloraError(f"rank must be a whole number of at least 1, not {rank!r}")
    if not math.isfinite(alpha) or alpha <= 0:
        raise AutoloraError(f"alpha must be a positive number, not {alpha!r}")
    if not 0 <= dropout < 1:
        raise AutoloraError(f"dropout must be at least 0 and below 1, not {dropout!r}")


def scaling_of(rank: int, alpha: float, use_rslora: bool) -> float:
    """``s = alpha / rank``, or ``alpha / √rank`` of rank-stabilised LoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def warn_of_rank(rank: int, in_features: int, out_features: int, what: str = "a layer") -> None:
    """Warns of a rank that makes the adapter larger than a full update."""
    if rank > (most := min(in_features, out_features)):
        warnings.warn(
            f"rank {rank} is larger than {what} of {in_features}→{out_features}; "
            f"a rank above {most} adds no expressive power",
            stacklevel=4,
        )
