"""A model whose weights are replaced by fake tensors while its code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.fakes import Fakes


@contextmanager
def without_weights(model: nn.Module, mode: Fakes) -> Iterator[None]:
    """Replaces a model's parameters and buffers by fake tensors, and restores its modules.

    Args:
        model: whatever else is set on its modules inside is undone as well.
        mode: of the fake tensors; not entered yet.
    """
    modules = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    dictionaries: list[dict[str, Any]] = [
        each
        for module in modules
        for each in (vars(module), module._parameters, module._buffers, module._modules)
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
        yield
    finally:
        for dictionary, before in zip(dictionaries, kept, strict=True):
            dictionary.clear()
            dictionary.update(before)


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
