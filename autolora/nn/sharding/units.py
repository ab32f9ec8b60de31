"""Modules that torch's FSDP shards as units, and weights that another library splits over ranks."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch
from torch import nn

SPLIT = (
    "weights that are split over ranks (DTensor), by tensor parallelism or by an FSDP unit around "
    "this module"
)


def is_unit(module: Any) -> bool:
    """Whether ``fully_shard`` was called on a module."""
    return isinstance(module, _classes("torch.distributed.fsdp", "FSDPModule"))


def is_flat_unit(module: Any) -> bool:
    """Whether a module is a ``FullyShardedDataParallel``, which flattens parameters."""
    return isinstance(module, _classes("torch.distributed.fsdp", "FullyShardedDataParallel"))


def is_split(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``, of which each rank has a part."""
    return isinstance(tensor, _classes("torch.distributed.tensor", "DTensor"))


def why_apart(part: Any) -> str:
    """Why the weights of a part of a layer are there in the part's own calls alone, or ``""``."""
    if torch.compiler.is_compiling():  # nobody is told what is said there
        return ""
    if is_unit(part) or is_flat_unit(part):
        return "a part that FSDP shards by itself"
    weights = part._parameters.values()
    if any(hasattr(weight, "ds_id") for weight in weights):
        return "weights that DeepSpeed gathers part by part"
    return SPLIT if any(map(is_split, weights)) else ""


def needs_other_ranks(model: nn.Module) -> bool:
    """Whether a model cannot run in one process, even without the hooks of ``fully_shard``."""
    return any(map(is_flat_unit, model.modules())) or any(
        is_split(each) or hasattr(each, "ds_id") for each in model.parameters()
    )


def unsharded_class(kind: type) -> type:
    """The class that a module had before ``fully_shard`` gave it a class of its own."""
    return kind.__bases__[-1] if issubclass(kind, _fsdp_module()) else kind


@lru_cache(maxsize=128)
def sharded_class(kind: type, base: type) -> type:
    """The class that ``fully_shard`` would have made of ``base``, as it made ``kind``."""
    own = {name: vars(kind)[name] for name in ("__module__", "__deepcopy__") if name in vars(kind)}
    return type(kind.__name__, (*kind.__bases__[:-1], base), own)


def _fsdp_module() -> tuple[type, ...]:
    return _classes("torch.distributed.fsdp", "FSDPModule")


def _classes(module: str, name: str) -> tuple[type, ...]:
    """A class for ``isinstance``; none if its module was never imported: then nothing is of it."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)
