"""What the source of graphs of experts calls, beside torch's own functions."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from autolora.graphs.experts.routing import Routing

_FUNCTION = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
_ALIGNED = 16  # bytes, of rows and of addresses


def grouped_mm(left: Tensor, right: Tensor, routing: Routing) -> Tensor:
    """The products of all experts in one call, in loops where torch has no such call.

    Args:
        left: ``(rows, inner)``, or ``(outer, rows)`` if the rows are what is summed over; that is
            not differentiable.
        right: ``(experts, inner, outer)``, or ``(rows, outer)``.
        routing: of the rows.

    Returns:
        ``(rows, outer)``, or a matrix for each expert.
    """
    if _is_aligned(left) and _is_aligned(right) and has_grouped_mm(left.device, left.dtype):
        return _FUNCTION(left, right, offs=routing.offsets)  # type: ignore[no-any-return,misc]
    if right.dim() == 3:
        slices = [torch.mm(left[begin:end], right[e]) for e, begin, end in routing.spans]
        return torch.cat(slices) if slices else left.new_empty((0, right.shape[2]))
    made = left.new_zeros((routing.experts, left.shape[0], right.shape[1]))
    for e, begin, end in routing.spans:
        torch.mm(left[:, begin:end], right[begin:end], out=made[e])
    return made


@lru_cache(maxsize=64)
def has_grouped_mm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has grouped products for a dtype on a device; tries one."""
    if _FUNCTION is None:
        return False
    matrices = torch.ones(2, 16, 16, device=device, dtype=dtype)
    ends = torch.tensor([8, 16], device=device, dtype=torch.int32)
    try:
        _FUNCTION(matrices[0], matrices, offs=ends)
    except (RuntimeError, TypeError):  # no kernel, or not for this dtype or processor
        return False
    return True


def _is_aligned(matrices: Tensor) -> bool:
    """Whether torch's grouped product takes such a tensor."""
    size = matrices.element_size()
    strides = sorted(matrices.stride()[-2:])
    return (
        strides[0] == 1
        and strides[1] * size % _ALIGNED == 0
        and matrices.data_ptr() % _ALIGNED == 0
    )


def padded(rows: Tensor, routing: Routing) -> list[Tensor]:
    """Rows ``(rows, columns)`` with the same room for every expert of a bucket.

    Returns:
        For each bucket ``(experts, room, columns)``, zeros where an expert has no row.
    """
    made = rows.new_zeros((routing.room, rows.shape[1]))
    made.index_copy_(0, routing.places, rows)
    return _by_bucket(made, routing)


def bmm_rows(left: list[Tensor], right: Tensor, routing: Routing) -> Tensor:
    """The products of padded rows with the matrices ``(experts, inner, outer)``.

    Returns:
        ``(rows, outer)``, sorted by expert.
    """
    made = right.new_empty((routing.room, right.shape[2]))
    pairs = zip(left, _by_bucket(made, routing), routing.members, strict=True)
    for rows, out, experts in pairs:
        torch.bmm(rows, right if experts is None else right[experts], out=out)
    return made.index_select(0, routing.places)


def bmm_sums(left: list[Tensor], right: list[Tensor], routing: Routing) -> Tensor:
    """The products of padded rows, transposed, with padded rows: summed over the rows.

    Returns:
        ``(experts, columns of left, columns of right)``.
    """
    found = [torch.bmm(a.transpose(1, 2), b) for a, b in zip(left, right, strict=True)]
    if routing.members == [None]:
        return found[0]
    shape = (routing.experts, left[0].shape[2], right[0].shape[2])
    made = left[0].new_zeros(shape)
    for products, experts in zip(found, routing.members, strict=True):
        made[experts] = products
    return made


def _by_bucket(rows: Tensor, routing: Routing) -> list[Tensor]:
    return [
        rows[bucket.begin : bucket.end].view(len(bucket.experts), bucket.room, rows.shape[1])
        for bucket in routing.buckets
    ]


def onto_slices(rows: Tensor, biases: Tensor, routing: Routing) -> Tensor:
    """Adds the bias of each expert, ``(experts, columns)``, to its rows in place."""
    return rows.add_(biases.index_select(0, routing.ids))


def stacked(A: Tensor, B: Tensor, experts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The adapters of each expert, from PEFT's layout, in which A has the experts outermost.

    Args:
        A: ``(experts × rank, in_features)``.
        B: ``(out_features, rank × experts)``.
        experts: their number.
        dtype: of the results.

    Returns:
        ``(experts, rank, in_features)`` and ``(experts, out_features, rank)``.
    """
    narrow = A.to(dtype).view(experts, -1, A.shape[1])
    wide = B.to(dtype).view(B.shape[0], -1, experts).permute(2, 0, 1).contiguous()
    return narrow, wide


def unstacked(dA: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of A in PEFT's layout, from ``(experts, rank, in_features)``."""
    return dA.reshape(-1, dA.shape[2]).to(dtype)


def unstacked_wide(dB: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of B in PEFT's layout, from ``(experts, out_features, rank)``."""
    return dB.to(dtype).permute(1, 2, 0).reshape(dB.shape[1], -1)
