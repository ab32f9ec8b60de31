"""LoRA on the stacked weights of a mixture's experts without PEFT: :class:`LoRAExperts`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autolora.errors import AutoloraError
from autolora.graphs.experts.reference import merged
from autolora.nn.defaults import objective_of
from autolora.nn.experts.call import AdaptedWeight
from autolora.nn.experts.chain import Factors, adapted_by, wrapped, wrappers_from
from autolora.nn.experts.module import features_of, is_experts, stacks_of
from autolora.nn.experts.running import leave_compiled, run_wrapped
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import changed
from autolora.nn.linear import check_adapter, scaling_of, warn_of_rank, why_base_alone


class LoRAExperts(nn.Module):
    """``Y_e = X_e (W_e + s·B_e A_e)ᵀ + b_e`` of every expert e, with frozen W and b.

    Wraps a module of experts of transformers and adapts one of its stacked weights, W; for another
    weight, wrap the wrapper. The module's forward otherwise stays what it is: X ``(tokens,
    hidden)``, the experts of each token ``(tokens, top_k)`` and their weights ``(tokens, top_k)``
    → Y ``(tokens, hidden)``. The outermost wrapper runs the fastest measured graphs of all of them.

    Parameters have PEFT's names and layouts: ``lora_A.weight`` (experts × rank, in_features), the
    rows of one expert after those of another, and ``lora_B.weight`` (out_features, rank × experts),
    the columns of all experts for each rank. As in PEFT, A is initialised as in
    :class:`torch.nn.Linear` and B to zero, the factors compute in the dtype of W, and there is no
    dropout: it cannot be applied to X where ``W + s·B A`` is made.

    Args:
        base_layer: a module that follows transformers' experts interface, or a wrapper of one. It
            is frozen and shared, not copied.
        parameter_name: of W: ``"gate_up_proj"``, ``"up_proj"`` or ``"down_proj"``.
        rank: of the update of each expert.
        alpha: s = alpha / rank, or alpha / √rank with ``use_rslora``.
        use_rslora: use the scaling of rank-stabilised LoRA (arXiv 2312.03732).
        adapter_dtype: of A and B; defaults to that of W.
        compute_dtype: as for :class:`~autolora.LoRALinear`; without effect, see above.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``. Defaults
            to the environment variable ``AUTOLORA_OBJECTIVE``, then to time.
        max_saved_bytes: limit on the bytes that one call of a weight keeps for its backward pass.
            Defaults to ``AUTOLORA_MAX_SAVED_BYTES``, then to no limit.

    Raises:
        AutoloraError: the module does not follow the interface, it has no such stacked weight or
            that has an adapter already, or rank, alpha, the objective or its limit is out of range.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        parameter_name: str,
        rank: int,
        *,
        alpha: float,
        use_rslora: bool = False,
        adapter_dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        objective: str | None = None,
        max_saved_bytes: int | None = None,
    ) -> None:
        super().__init__()
        check_adapter(rank, alpha)
        module = wrapped(base_layer, LoRAExperts)
        W = _stack(module, parameter_name, base_layer)
        self.in_features, self.out_features = sizes = features_of(module, parameter_name)
        warn_of_rank(rank, *sizes, "an expert")
        self.parameter_name = parameter_name
        self.num_experts: int = module.num_experts
        self.rank = rank
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.scaling = float(scaling_of(rank, alpha, use_rslora))
        self.merged = self.disabled = False
        wanted = objective_of(objective, max_saved_bytes)
        self._autolora = LayerState(compute_dtype, wanted, siblings=False)
        module.requires_grad_(False)
        self.base_layer = base_layer
        place: dict[str, Any] = {
            "bias": False,
            "device": W.device,
            "dtype": adapter_dtype or W.dtype,
        }
        self.lora_A = nn.Linear(self.in_features, rank * self.num_experts, **place)
        self.lora_B = nn.Linear(rank * self.num_experts, self.out_features, **place)
        nn.init.zeros_(self.lora_B.weight)
        self.train(base_layer.training)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the module of experts: X, ids and weights → Y ``(tokens, hidden)``."""
        found = adapted_weights(self)
        if torch.compiler.is_compiling():
            leave_compiled(found)
        elif (Y := run_wrapped(found, self._autolora, x, args, kwargs)) is not None:
            return Y
        return self._plain_forward(x, *args, **kwargs)

    def _plain_forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The defining equation in plain autograd: the module itself, with merged weights."""
        module, inside, weights = wrapped(self, LoRAExperts), cast(Any, self), {}
        while isinstance(inside, LoRAExperts) and (inside is self or not changed(inside)):
            if not why_base_alone(inside):
                weights[inside.parameter_name] = inside._merged(module)
            inside = inside._modules["base_layer"]
        path = "base_layer." * len(list(wrappers_from(inside, LoRAExperts)))
        merged_weights = {f"{path}{name}": V for name, V in weights.items()}
        return functional_call(inside, merged_weights, args, kwargs)  # type: ignore[no-any-return]

    def _merged(self, module: Any) -> Tensor:
        """``W_e + s·B_e A_e`` of every expert, in the dtype of W, also under autocast."""
        W, A, B = getattr(module, self.parameter_name), self.lora_A.weight, self.lora_B.weight
        with without_autocast(W.device.type):
            return merged(W, A, B, self.scaling, self.num_experts, conv1d=module.is_transposed)

    def extra_repr(self) -> str:
        """The weight, rank and alpha, for ``print(model)``."""
        return f"parameter_name={self.parameter_name!r}, rank={self.rank}, alpha={self.alpha}"


def adapted_weights(wrapper: LoRAExperts) -> tuple[Any, dict[str, AdaptedWeight]] | str:
    """The module of experts inside, and the adapter of each of its weights, by name.

    Or why the merged weights are to be used.
    """
    return adapted_by(wrapper, LoRAExperts, _factors)


def _factors(wrapper: LoRAExperts) -> Factors | str:
    if reason := why_base_alone(wrapper):
        return reason
    modules = wrapper._modules
    return modules["lora_A"], modules["lora_B"], wrapper.scaling


def _stack(module: Any, name: str, base_layer: nn.Module) -> Tensor:
    """The stacked weight with that name, which must not have an adapter yet."""
    if not is_experts(module):
        raise AutoloraError(
            f"a {type(module).__name__} does not follow the experts interface of transformers"
        )
    names = stacks_of(module)
    if name not in names:
        allowed = ", ".join(names) or "none that can be adapted"
        raise AutoloraError(
            f"unknown stacked weight {name!r} of {type(module).__name__}; one of: {allowed}"
        )
    if name in (each.parameter_name for each in wrappers_from(base_layer, LoRAExperts)):
        raise AutoloraError(f"{name} of this {type(module).__name__} has an adapter already")
    W: Tensor = module._parameters[name]
    return W


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast on devices of this type."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
