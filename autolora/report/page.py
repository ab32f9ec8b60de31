"""The page of a report: one HTML file that loads nothing else.

Sums, the first rows of every table, and results are in the HTML. The data stand in it as JSON, from
which the script draws what is asked for; all of it is shown as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from autolora.report.cards import benchmark, summary
from autolora.report.contents import Contents
from autolora.report.tables import (
    Column,
    Names,
    Row,
    Table,
    change_table,
    family_rows,
    letter,
    machine_table,
    problem_table,
    shared_table,
)
from autolora.units import count, duration, percent, ratio, size, wait
from autolora.version import __version__

_FOLDER = Path(__file__).parent
_FIRST = 25  # rows of a table in the HTML, as many as the script shows at once
_TEXTS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": "{:,}".format,
    "duration": duration,
    "seconds": wait,
    "ratio": ratio,
    "percent": percent,
    "size": size,
}


def page(contents: Contents) -> str:
    """The HTML of a report."""
    names, places = Names(), contents.places
    tables = [
        problem_table(contents.records, contents.families, places, names),
        machine_table(contents.records, places),
    ]
    if len(places) > 1:
        tables.append(shared_table(contents.records, places))
    if contents.changes is not None:
        tables.append(change_table(contents.changes, places, names))
    machines = [f"{letter(n)}: {place.machine_text}" for n, place in enumerate(places)]
    data = {
        "machines": machines,
        "families": family_rows(contents.families, places, names),
        "tables": {t.name: {"columns": _columns(t), "rows": t.rows} for t in tables},
        "graphs": list(names.numbers),
    }
    shown = {table.name: _table(table, list(names.numbers)) for table in tables if table.rows}
    sections = list(_sections(contents, shown))
    script = _read("page.js")
    return Template(_read("page.html")).substitute(
        style=_read("page.css"),
        script=script,
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_json(data),
        lead=_lead(contents),
        nav="".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections),
        choices=_choices(contents, machines),
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-title">\n'
            f'<h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
            for name, title, body in sections
        ),
        version=escape(__version__),
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def _json(data: object) -> str:
    """JSON that a script element holds whatever it says: no ``<`` begins or ends anything in it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _lead(contents: Contents) -> str:
    machines = count(len(contents.places), "machine")
    problems = f"{len(contents.records):,} problem{'s' * (len(contents.records) != 1)}"
    moments = sorted(record.measured_at[:10] for record in contents.records)
    return (
        f"{problems} on {machines}, measured from {moments[0]} to {moments[-1]}, of "
        + ", ".join(f"<code>{escape(name)}</code>" for name in contents.sources)
    )


def _choices(contents: Contents, machines: Sequence[str]) -> str:
    """A choice for each property in which problems differ."""
    kinds = sorted({record.problem.kind for record in contents.records})
    modes = sorted({record.problem.mode for record in contents.records})
    choices: list[tuple[str, str, list[tuple[Any, str]]]] = [
        ("machine", "Machine", list(enumerate(machines))),
        ("kind", "Kind", list(zip(kinds, kinds, strict=True))),
        ("mode", "Mode", list(zip(modes, modes, strict=True))),
    ]
    return "\n".join(
        f'<label>{title} <select name="{name}"><option value="">all</option>'
        + "".join(f'<option value="{value}">{escape(text)}</option>' for value, text in options)
        + "</select></label>"
        for name, title, options in choices
        if len(options) > 1
    )


def _sections(contents: Contents, shown: dict[str, str]) -> Iterable[tuple[str, str, str]]:
    yield "summary", "Before and after", summary(contents)
    yield "problems-section", "Problems", shown["problems"]
    if contents.families:
        yield "tokens", "Token counts", _families()
    yield "machines-section", "Machines", shown["machines"] + shown.get("shared", "")
    if contents.changes is not None:
        yield "changes-section", "Changes", _changes(contents, shown.get("changes", ""))
    benchmarks = [results for results in contents.results if results.rows]
    if benchmarks:
        yield "results", "Benchmarks", "\n".join(map(benchmark, benchmarks))


# ---- tables


def _columns(table: Table) -> list[dict[str, Any]]:
    return [{"key": c.key, "kind": c.kind, "wide": c.wide} for c in table.columns]


def _table(table: Table, graphs: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col"{_classes(column)}>{escape(column.title)}</th>' for column in table.columns
    )
    rows = "".join(
        f"<tr>{_head(row, table.columns[0])}"
        + "".join(_cell(column, row.get(column.key), graphs) for column in table.columns[1:])
        + "</tr>"
        for row in table.rows[:_FIRST]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f'<table data-name="{table.name}"><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<div class="pages" data-pages="{table.name}">{_more(len(table.rows))}</div>'
    )


def _more(number: int) -> str:
    return f"The first {_FIRST} of {number:,}; a script shows the others." * (number > _FIRST)


def _head(row: Row, column: Column) -> str:
    badges = "".join(f'<span class="kind">{badge}</span>' for badge in row.get("badges", ()))
    about = ""
    if "about" in row:
        text = f"{row['tokens']:,} tokens, {row['about']}"
        text += f", on {row['place']}" if row.get("place") else ""
        about = f'<small class="narrow">{escape(text)}</small>'
    return f'<th scope="row" class="layer">{escape(row[column.key])}{badges}{about}</th>'


def _cell(column: Column, value: Any, graphs: Sequence[str]) -> str:
    if value is None:
        return f"<td{_classes(column)}>–</td>"
    if column.kind == "graph":
        name = escape(graphs[value]).replace("/", "/<wbr>").replace("+", "+<wbr>")
        return f"<td{_classes(column)}><code>{name}</code></td>"
    return f"<td{_classes(column)}>{escape(_TEXTS[column.kind](value))}</td>"


def _classes(column: Column) -> str:
    number = "number" * (column.kind not in ("text", "graph"))
    classes = " ".join(filter(None, ("wide" * column.wide, number)))
    return f' class="{classes}"' if classes else ""


# ---- the other sections


def _families() -> str:
    return (
        '<p class="note">Which graph runs at how many tokens, where several counts were measured. '
        "A line is the speed-up of a graph that runs somewhere, thick where it does; rings are "
        "measured token counts, between which times are interpolated.</p>"
        '<noscript><p>These plots are drawn by a script.</p></noscript><div class="cards" '
        'id="families"></div><div class="pages" data-pages="families"></div>'
    )


def _changes(contents: Contents, table: str) -> str:
    found = contents.changes
    assert found is not None
    return (
        f"<p>Since <code>{escape(contents.against)}</code>: {len(found.only_b):,} new, "
        f"{len(found.only_a):,} gone, {len(found.different):,} different, {found.equal:,} equal."
        f"</p>{table}"
    )
