"""The evidence of a record: time, accuracy and memory of every candidate."""

from __future__ import annotations

from rich.text import Text

from autolora.cache.records.candidate import Candidate, Verdict
from autolora.cache.records.record import Record
from autolora.cli.output.console import clean
from autolora.cli.output.figures import align
from autolora.cli.output.objectives import candidate_for
from autolora.cli.output.steps import reference_of, winner_of
from autolora.objective import KINDS, Objective
from autolora.units import count, duration, size

LEGEND = (
    "Below each graph: its relative errors against float64 and its adapter gain, the share of the "
    "adapter's effect that Y keeps, for adapters of the sizes ‖s·BA‖/‖W‖ = 1e-1 and 1e-3."
)

_SIZES = ("1e-1", "1e-3")
_INDENT = " " * 6
_ROOM = 80 - len(_INDENT)


def candidate_table(record: Record) -> list[Text]:
    """Every candidate, fastest first, with the objectives under which layers run it."""
    ordered = sorted(record.candidates, key=lambda c: (c.median_ns is None, c.median_ns, c.graph))
    roles = _roles(record)
    rows = [
        [
            duration(candidate.median_ns),
            f"spread {duration(candidate.spread_ns)}" if candidate.rounds else "not timed",
            count(candidate.rounds, "round") if candidate.rounds else "",
            _memory(candidate),
            _accuracy(candidate),
        ]
        for candidate in ordered
    ]
    shown = []
    for line, candidate in zip(align(rows, "rlrll"), ordered, strict=True):
        shown.append(Text(f"    {line}", "green" if candidate.graph == record.winner else ""))
        shown.append(Text(_INDENT + clean(candidate.graph), "dim"))
        if candidate.graph in roles:
            shown.append(Text(_INDENT + ", ".join(roles[candidate.graph]), "bold"))
        if candidate.verdict is not None:
            shown += [Text(_INDENT + each, "dim") for each in _figures(candidate.verdict)]
    if record.floor_ns is not None:
        width = max(len(row[0]) for row in rows)
        time = duration(record.floor_ns).rjust(width)
        shown.append(Text(f"    {time}  the layer without its adapter"))
    return shown


def saved_line(record: Record) -> Text:
    """The bytes saved by the winner and by the reference graph."""
    kept, reference = (size(each(record).saved_bytes) for each in (winner_of, reference_of))
    return Text(f"    keeps {kept}, PEFT's graph {reference}", "dim")


def _roles(record: Record) -> dict[str, list[str]]:
    """The objectives that each graph wins, and whether it is PEFT's or the FLOPs choice."""
    won: dict[str, list[str]] = {}
    for kind in reversed(KINDS):
        won.setdefault(candidate_for(record, Objective(kind)).graph, []).append(kind)
    roles = {graph: [f"wins {' and '.join(kinds)}"] for graph, kinds in won.items()}
    for role, graph in (("PEFT's graph", record.reference), ("FLOPs choice", record.flops_choice)):
        roles.setdefault(graph, []).append(role)
    return roles


def _memory(candidate: Candidate) -> str:
    kept, peak = f"keeps {size(candidate.saved_bytes)}", candidate.peak_bytes
    return kept if peak is None else f"{kept}, peak {size(peak)}"


def _accuracy(candidate: Candidate) -> str:
    if candidate.verdict is None:
        return "accuracy unknown"
    return "accurate" if candidate.verdict.ok else "rejected"


def _figures(verdict: Verdict) -> list[str]:
    lines = [] if verdict.ok else [clean(f"rejected: {verdict.reason}")]
    outputs = list(verdict.errors)
    if outputs:
        rows = [
            [
                f"{magnitude}:",
                *(f"{output} {_error(verdict.errors[output][which])}" for output in outputs),
                f"gain {_gain(verdict.gain[which])}",
            ]
            for which, magnitude in enumerate(_SIZES)
        ]
        aligned = align(rows, "l" * len(rows[0]))
        lines += aligned if max(map(len, aligned)) <= _ROOM else map(" ".join, rows)
    return lines


def _error(figure: float | None) -> str:
    if figure is None:
        return "inf"
    mantissa, exponent = f"{figure:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"  # 3.0e-7 instead of 3.0e-07


def _gain(figure: float | None) -> str:
    return "inf" if figure is None else f"{figure:.3f}"
