"""The mask of dropout, bit for bit the one that ``F.dropout`` draws from torch's generator.

Without Intel's generator ``Tensor.bernoulli_`` draws a double per element on one core of the CPU,
at about 6 ns each: as long as the base product of a small layer. Drawing the same bits as integers
is faster. That both agree is verified once; otherwise ``bernoulli_`` is used.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_BITS = 53  # of the doubles that bernoulli_ compares with the probability
_BIT_MASK = (1 << _BITS) - 1
_SMALL = 4096  # elements, up to which one call is faster than three
# Elements per draw: the integers stay in the CPU's cache, no large block is allocated, and torch
# does not split the work among threads, which takes longer than the work itself.
_CHUNK = 1 << 15


def dropout_mask(X: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """The mask of ``F.dropout(X.to(dtype), p)`` as uint8, 1 where an element is kept.

    Args:
        X: contiguous; on the CPU only its shape matters.
        p: the dropout probability.
        dtype: that PEFT draws in, on which CUDA's order may depend.
    """
    if not X.is_cpu:
        return torch.native_dropout(X.to(dtype), p, True)[1].view(torch.uint8)
    mask = torch.empty(X.shape, dtype=torch.bool)
    if X.numel() < _SMALL or not _integers_match():
        mask.bernoulli_(1 - p)
    else:
        _draw_integers(mask, 1 - p)
    return mask.view(torch.uint8)


def traced_dropout_mask(X: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """The mask that a compiled ``F.dropout(X.to(dtype), p)`` draws, as uint8."""
    return torch.native_dropout(X.to(dtype), p, True)[1].to(torch.uint8)


def _draw_integers(mask: Tensor, keep: float, generator: torch.Generator | None = None) -> None:
    """``bernoulli_`` keeps where 53 random bits, as a fraction, are below the probability."""
    flat, limit = mask.view(-1), math.ceil(math.ldexp(keep, _BITS))
    bits = torch.empty(min(flat.numel(), _CHUNK), dtype=torch.int64)
    for part in flat.split(_CHUNK):  # type: ignore[no-untyped-call]
        drawn = bits[: part.numel()].random_(generator=generator).bitwise_and_(_BIT_MASK)
        torch.lt(drawn, limit, out=part)


@lru_cache(maxsize=1)
def _integers_match() -> bool:
    """Whether both ways give equal masks and leave the generator in the same state."""
    for keep in (0.9, 0.5, 1 / 3):
        ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        mask, expected = (torch.empty(1009, dtype=torch.bool) for _ in range(2))
        expected.bernoulli_(keep, generator=theirs)
        _draw_integers(mask, keep, ours)
        if not (torch.equal(mask, expected) and torch.equal(ours.get_state(), theirs.get_state())):
            return False
    return True
