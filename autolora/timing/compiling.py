"""Layers compiled by torch.compile, to be measured one by one.

Each is compiled as a function of its own, for one size, by Inductor. torch._dynamo is imported when
the first is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch

from autolora.errors import AutoloraError
from autolora.graphs.operators import TRACEABLE, UNTRACEABLE

_DEFAULT = "default"
_LONGEST = 200  # characters of a cause

_numbers = itertools.count()
_mode: str | None = None


def mode_from(compiled: bool | str) -> str | None:
    """The mode of torch.compile that is asked for; None is its default.

    Args:
        compiled: a mode, or whether to compile at all.

    Raises:
        AutoloraError: there is no such mode.
    """
    if isinstance(compiled, bool) or compiled == _DEFAULT:
        return None
    from torch._inductor import list_mode_options

    known = [_DEFAULT, *(mode for mode in list_mode_options() if mode != _DEFAULT)]
    if compiled not in known:
        raise AutoloraError(
            f"compiled must be True, False or a mode of torch.compile: {', '.join(known)}; "
            f"not {compiled!r}"
        )
    return compiled


@contextmanager
def compiling_as(mode: str | None) -> Iterator[None]:
    """Compiles in a mode of torch.compile, such as ``"max-autotune-no-cudagraphs"``."""
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, compiled as a whole at its first call.

    torch.compile keeps what it compiled by code object, and few versions of each: so every function
    gets one of its own.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"autolora_layer_{next(_numbers)}")
    parts = (function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    return torch.compile(FunctionType(code, *parts), fullgraph=True, dynamic=False, mode=_mode)


def why_not_compiled(error: BaseException) -> str:
    """The cause in one line if an error is one of compilation, else ``""``."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return ""
    inner = getattr(error, "inner_exception", None) or error
    text = next((line for line in str(inner).splitlines() if line.strip()), "") or repr(inner)
    return f"not compiled: {text.strip()[:_LONGEST]}"


@lru_cache(maxsize=8)
def require_compiler(device: torch.device) -> None:
    """Compiles a small function on a device.

    Raises:
        AutoloraError: torch.compile is turned off or does not work there.
    """
    import torch._dynamo

    if not TRACEABLE:
        raise AutoloraError(f"no layer can be measured compiled: {UNTRACEABLE}")
    if torch._dynamo.config.disable:
        raise AutoloraError(
            "torch.compile is turned off (TORCH_COMPILE_DISABLE or torch._dynamo.config.disable)"
        )
    numbers = torch.ones(64, device=device)
    try:
        compiled(lambda x: (x + 1).relu())(numbers)
    except Exception as error:
        if not (reason := why_not_compiled(error)):
            raise
        raise AutoloraError(
            f"torch.compile does not work on this machine's {device.type}, so that no layer can be "
            f"measured compiled: {reason.partition(': ')[2]}"
        ) from None
