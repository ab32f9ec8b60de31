"""Records as tables: one line of figures per problem, and the winner's name below it.

The figures are those of a :class:`~autolora.cache.records.record.Record`: forward, backward,
speed-up over the reference graph, which is what PEFT runs, and over the graph that FLOPs alone
would choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from autolora.cache.records.record import Record
from autolora.cli.output.console import clean
from autolora.cli.output.figures import align, bar, count, duration, percent, ratio
from autolora.problem import PLAIN_GRADIENTS, Problem

if TYPE_CHECKING:
    from autolora.environment import Environment

_HEADS = (
    ("", "", "", "", "forward,", "speed-up", "over", "overhead"),
    ("layer", "tokens", "grads", "{extra}", "backward", "over PEFT", "FLOPs", "removed"),
)
_SIDES = "lrlrrlrr"
_LONGEST_BAR = 24

_VARIANTS = {"lora": "LoRA", "dora": "DoRA"}


def record_table(
    records: Sequence[Record],
    width: int,
    uses: Mapping[Problem, int] | None = None,
    *,
    below: Callable[[Record], list[Text]] = lambda record: [],
) -> list[Text]:
    """A table of records, in sections of equal rank and dtypes.

    Args:
        records: in the order in which they are to be shown within their section.
        width: of the screen, in cells.
        uses: how many layers share each problem; their effort is shown instead unless given.
        below: what is shown below each record.
    """
    heads = [
        [cell.format(extra="effort" if uses is None else "layers") for cell in head]
        for head in _HEADS
    ]
    records = sorted(records, key=lambda record: section_title(record.problem))  # a stable sort
    rows = [_cells(record, uses) for record in records]
    lines = align([*heads, *rows], _SIDES)
    top = max((record.speedup for record in records), default=1.0)
    cells = _room(lines, width)
    for record, row in zip(records, rows, strict=True):
        share = (record.speedup - 1) / max(top - 1, 0.5)
        row[5] = f"{row[5]} {bar(share, cells):<{cells}}"
    lines = align([*heads, *rows], _SIDES)
    shown = [Text("  " + line, "dim") for line in lines[:2]]
    body = iter(zip(records, lines[2:], strict=True))
    for title, section in groupby(body, key=lambda pair: section_title(pair[0].problem)):
        shown.append(Text(title, "bold"))
        for record, line in section:
            style = "" if record.winner == record.reference else "green"
            shown.append(Text("  " + clean(line), style))
            shown.append(Text("    " + clean(record.winner), "dim"))
            shown += below(record)
    return shown


def environment_title(environment: Environment) -> list[Text]:
    """A line that names a machine, and one that names its libraries."""
    unit = "thread" if environment.device == "cpu" else "multiprocessor"
    machine = f"{environment.device_name}, {count(environment.units, unit)}"
    libraries = f"{environment.capability}, torch {environment.torch}, {environment.blas}"
    if environment.float32_matmul_precision != "highest":
        libraries += f", float32 products in {environment.float32_matmul_precision} precision"
    return [Text(clean(machine), "bold"), Text(clean(libraries), "dim")]


def group_names(names: Iterable[str]) -> str:
    """Paths of equal layers as one: numbers that differ become ``*``.

    >>> group_names(["layers.0.q_proj", "layers.1.q_proj"])
    'layers.*.q_proj'
    """
    return ", ".join(
        ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*each, strict=True))
        for each in _alike(names)
    )


def name_shape(name: str) -> str:
    """A path with ``*`` for its numbers: equal for layers at the same place of different blocks."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _alike(names: Iterable[str]) -> list[list[list[str]]]:
    groups: dict[str, list[list[str]]] = {}
    for name in names:
        groups.setdefault(name_shape(name), []).append(name.split("."))
    return list(groups.values())


def layer_title(problem: Problem) -> str:
    """In and out features, and whether there is a bias."""
    return f"{problem.in_features} → {problem.out_features}" + (" +b" if problem.bias else "")


def gradient_title(problem: Problem) -> str:
    """The gradients that are needed: of X, A and B each at its place, then what else there is."""
    shown = [name if name in problem.gradients else " " for name in PLAIN_GRADIENTS]
    shown += [name for name in problem.gradients if name not in PLAIN_GRADIENTS]
    return " ".join(shown).rstrip() if problem.gradients else "none"


def call_title(problem: Problem) -> str:
    """What a layer is called with: sizes, tokens, and the gradients that are needed."""
    gradients = ", ".join(f"d{name}" for name in problem.gradients) or "forward only"
    return f"{layer_title(problem)}, {problem.tokens} tokens, {gradients}"


def section_title(problem: Problem) -> str:
    """What the problems of a section have in common: rank, dtypes and what is special."""
    title = f"{_VARIANTS[problem.variant]} rank {problem.rank}, {problem.dtype}"
    if problem.layout != "linear":
        title += f" {problem.layout}"
    if problem.adapter_dtype != problem.dtype:
        title += f", adapters {problem.adapter_dtype}"
    if problem.compute_dtype != problem.adapter_dtype:
        title += f" computed in {problem.compute_dtype}"
    if problem.adapter_bias:
        title += ", lora_B bias"
    return title + (", dropout" if problem.dropout else "")


def _cells(record: Record, uses: Mapping[Problem, int] | None) -> list[str]:
    problem = record.problem
    return [
        layer_title(problem),
        str(problem.tokens),
        gradient_title(problem),
        record.effort if uses is None else str(uses.get(problem, 0)),
        duration(record.median_ns),
        ratio(record.speedup),
        ratio(record.flops_speedup),
        percent(record.overhead_removed),
    ]


def _room(lines: Sequence[str], width: int) -> int:
    """Cells left for the bars; the head above them is wider than the figures beside them."""
    free = width - 2 - max(map(len, lines)) + len(_HEADS[1][5])
    return max(0, min(_LONGEST_BAR, free - len("1.23x ")))
