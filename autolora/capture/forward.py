"""A forward pass without numbers: its example input, and what it calls the LoRA layers with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.fakes import Fakes, running, shapes_only
from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedExperts, AdaptedLayer
from autolora.nn.experts.module import projections_of

Note = Callable[[AdaptedLayer, Tensor], torch.dtype]


def example_of(inputs: Callable[[int, int], Any], batch_size: int, seq_len: int) -> Any:
    """The arguments of a model's forward that a function returns.

    Floats are on the meta device. Integers are real, unless the function only runs with numbers.

    Raises:
        AutoloraError: the function fails, or returns something else.
    """
    try:
        with running(Fakes(), seed=0):
            made = inputs(batch_size, seq_len)
        given = shapes_only(made)
    except AutoloraError:  # for want of numbers; any other error is raised again here
        given = inputs(batch_size, seq_len)
    if not isinstance(given, (Tensor, tuple, Mapping)):
        raise AutoloraError(
            "example_inputs must return a tensor, or a tuple or dict of the model's arguments, "
            f"not a {type(given).__name__}"
        )
    return given


def call(model: nn.Module, inputs: Any) -> None:
    """Runs a model on a tensor, or on a tuple or mapping of its arguments."""
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs eagerly what torch.compile has compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class TensorIds:
    """Numbers tensors in order of appearance; views of the same elements get the same number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._storages: list[Any] = []  # kept alive, so that addresses are not reused

    def number(self, x: Tensor) -> int:
        """The number of a tensor."""
        storage = x.untyped_storage()
        self._storages.append(storage)
        key = (storage._cdata, x.storage_offset(), x.numel())
        return self._numbers.setdefault(key, len(self._numbers))


def intercept(layers: Sequence[AdaptedLayer], note: Note) -> None:
    """Replaces the forward of each layer by one that notes its input and computes nothing.

    Args:
        layers: of a model that runs without numbers.
        note: called with a layer and its X; returns the dtype of Y.
    """

    def replacement(layer: AdaptedLayer) -> Any:
        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            dtype, columns = note(layer, x), layer.weights["B"].shape[0]
            Y = x.new_empty((*x.shape[:-1], columns), dtype=dtype)
            leaves = (x, *layer.weights.values())
            if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
                return Y.requires_grad_().clone()  # not a leaf, which may not be changed in place
            return Y

        return forward

    mixtures: dict[nn.Module, list[AdaptedExperts]] = {}
    for layer in layers:
        if isinstance(layer, AdaptedExperts):
            mixtures.setdefault(layer.experts, []).append(layer)
        else:
            vars(layer.module)["forward"] = replacement(layer)
    for weights in mixtures.values():
        outermost = min(weights, key=lambda layer: len(layer.name))
        vars(outermost.module)["forward"] = _of_experts(weights, note)


def _of_experts(layers: Sequence[AdaptedExperts], note: Note) -> Any:
    """The forward of a module of experts that notes the inputs of its adapted weights."""
    used = projections_of(layers[0].experts)
    ordered = sorted(layers, key=lambda layer: used.index(layer.module.parameter_name))

    def forward(x: Tensor, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        needs = x.requires_grad
        for layer in ordered:
            weights = layer.weights
            X = x.new_empty((x.shape[0], weights["A"].shape[1])).requires_grad_(needs)
            note(replace(layer, top_k=ids.shape[-1]), X)
            needs = needs or any(weight.requires_grad for weight in weights.values())
        Y = torch.empty_like(x)
        return Y.requires_grad_().clone() if needs and torch.is_grad_enabled() else Y

    return forward
