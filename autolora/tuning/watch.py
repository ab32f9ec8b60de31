"""Watching the LoRA layers of a model while it runs: what each is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autolora.nn.adapted import AdaptedLayer

Note = Callable[[AdaptedLayer, Tensor], torch.dtype]


class Tensors:
    """Numbers tensors in the order in which they come; views of the same elements are one."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._storages: list[Any] = []  # kept, so that none gets the place of an earlier one

    def number(self, x: Tensor) -> int:
        """The number of a tensor."""
        storage = x.untyped_storage()
        self._storages.append(storage)
        key = (storage._cdata, x.storage_offset(), x.numel())
        return self._numbers.setdefault(key, len(self._numbers))


@contextmanager
def watched(layers: Sequence[AdaptedLayer], note: Note) -> Iterator[None]:
    """Replaces the forward of each layer by one that notes its input and runs the base alone."""

    def watch(layer: AdaptedLayer) -> Any:
        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            Y = layer.base(x, note(layer, x))
            for weight in layer.weights.values():
                Y = Y + 0 * weight.sum().to(Y.dtype)  # so that Y needs a gradient
            return Y

        return forward

    had = [vars(layer.module).get("forward") for layer in layers]
    for layer in layers:
        vars(layer.module)["forward"] = watch(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, had, strict=True):
            del vars(layer.module)["forward"]
            if forward is not None:
                vars(layer.module)["forward"] = forward


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module in train mode, and back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def autocasting(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Under autocast of a dtype; None leaves what is active."""
    if dtype is None:  # whatever is active around us
        yield
        return
    with torch.autocast(device, dtype):
        yield
