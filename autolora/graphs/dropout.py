"""Dropout's mask, bit for bit the one that ``F.dropout`` would draw from torch's generator.

On a CPU without Intel's own generator ``Tensor.bernoulli_`` makes each element of a double, at some
6 ns each and on one core: as long as the base product of a small layer. The same bits come faster
as whole numbers; that they are the same is verified once, else ``bernoulli_`` draws them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_DIGITS = 53  # of the doubles that bernoulli_ compares with the probability
_LOW_DIGITS = (1 << _DIGITS) - 1
_FEW = 4096  # elements, for which one call is faster than three
# Elements drawn in one go. Their whole numbers stay in the cache, no large block is ever allocated,
# and torch does not share them among threads, which takes longer than the work.
_AT_ONCE = 1 << 15


def keep(X: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """The mask of ``F.dropout(X.to(dtype), p)``: bytes, 1 where an element is kept.

    Args:
        X: of which only the shape and the device matter on the CPU; contiguous.
        p: the probability to lose an element.
        dtype: the one that PEFT draws for; CUDA's order may depend on it.
    """
    if not X.is_cpu:
        return torch.native_dropout(X.to(dtype), p, True)[1].view(torch.uint8)
    kept = 1 - p
    mask = torch.empty(X.shape, dtype=torch.bool)
    if X.numel() < _FEW or not _whole_numbers_are_the_same():
        mask.bernoulli_(kept)
    else:
        _by_whole_numbers(mask, kept)
    return mask.view(torch.uint8)


def _by_whole_numbers(mask: Tensor, kept: float, generator: torch.Generator | None = None) -> None:
    """``bernoulli_`` keeps where 53 random bits, as a fraction, are below the probability."""
    flat, below = mask.view(-1), math.ceil(math.ldexp(kept, _DIGITS))
    bits = torch.empty(min(flat.numel(), _AT_ONCE), dtype=torch.int64)
    for part in flat.split(_AT_ONCE):  # type: ignore[no-untyped-call]
        drawn = bits[: part.numel()].random_(generator=generator).bitwise_and_(_LOW_DIGITS)
        torch.lt(drawn, below, out=part)


@lru_cache(maxsize=1)
def _whole_numbers_are_the_same() -> bool:
    """Whether both ways give equal masks here and leave the generator in the same state."""
    for kept in (0.9, 0.5, 1 / 3):
        one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        expected, mine = torch.empty(1009, dtype=torch.bool), torch.empty(1009, dtype=torch.bool)
        expected.bernoulli_(kept, generator=one)
        _by_whole_numbers(mine, kept, other)
        if not (torch.equal(mine, expected) and torch.equal(one.get_state(), other.get_state())):
            return False
    return True
