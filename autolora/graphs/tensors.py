"""The tensors of a problem: the lengths of their axes, their dtypes and their bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from autolora.graphs.contraction import (
    ADAPTER_TENSORS,
    ADAPTER_VECTORS,
    Contraction,
    size_of,
    stem,
)
from autolora.problem import Problem

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
NARROW = ("bfloat16", "float16")  # products in these may run in float32, and be rounded once


@lru_cache(maxsize=1)
def slow_dtypes() -> frozenset[str]:
    """The 16-bit dtypes whose products on this CPU torch computes without oneDNN."""
    import torch  # takes seconds, and readers of cache files do not need it

    try:
        fast = {
            "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        }
    except (AttributeError, RuntimeError):  # a build without oneDNN has nothing to offer instead
        return frozenset()
    return frozenset(dtype for dtype, supported in fast.items() if not supported)


def sees_a_copy(problem: Problem) -> bool:
    """Whether the input of the adapter is D, a tensor of its own, instead of X.

    It is after dropout, and where the adapter computes in a narrower dtype than the base: there
    PEFT saves the narrow copy for the backward pass.
    """
    return problem.dropout or BYTES[problem.compute_dtype] < BYTES[problem.dtype]


def sizes_of(problem: Problem) -> dict[str, int]:
    """The length of each axis of a problem."""
    i, o, r = problem.in_features, problem.out_features, problem.rank
    return {"m": problem.tokens, "i": i, "o": o, "r": r, "k": i + r, "n": o + r}


@lru_cache(maxsize=1024)
def at_size_one(problem: Problem) -> Problem:
    """The problem with all sizes 1; its graphs and their source do not depend on sizes."""
    return replace(problem, in_features=1, out_features=1, tokens=1, rank=1)


def tensor_dtype(tensor: str, problem: Problem) -> str:
    """The dtype of a tensor in the graphs of a problem."""
    tensor = stem(tensor)
    if tensor in ("K", "Q"):
        return "uint8"
    if tensor in ADAPTER_VECTORS:
        return problem.adapter_dtype
    if problem.variant == "dora" and (tensor in ("V", "F") or (tensor == "U" and problem.dropout)):
        # PEFT takes the norms of V in the adapter's dtype, and sends dropout(X) through W in it
        return max(problem.dtype, problem.compute_dtype, key=BYTES.__getitem__)
    return problem.compute_dtype if tensor in ADAPTER_TENSORS else problem.dtype


def width(tensor: str, problem: Problem) -> int:
    """Bytes per element of a tensor."""
    return BYTES[tensor_dtype(tensor, problem)]


def bytes_of(tensor: str, problem: Problem) -> int:
    """Bytes of a tensor."""
    return size_of(tensor, sizes_of(problem)) * width(tensor, problem)


def run_dtype(step: Contraction, problem: Problem) -> str:
    """The dtype that a product runs in."""
    adapter = ADAPTER_TENSORS.intersection(map(stem, (step.left, step.right, step.out)))
    return problem.compute_dtype if adapter else problem.dtype
