"""Token counts as users write them: ``2048``, ``1024,2048``, ``512:8192``, ``512:8192:64``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autolora.errors import AutoloraError

MOST = 2**31 - 1
MOST_COUNTS = 100_000

_ALLOWED = (
    "whole numbers from 1 to 2147483647, separated by commas, or ranges LOW:HIGH, which are tuned "
    "where their winners change, or LOW:HIGH:STEP, every STEP tokens"
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows of X to tune for.

    Args:
        counts: ascending, each once.
        ranged: whether to add counts between these where the winner changes.
    """

    counts: tuple[int, ...] = ()
    ranged: bool = False

    def __bool__(self) -> bool:
        return bool(self.counts)

    @classmethod
    def of(cls, given: int | str | Iterable[int] | None) -> Tokens:
        """From a number, several, or text.

        Raises:
            AutoloraError: it is none of these, or a range has no counts or far too many.
        """
        if isinstance(given, str):
            parts = [_part(part.strip(), given) for part in given.split(",")]
            counts = {count for part in parts for count in part[0]}
            return cls(tuple(sorted(counts)), any(ranged for _, ranged in parts))
        listed: list[Any] = list(given) if isinstance(given, Iterable) else [given]
        if not listed or not all(type(count) is int and 1 <= count <= MOST for count in listed):
            raise AutoloraError(
                "tokens must be the rows that a layer gets in one step, usually batch size × "
                f"sequence length: {_ALLOWED}, not {given!r}"
            )
        return cls(tuple(sorted(set(listed))))


def powers_of_two(low: int, high: int) -> tuple[int, ...]:
    """The bounds, and the powers of two between them.

    >>> powers_of_two(500, 2100)
    (500, 512, 1024, 2048, 2100)
    """
    powers = (1 << exponent for exponent in range(low.bit_length(), high.bit_length()))
    return tuple(sorted({low, high, *(power for power in powers if power < high)}))


def _part(text: str, whole: str) -> tuple[Iterable[int], bool]:
    """The counts of one part, and whether it is a range without a step."""
    words = text.split(":")
    numbers = [int(word) if re.fullmatch("[0-9]{1,10}", word) else 0 for word in words]
    if len(numbers) > 3 or not all(1 <= number <= MOST for number in numbers):
        raise AutoloraError(f"tokens must be {_ALLOWED}, not {whole!r}")
    if len(numbers) == 1:
        return numbers, False
    low, high, *step = numbers
    if low > high:
        raise AutoloraError(f"the range of tokens {text!r} is empty: {low} is more than {high}")
    if not step:
        return powers_of_two(low, high), low < high
    counts = range(low, high + 1, step[0])
    if len(counts) > MOST_COUNTS:
        raise AutoloraError(
            f"the range of tokens {text!r} has {len(counts)} counts; at most {MOST_COUNTS} are "
            f"allowed. {low}:{high} without a step tunes a few where the winner changes"
        )
    return counts, False
