"""Watching the LoRA layers of a model while it runs: what each is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autolora.nn.adapted import AdaptedLayer

Note = Callable[[AdaptedLayer, Tensor], torch.dtype]


class TensorIds:
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


def intercept(layers: Sequence[AdaptedLayer], note: Note) -> None:
    """Replaces the forward of each layer by one that notes its input and computes nothing.

    Args:
        layers: of a model that runs without its numbers.
        note: is told a layer and its X, and gives the dtype of Y.
    """

    def watched(layer: AdaptedLayer) -> Any:
        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            dtype, columns = note(layer, x), layer.weights["B"].shape[0]
            Y = x.new_empty((*x.shape[:-1], columns), dtype=dtype)
            leaves = (x, *layer.weights.values())
            if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
                return Y.requires_grad_().clone()  # not a leaf, which may not be changed in place
            return Y

        return forward

    for layer in layers:
        vars(layer.module)["forward"] = watched(layer)


@contextmanager
def autocasting(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Under autocast of a dtype; None leaves what is active."""
    if dtype is None:  # whatever is active around us
        yield
        return
    with torch.autocast(device, dtype):
        yield
