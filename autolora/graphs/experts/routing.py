"""Which rows belong to which expert: rows are sorted by expert, so that each has a slice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import expm1

import torch
from torch import Tensor

_LITTLE = 1.5  # times the rows: padding that is taken for a single bucket


@dataclass(frozen=True, slots=True)
class Bucket:
    """Experts that are padded to the same number of rows.

    Args:
        experts: their numbers.
        room: rows of each.
        begin: where their rows begin.
    """

    experts: list[int]
    room: int
    begin: int

    @property
    def end(self) -> int:
        """Where their rows end."""
        return self.begin + len(self.experts) * self.room


@dataclass(eq=False)
class Routing:
    """The rows of each expert.

    Args:
        experts: number of experts.
        ids: the expert of each row, ascending, ``(rows,)``.
        ends: of each expert's slice of the rows.
    """

    experts: int
    ids: Tensor
    ends: list[int]

    @classmethod
    def sorted_by(cls, ids: Tensor, experts: int) -> tuple[Routing, Tensor]:
        """The routing of rows that were sorted, and the order that sorts them.

        Args:
            ids: the expert of each row; rows with a number outside are those of no expert.
            experts: number of experts.
        """
        ordered, order = torch.sort(ids, stable=True)
        every = torch.arange(experts + 1, device=ids.device, dtype=ids.dtype)
        first, *ends = torch.searchsorted(ordered, every).tolist()
        inside = slice(first, ends[-1])
        return cls(experts, ordered[inside], [end - first for end in ends]), order[inside]

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """Each expert that has rows, with begin and end of its slice."""
        begins = [0, *self.ends[:-1]]
        spans = zip(range(self.experts), begins, self.ends, strict=True)
        return [(e, begin, end) for e, begin, end in spans if begin < end]

    @cached_property
    def offsets(self) -> Tensor:
        """The ends as a tensor, as grouped products take them."""
        return torch.tensor(self.ends, dtype=torch.int32, device=self.ids.device)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The experts that are padded to the same number of rows.

        One bucket of all experts if that needs little more than the rows; else those that have
        rows, in buckets in which each has at least half as many as the first.
        """
        counts = {e: end - begin for e, begin, end in self.spans}
        most = max(counts.values(), default=0)
        if self.experts * most <= _LITTLE * len(self.ids):
            return [Bucket(list(range(self.experts)), most, 0)]
        found: list[Bucket] = []
        for e in sorted(counts, key=counts.__getitem__, reverse=True):
            if not found or 2 * counts[e] < found[-1].room:
                found.append(Bucket([], counts[e], found[-1].end if found else 0))
            found[-1].experts.append(e)
        return found

    @property
    def room(self) -> int:
        """The rows of all buckets together."""
        return self.buckets[-1].end if self.buckets else 0

    @cached_property
    def places(self) -> Tensor:
        """The place of each row in the buckets."""
        shifts = [0] * self.experts
        begins = [0, *self.ends[:-1]]
        for bucket in self.buckets:
            for number, e in enumerate(bucket.experts):
                shifts[e] = bucket.begin + number * bucket.room - begins[e]
        rows = torch.arange(len(self.ids), device=self.ids.device)
        return torch.tensor(shifts, device=self.ids.device)[self.ids] + rows

    @cached_property
    def members(self) -> list[Tensor | None]:
        """The experts of each bucket, None if that holds all of them in their order."""
        every, device = list(range(self.experts)), self.ids.device
        return [
            None if bucket.experts == every else torch.tensor(bucket.experts, device=device)
            for bucket in self.buckets
        ]

    def load(self, top_k: int) -> str:
        """``"uniform"`` or ``"skewed"``, whichever explains the squares of the loads better.

        Of T rows on E experts with shares p of them, ``Σ n²`` is about ``T + T² Σ p²``. Σ p² is 1/E
        for equal shares, and that of :func:`skewed_shares` for skewed ones; their geometric mean
        divides the two classes.
        """
        rows = len(self.ids)
        squares = sum((end - begin) ** 2 for _, begin, end in self.spans)
        limit = rows + rows * rows * _middle(self.experts, top_k)
        return "skewed" if squares > limit else "uniform"


def skewed_weights(experts: int) -> list[float]:
    """How likely the nth busiest expert of a skewed load is drawn next: as 1/n, Zipf's law."""
    return [1 / n for n in range(1, experts + 1)]


@lru_cache(maxsize=256)
def skewed_shares(experts: int, top_k: int) -> tuple[float, ...]:
    """The shares of the rows that experts get in a skewed load.

    If a token's ``top_k`` experts are drawn one after the other without replacement, expert e is
    among them with a probability of about ``1 - exp(-t w_e)``, with t such that these add up to
    ``top_k``.
    """
    weights = skewed_weights(experts)

    def chances(t: float) -> list[float]:
        return [-expm1(-t * weight) for weight in weights]

    low, high = 0.0, 1.0
    while sum(chances(high)) < min(top_k, experts - 1e-6) and high < 1e9:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(chances(middle)) < top_k else (low, middle)
    found = chances(high)
    return tuple(chance / sum(found) for chance in found)


@lru_cache(maxsize=256)
def _middle(experts: int, top_k: int) -> float:
    """The Σ p² between those of equal and of skewed shares."""
    return float((sum(p * p for p in skewed_shares(experts, top_k)) / experts) ** 0.5)


def drawn_routing(
    tokens: int, experts: int, top_k: int, load: str, device: torch.device, seed: int = 0
) -> Routing:
    """A random routing: each token goes to ``top_k`` different experts.

    They are drawn one after the other without replacement, with equal probabilities or
    in proportion to :func:`skewed_weights`; which experts are the busy ones is random too.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [1.0] * experts if load == "uniform" else skewed_weights(experts)
    turned = torch.tensor(weights)[torch.randperm(experts, generator=generator)]
    # the largest of log w plus Gumbel noise are a draw without replacement
    noise = -torch.log(-torch.log(torch.rand(tokens, experts, generator=generator)))
    ids = (turned.log() + noise).topk(min(top_k, experts), dim=1).indices
    return Routing.sorted_by(ids.flatten().to(device), experts)[0]
