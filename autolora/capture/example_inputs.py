"""The example input of a target: made without its numbers, checked, and handed to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from autolora.capture.fakes import Fakes, running, shapes_only
from autolora.errors import AutoloraError


def example_of(inputs: Callable[[int, int], Any], batch_size: int, seq_len: int) -> Any:
    """What a function gives as the arguments of a model's forward.

    Floats are on the meta device. So are integers where the function needs the numbers of floats;
    else they are real.

    Raises:
        AutoloraError: the function does, or gives something else.
    """
    try:
        with running(Fakes(), seed=0):
            made = inputs(batch_size, seq_len)
        given = shapes_only(made)
    except AutoloraError:  # of numbers that are missing, or any other; the second is the one told
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
