"""The tensors of a problem: how long their axes are, in which dtype they are kept, their bytes."""

from __future__ import annotations

from dataclasses import replace

from autolora.graphs.contraction import (
    ADAPTER_TENSORS,
    ADAPTER_VECTORS,
    Contraction,
    axis_sizes,
    size_of,
)
from autolora.problem import Problem

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}


def sees_a_copy(problem: Problem) -> bool:
    """Whether the adapter sees D, a tensor of its own, instead of X itself.

    After dropout, and where it computes in a narrower dtype than the base: PEFT keeps the narrow
    copy for the backward pass then, and so may we.
    """
    return problem.dropout or BYTES[problem.compute_dtype] < BYTES[problem.dtype]


def sizes_of(problem: Problem) -> dict[str, int]:
    """The length of each axis of a problem."""
    return axis_sizes(
        tokens=problem.tokens,
        in_features=problem.in_features,
        out_features=problem.out_features,
        rank=problem.rank,
    )


def sizeless(problem: Problem) -> Problem:
    """The problem at size one: which graphs there are, and their source, do not depend on sizes."""
    return replace(problem, in_features=1, out_features=1, tokens=1, rank=1)


def home_dtype(tensor: str, problem: Problem) -> str:
    """The dtype that the graphs of a problem keep a tensor in."""
    if tensor in ("K", "Q"):
        return "uint8"
    if tensor in ADAPTER_VECTORS:
        return problem.adapter_dtype
    if problem.variant == "dora" and (tensor in ("V", "F") or (tensor == "U" and problem.dropout)):
        # PEFT takes the norms of V in the adapter's dtype, and sends dropout(X) through W in it
        return max(problem.dtype, problem.compute_dtype, key=BYTES.__getitem__)
    return problem.compute_dtype if tensor in ADAPTER_TENSORS else problem.dtype


def width(tensor: str, problem: Problem) -> int:
    """Bytes of one element of a tensor in the graphs of a problem."""
    return BYTES[home_dtype(tensor, problem)]


def bytes_of(tensor: str, problem: Problem) -> int:
    """Bytes of a whole tensor in the graphs of a problem."""
    return size_of(tensor, sizes_of(problem)) * width(tensor, problem)


def run_dtype(step: Contraction, problem: Problem) -> str:
    """The dtype that a product runs in."""
    adapter = {step.left, step.right, step.out} & ADAPTER_TENSORS
    return problem.compute_dtype if adapter else problem.dtype
