"""A model whose weights are replaced by fake tensors while its code runs.

What torch knows no shapes of, or what hides the gradients of a forward pass, is replaced as well:
kernels of attention that are not torch's, and checkpointing of transformers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.fakes import Fakes
from autolora.nn.sharding.units import is_unit

_CHECKPOINTS = "gradient_checkpointing"  # a forward in a reentrant checkpoint has no gradients
_KERNELS = "_attn_implementation_internal"  # of a configuration of transformers


@contextmanager
def without_weights(model: nn.Module, mode: Fakes) -> Iterator[None]:
    """Replaces a model's parameters and buffers by fake tensors, and restores the model.

    Args:
        model: whatever else is set on its modules inside is undone as well.
        mode: of the fake tensors; not entered yet.
    """
    modules = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    configs = {id(config): vars(config) for config in _configs(modules)}.values()
    dictionaries: list[dict[Any, Any]] = [
        *configs,
        *map(vars, modules),
        *(  # parameters, buffers, children, hooks, and what its code keeps
            each
            for module in modules
            for each in vars(module).values()
            if type(each) in (dict, OrderedDict)
        ),
    ]
    kept = [dict(each) for each in dictionaries]
    made: dict[Tensor, Tensor] = {}  # tied weights stay tied

    def like(tensor: Tensor) -> Tensor:
        if tensor not in made:
            made[tensor] = _like(tensor, mode)
        return made[tensor]

    try:
        for module in modules:
            _replace(module, like)
            vars(module)["_apply"] = partial(_apply, module)
            if is_unit(module):  # whose hooks would gather its weights from other ranks
                vars(module).update(_forward_pre_hooks={}, _forward_hooks={})
            if _CHECKPOINTS in vars(module):
                vars(module)[_CHECKPOINTS] = False
        for config in configs:
            config[_KERNELS] = "sdpa"
        yield
    finally:
        for dictionary, before in zip(dictionaries, kept, strict=True):
            dictionary.clear()
            dictionary.update(before)


def _configs(modules: Sequence[nn.Module]) -> list[Any]:
    """The configurations of modules of transformers whose attention is not computed by torch."""
    configs = (vars(module).get("config") for module in modules)
    return [
        config
        for config in configs
        if getattr(config, _KERNELS, None) not in (None, "eager", "sdpa")
    ]


def _replace(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    weights: list[dict[str, Any]] = [module._parameters, module._buffers]
    for held in weights:
        held.update({name: change(each) for name, each in held.items() if each is not None})


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """What ``module.to(...)`` does, which torch refuses for fake tensors that were used."""

    def changed(tensor: Tensor) -> Tensor:
        new = change(tensor.detach())
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

    for each in module.modules() if recurse else (module,):
        _replace(each, changed)
    return module


def _like(tensor: Tensor, mode: Fakes) -> Tensor:
    like = mode.as_fake(tensor.detach())
    if not isinstance(tensor, nn.Parameter):
        return like.clone()  # some are counted up in place
    if not tensor.is_floating_point() and not tensor.is_complex() and not tensor.is_meta:
        return tensor  # quantised, and what its layer needs to know hangs on it
    return nn.Parameter(like, tensor.requires_grad)
