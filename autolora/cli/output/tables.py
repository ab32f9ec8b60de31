"""Records and environments as tables and as JSON.

A table has one line of figures per problem, with the winner below it: the time of forward and
backward, the speed-up over the reference graph (what PEFT runs) and over the graph chosen by FLOPs,
and the share of the LoRA overhead removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from autolora.cache.records.record import Record
from autolora.cli.output.console import clean
from autolora.cli.output.figures import align, bar
from autolora.problem import BaseProblem
from autolora.units import duration, percent, ratio

if TYPE_CHECKING:
    from autolora.environment import Environment

_HEADS = (
    ("", "", "", "", "forward,", "speed-up", "over", "overhead"),
    ("layer", "tokens", "grads", "{extra}", "backward", "over PEFT", "FLOPs", "removed"),
)
_SIDES = "lrlrrlrr"
_LONGEST_BAR = 24

T = TypeVar("T")


def record_table(
    records: Sequence[Record],
    width: int,
    uses: Mapping[BaseProblem, int] | None = None,
    *,
    below: Callable[[Record], list[Text]] = lambda record: [],
) -> list[Text]:
    """A table of records, in sections of equal rank and dtypes.

    Args:
        records: in the order to be shown within their section.
        width: of the screen, in cells.
        uses: number of layers with each problem; without it the effort is shown instead.
        below: further lines below each record.
    """
    heads = [
        [cell.format(extra="effort" if uses is None else "layers") for cell in head]
        for head in _HEADS
    ]
    rows = [_cells(record, uses) for record in records]
    lines = align([*heads, *rows], _SIDES)
    top = max((record.speedup for record in records), default=1.0)
    cells = _bar_width(lines, width)
    for record, row in zip(records, rows, strict=True):
        share = (record.speedup - 1) / max(top - 1, 0.5)
        row[5] = f"{row[5]} {bar(share, cells):<{cells}}"
    lines = align([*heads, *rows], _SIDES)
    shown = [Text("  " + line, "dim") for line in lines[:2]]
    for title, section in sections(zip(records, lines[2:], strict=True)):
        shown.append(title)
        for record, line in section:
            style = "" if record.winner == record.reference else "green"
            shown.append(Text("  " + clean(line), style))
            shown.append(Text("    " + clean(record.winner), "dim"))
            shown += below(record)
    return shown


def sections(pairs: Iterable[tuple[Any, T]]) -> Iterator[tuple[Text, list[tuple[Any, T]]]]:
    """Groups pairs by the rank and dtypes of ``pair[0].problem``, with a title for each group."""

    def title(pair: tuple[Any, T]) -> str:
        text: str = pair[0].problem.section_text
        return text

    for text, section in groupby(sorted(pairs, key=title), key=title):
        yield Text(text, "bold"), list(section)


def by_environment(things: Iterable[T]) -> Iterator[tuple[Environment, list[T]]]:
    """Groups records, or other things with an environment, by it."""

    def environment(thing: Any) -> Environment:
        found: Environment = thing.environment
        return found

    ordered = sorted(things, key=lambda thing: environment(thing).id)
    for found, group in groupby(ordered, key=environment):
        yield found, list(group)


def environment_title(environment: Environment) -> list[Text]:
    """A line for the device, and one for the libraries."""
    lines = (environment.machine_text, "bold"), (environment.libraries_text, "dim")
    return [Text(clean(text), style) for text, style in lines]


def environment_line(environment: Environment) -> str:
    """An environment in one line."""
    return ", ".join(line.plain for line in environment_title(environment))


def environments_json(environments: Iterable[Environment]) -> dict[str, Any]:
    """Environments by id."""
    return {environment.id: environment.to_json() for environment in environments}


def record_json(record: Record) -> dict[str, Any]:
    """A record as in the cache file, with its derived figures."""
    return {
        **record.to_json(),
        "median_ns": record.median_ns,
        "speedup": record.speedup,
        "flops_speedup": record.flops_speedup,
        "overhead_removed": record.overhead_removed,
    }


def group_names(names: Iterable[str]) -> str:
    """Joins paths of layers, with ``*`` for numbers that differ.

    >>> group_names(["layers.0.q_proj", "layers.1.q_proj"])
    'layers.*.q_proj'
    """
    groups: dict[str, list[list[str]]] = {}
    for name in names:
        groups.setdefault(name_shape(name), []).append(name.split("."))
    return ", ".join(
        ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*group, strict=True))
        for group in groups.values()
    )


def name_shape(name: str) -> str:
    """A path with ``*`` for its numbers: equal for the same layer of different blocks."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _cells(record: Record, uses: Mapping[BaseProblem, int] | None) -> list[str]:
    problem = record.problem
    return [
        problem.shape_text,
        str(problem.tokens),
        problem.gradient_text,
        record.effort if uses is None else str(uses.get(problem, 0)),
        duration(record.median_ns),
        ratio(record.speedup),
        ratio(record.flops_speedup),
        percent(record.overhead_removed),
    ]


def _bar_width(lines: Sequence[str], width: int) -> int:
    """Cells left for the bars, whose head is wider than the figures beside them."""
    free = width - 2 - max(map(len, lines)) + len(_HEADS[1][5])
    return max(0, min(_LONGEST_BAR, free - len("1.23x ")))
