"""Formatting of lists: bars, aligned columns, shortened lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

MAX_LINES = 20  # of a list in the terminal; --json has all

T = TypeVar("T")

_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, cells: int) -> str:
    """A bar that fills a share of some cells, to an eighth of a cell.

    >>> bar(0.5, 4), bar(0.3, 4)
    ('██', '█▎')
    """
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def align(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Joins rows of cells into lines with aligned columns.

    Args:
        rows: all of the same length.
        sides: one letter per column, ``l`` or ``r``.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(sides))]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]


def first_lines(things: Sequence[T], line: Callable[[T], str], indent: str = "  ") -> list[str]:
    """The lines of the first :data:`MAX_LINES` things, and how many more there are."""
    lines = [f"{indent}{line(thing)}" for thing in things[:MAX_LINES]]
    more = len(things) - MAX_LINES
    return [*lines, f"{indent}and {more:,} more, which --json lists"] if more > 0 else lines
