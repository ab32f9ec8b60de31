"""Advice to run the adapter branch in the dtype of its base, where that is worth much."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autolora.problem import BaseProblem, Siblings

_NARROW = ("bfloat16", "float16")

logger = logging.getLogger("autolora")

_noticed: set[tuple[str, str]] = set()
forget_advice = _noticed.clear  # so that it is given again


def runs_in_float32(problem: Any) -> bool:
    """Whether a layer runs its branch in float32 beside a base product in 16 bits."""
    return (
        problem.dtype in _NARROW
        and getattr(problem, "compute_dtype", "") == "float32"
        and not isinstance(problem, Siblings)
    )


def in_dtype_of_base(problem: Any) -> BaseProblem:
    """The problem of the same layer with its branch in the dtype of its base."""
    return replace(problem, compute_dtype=problem.dtype)  # type: ignore[no-any-return]


def compute_dtype_advice(problem: BaseProblem, gain: float | None) -> str:
    """What ``compute_dtype`` would bring, in words.

    Args:
        problem: of a layer that runs its branch in float32.
        gain: how many times as fast the layer would be, None if that is not measured.
    """
    sizes = problem.call_text
    brings = "which is not measured yet" if gain is None else f"{gain:.2f}x as fast for {sizes}"
    return (
        f"float32 adapters on a {problem.dtype} base run in float32 without autocast, as in PEFT. "
        f"autolora.accelerate(model, compute_dtype=torch.{problem.dtype}), or autolora run "
        f"--compute-dtype {problem.dtype}, runs them as autocast would, {brings}; the weights and "
        "their gradients stay float32"
    )


def notice_compute_dtype(problem: BaseProblem, gain: Callable[[], float | None]) -> None:
    """Gives the advice once per dtype and device, unless it would not be faster.

    Args:
        problem: of a layer that runs its branch in float32.
        gain: returns how many times as fast it would be, None if that is not measured.
    """
    kind = problem.dtype, problem.device
    if kind in _noticed:
        return
    _noticed.add(kind)
    if (found := gain()) is None or found > 1:
        logger.warning("autolora: %s", compute_dtype_advice(problem, found))
