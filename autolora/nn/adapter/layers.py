"""The layers of ``add_lora`` in a model, and where PEFT's files have their adapters.

PEFT names a weight by the path of its layer in the model without adapters. Of several stacked
weights of one module of experts it nests the wrappers in the order of the module's parameters, the
first innermost, and their names say how deep each stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from autolora.errors import AutoloraError
from autolora.nn.experts.chain import wrapped, wrappers_from
from autolora.nn.experts.module import stacks_of
from autolora.nn.experts.native import LoRAExperts
from autolora.nn.linear import LoRALinear

PREFIX = "base_model.model."  # of every name in PEFT's files

Layer = LoRALinear | LoRAExperts

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@dataclass(frozen=True, slots=True)
class Place:
    """Where PEFT's files have one adapter.

    Args:
        path: of the linear layer or stacked weight in the model without adapters.
        module: path of PEFT's layer.
        rank: of the update, of each expert.
        in_features: columns of X.
        out_features: columns of Y.
        experts: their number, 1 for a linear layer.
        bias: whether lora_B has one.
        base: the linear layer, None for a stacked weight.
    """

    path: str
    module: str
    rank: int
    in_features: int
    out_features: int
    experts: int = 1
    bias: bool = False
    base: nn.Module | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the adapter's weights by their names in the file."""
        wide = self.rank * self.experts
        found: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (wide, self.in_features),
            "lora_B.weight": (self.out_features, wide),
        }
        if self.bias:
            found["lora_B.bias"] = (self.out_features,)
        return {f"{PREFIX}{self.module}.{name}": shape for name, shape in found.items()}

    @property
    def base_weights(self) -> dict[str, Tensor]:
        """The weights of the linear layer by the names that they would have in the file.

        PEFT's files hold those of an adapted head.
        """
        found = {} if self.base is None else dict(self.base.named_parameters())
        return {f"{PREFIX}{self.module}.base_layer.{name}": w for name, w in found.items()}


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, each by its path in the model without adapters.

    The layer or wrapper of an adapter stands in the place of what it wraps, and what a whole module
    is wrapped in, as by torch.compile, in no place. A module in two places comes twice.
    """
    module = unwrapped(module)
    yield path, module
    for name, child in bare(module)._modules.items():
        if child is not None:
            yield from walk(child, f"{path}.{name}" if path else name)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, of one that was compiled, checkpointed or given to data parallelism."""
    while True:
        inside = next((module._modules[n] for n in _WRAPPED if n in module._modules), None)
        if inside is None and isinstance(module, (DataParallel, DistributedDataParallel)):
            inside = module.module
        if inside is None:
            return module
        module = inside


def bare(module: nn.Module) -> nn.Module:
    """The module without the adapters of ``add_lora`` around it."""
    inside = module.base_layer if isinstance(module, LoRALinear) else wrapped(module, LoRAExperts)
    return cast(nn.Module, inside)


def placed_layers(model: nn.Module) -> list[tuple[Place, Layer]]:
    """The layers of ``add_lora`` in a model, each with its place in PEFT's files."""
    found: list[tuple[Place, Layer]] = []
    for path, module in walk(model):
        if isinstance(module, LoRALinear):
            found.append((_place(path, path, module), module))
        elif isinstance(module, LoRAExperts):
            chain = {each.parameter_name: each for each in wrappers_from(module, LoRAExperts)}
            names = [name for name in stacks_of(bare(module)) if name in chain]
            for name, where in zip(names, nested(path, len(names)), strict=True):
                found.append((_place(f"{path}.{name}", where, chain[name]), chain[name]))
    return found


def nested(path: str, number: int) -> list[str]:
    """The paths of so many of PEFT's wrappers around one module, the innermost first."""
    return [path + ".base_layer" * outside for outside in reversed(range(number))]


def native_layers(model: nn.Module) -> list[tuple[str, Layer]]:
    """The layers of ``add_lora`` in a model, each once, with their paths.

    Raises:
        AutoloraError: it has none.
    """
    found = [(n, each) for n, each in model.named_modules() if isinstance(each, Layer)]
    if not found:
        refuse_peft(model)
        raise AutoloraError(
            f"this {type(model).__name__} has no layers of autolora.add_lora or load_adapter"
        )
    return found


def refuse_peft(model: nn.Module) -> None:
    """Raises an error if a model has adapters of PEFT's.

    Raises:
        AutoloraError: it has.
    """
    if "peft" not in sys.modules:  # otherwise the model cannot be PEFT's
        return
    from autolora.nn.peft import lora_layers

    if any(lora_layers(model)):
        raise AutoloraError(
            f"the adapters of this {type(model).__name__} are PEFT's, accelerated or not; use its "
            "save_pretrained, load_adapter, merge_adapter, unmerge_adapter and disable_adapter"
        )


def weights_of(layer: Layer) -> dict[str, Tensor]:
    """The weights of a layer's adapter by the ends of their names in the file, as in ``Place``."""
    found = {"lora_A.weight": layer.lora_A.weight, "lora_B.weight": layer.lora_B.weight}
    bias: Tensor | None = layer.lora_B.bias
    return found if bias is None else {**found, "lora_B.bias": bias}


def some(names: Sequence[str]) -> str:
    """The first two of several names, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _place(path: str, module: str, layer: Any) -> Place:
    return Place(
        path,
        module,
        layer.rank,
        layer.in_features,
        layer.out_features,
        getattr(layer, "num_experts", 1),
        layer.lora_B.bias is not None,
        layer.base_layer if isinstance(layer, LoRALinear) else None,
    )
