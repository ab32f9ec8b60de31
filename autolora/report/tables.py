"""The tables of a report: their columns, and rows of plain data for the page to show.

A row is a JSON object. Names of graphs are numbers in it, since thousands of records share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autolora.cache.differences import Differences, different_fields
from autolora.cache.records.candidate import Candidate, Verdict
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.problem.base import DEFAULT_KIND, EAGER, BaseProblem
from autolora.report.families import Family
from autolora.report.summary import machines, side_by_side

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        key: of its value in a row; where it is missing or None the cell is a dash.
        title: of its header.
        kind: how a value is shown: ``text``, ``graph``, ``count``, ``duration``, ``seconds``,
            ``ratio``, ``percent`` or ``size``.
        wide: whether it is hidden on a narrow screen.
    """

    key: str
    title: str
    kind: str = "text"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        name: in the page.
        caption: what it holds.
        columns: the first is the header of each row.
        rows: in the order to be shown.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(slots=True)
class Names:
    """Numbers for names that occur often."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """The number of a name, the same each time."""
        return self.numbers.setdefault(name, len(self.numbers))


def letter(place: int) -> str:
    """A short name for a machine: A to Z, then A1 and so on."""
    return chr(ord("A") + place % 26) + str(place // 26 or "")


def problem_table(
    records: Iterable[Record],
    families: Sequence[Family],
    places: Sequence[Environment],
    names: Names,
) -> Table:
    """Every problem with its times, its candidates, and the number of its family if it has one."""
    number = {environment: place for place, environment in enumerate(places)}
    numbers = {(f.problem.at(1), f.environment): n for n, f in enumerate(families)}
    columns = [
        Column("layer", "Layer"),
        Column("tokens", "Tokens", "count", wide=True),
        Column("rank", "Rank", wide=True),
        Column("traits", "Computed in", wide=True),
        Column("gradients", "Gradients", wide=True),
        *([Column("place", "Machine", wide=True)] if len(places) > 1 else []),
        Column("reference_ns", "PEFT", "duration", wide=True),
        Column("median_ns", "Tuned", "duration", wide=True),
        Column("speedup", "Speed-up", "ratio"),
        Column("overhead_removed", "Overhead removed", "percent"),
        Column("saved_bytes", "Kept for backward", "size", wide=True),
    ]
    rows = [
        {
            **_problem(record.problem),
            "machine": number[record.environment],
            "place": letter(number[record.environment]) if len(places) > 1 else None,
            "floor_ns": record.floor_ns,
            "reference_ns": record.reference_ns,
            "median_ns": record.median_ns,
            "speedup": record.speedup,
            "overhead_removed": record.overhead_removed,
            "saved_bytes": _saved(record, record.winner),
            "winner": names.number(record.winner),
            "reference": names.number(record.reference),
            "flops_choice": names.number(record.flops_choice),
            "effort": record.effort,
            "objectives": ", ".join(record.objectives),
            "measured_at": record.measured_at,
            "seconds": record.seconds,
            "candidates": [_candidate(each, names) for each in record.candidates],
            **({} if (family := numbers.get(_family(record))) is None else {"family": family}),
        }
        for record in records
    ]
    return Table("problems", "Every problem that was measured", columns, rows)


def machine_table(records: Iterable[Record], places: Sequence[Environment]) -> Table:
    """Every machine in a few figures."""
    columns = [
        Column("machine_text", "Machine"),
        Column("libraries", "Libraries", wide=True),
        Column("number", "Records", "count"),
        Column("speedup", "Mean speed-up", "ratio"),
        Column("least", "Least", "ratio", wide=True),
        Column("largest", "Largest", "ratio", wide=True),
        Column("kept", "Won by PEFT", "count", wide=True),
        Column("seconds", "Tuning took", "seconds"),
    ]
    rows = [
        {
            "machine": places.index(each.environment),
            "machine_text": f"{letter(places.index(each.environment))}: "
            f"{each.environment.machine_text}",
            "libraries": each.environment.libraries_text,
            "number": each.number,
            "kept": each.kept,
            "speedup": each.speedup,
            "least": each.least,
            "largest": each.largest,
            "seconds": each.cost_s,
        }
        for each in machines(records)
    ]
    return Table("machines", "Machines, with geometric means over PEFT's graphs", columns, rows)


def shared_table(records: Iterable[Record], places: Sequence[Environment]) -> Table:
    """The problems that several machines have measured, with the tuned times of each."""
    columns = [Column("layer", "Layer"), Column("tokens", "Tokens", "count")]
    columns += [Column("about", "Rank, computed in, gradients", wide=True)]
    for place in range(len(places)):
        columns.append(Column(f"time{place}", f"Tuned on {letter(place)}", "duration"))
        columns.append(Column(f"speedup{place}", f"Over PEFT on {letter(place)}", "ratio"))
    columns.append(Column("same", "Same winner"))
    rows = []
    for group in side_by_side(records):
        row = _problem(group[0].problem)
        row["same"] = "yes" if len({record.winner for record in group}) == 1 else "no"
        for record in group:
            place = places.index(record.environment)
            row |= {f"time{place}": record.median_ns, f"speedup{place}": record.speedup}
        rows.append(row)
    return Table("shared", "Problems that several machines have measured", columns, rows)


def change_table(found: Differences, places: Sequence[Environment], names: Names) -> Table:
    """What is different, new or gone in ``b``."""
    number = {environment.id: place for place, environment in enumerate(places)}
    columns = [
        Column("layer", "Layer"),
        Column("tokens", "Tokens", "count"),
        Column("about", "Rank, computed in, gradients", wide=True),
        *([Column("place", "Machine", wide=True)] if len(places) > 1 else []),
        Column("change", "Change"),
        Column("before_ns", "Before", "duration", wide=True),
        Column("after_ns", "Now", "duration", wide=True),
        Column("speedup", "As fast", "ratio"),
        Column("before", "Winner before", "graph", wide=True),
        Column("after", "Winner now", "graph", wide=True),
    ]
    rows = []
    for key in (*found.different, *found.only_b, *found.only_a):
        a, b = found.different.get(key, (found.only_a.get(key), found.only_b.get(key)))
        row = {**_problem(key.problem), "change": _change(a, b)}
        if (place := number.get(key.environment)) is not None:  # else it is gone with its records
            row |= {"machine": place, "place": letter(place) if len(places) > 1 else None}
        if a is not None:
            row["before_ns"] = a.median_ns
        if b is not None:
            row["after_ns"] = b.median_ns
        if a is not None and b is not None:
            row["speedup"] = a.median_ns / b.median_ns
            if a.winner != b.winner:
                row |= {"before": names.number(a.winner), "after": names.number(b.winner)}
        rows.append(row)
    return Table("changes", "Records that are new, gone or different", columns, rows)


def family_rows(
    families: Iterable[Family], places: Sequence[Environment], names: Names
) -> list[Row]:
    """Families as rows, with the ranges of each."""
    return [
        {
            **_problem(family.problem),
            "number": number,
            "machine": places.index(family.environment),
            "ranges": [
                [
                    each.first_tokens,
                    each.last_tokens,
                    None if each.graph is None else names.number(each.graph),
                    each.first_speedup,
                    each.last_speedup,
                ]
                for each in family.ranges
            ],
        }
        for number, family in enumerate(families)
    ]


def _problem(problem: BaseProblem) -> Row:
    about = (f"rank {problem.rank_text}", problem.traits, _gradients(problem))
    return {
        "layer": problem.shape_text,
        "kind": problem.kind,
        "mode": problem.mode,
        "badges": [problem.kind] * (problem.kind != DEFAULT_KIND)
        + [problem.mode] * (problem.mode != EAGER),
        "tokens": problem.tokens,
        "rank": problem.rank_text,
        "traits": problem.traits,
        "gradients": _gradients(problem),
        "about": ", ".join(about),
    }


def _family(record: Record) -> tuple[BaseProblem, Environment]:
    return record.problem.at(1), record.environment


def _gradients(problem: BaseProblem) -> str:
    return " ".join(f"d{name}" for name in problem.gradients) or "forward only"


def _saved(record: Record, graph: str) -> int:
    candidate = record.candidate(graph)
    assert candidate is not None  # by Record, of its winner
    return candidate.saved_bytes


def _change(a: Record | None, b: Record | None) -> str:
    if a is None:
        return "new"
    if b is None:
        return "gone"
    if a.winner != b.winner:
        return "another winner"
    return "another time" if a.median_ns != b.median_ns else f"other {different_fields(a, b)[0]}"


def _candidate(candidate: Candidate, names: Names) -> list[Any]:
    return [
        names.number(candidate.graph),
        candidate.median_ns,
        candidate.spread_ns,
        candidate.rounds,
        candidate.saved_bytes,
        candidate.peak_bytes,
        None if candidate.verdict is None else _verdict(candidate.verdict),
    ]


def _verdict(verdict: Verdict) -> list[Any]:
    figures: Mapping[str, Sequence[float | None]] = {**verdict.errors, "gain": verdict.gain}
    rounded = {
        name: [None if figure is None else float(f"{figure:.3g}") for figure in pair]
        for name, pair in figures.items()
    }
    return [verdict.ok, verdict.reason, rounded]
