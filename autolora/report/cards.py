"""Cards of a page with bars: sums of layers, and cases of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from autolora.cache.records.payback import Payback
from autolora.problem import MODES
from autolora.report.contents import Contents
from autolora.report.results import Results
from autolora.report.summary import Sum, sums
from autolora.report.tables import letter
from autolora.units import duration, percent, ratio, wait

_ONCE = (
    "A cache knows no model: each problem that the filter shows counts once, however many layers "
    "pose it. Siblings are left out, unless nothing else is shown, since their layers count one "
    "by one. "
)
_MODEL = (
    "With <code>--results</code> and what <code>autolora explain MODEL --json</code> prints, a "
    "step of that model is shown as well."
)


def summary(contents: Contents) -> str:
    """The sums of all records, and of the layers of each model that is known."""

    def place(each: Sum) -> int:
        return contents.places.index(each.environment)

    def card(each: Sum, title: str, noun: str, attributes: str = "") -> str:
        machine = f"{letter(place(each))}: {each.environment.machine_text}"
        return _sum_card(each, machine, title, noun, attributes)

    models = [results for results in contents.results if results.layers]
    cards = [
        card(each, f"One step of the model of <code>{escape(results.name)}</code>", "layers")
        for results in models
        for each in sums(contents.records, results.layers)
    ]
    once = sorted(sums(contents.records), key=lambda s: (place(s), MODES.index(s.mode)))
    cards += [
        card(each, "Each problem once", "problems", f'data-sum="{place(each)} {each.mode}"')
        for each in once
    ]
    usage = "".join(
        f"<p><code>{escape(results.name)}</code>: {escape(results.usage)}</p>"
        for results in contents.results
        if results.usage
    )
    return (
        f'{usage}<p class="key"><span><i class="base"></i>base: the layers without adapters (the '
        'floor)</span><span><i class="lora"></i>LoRA overhead (hatched)</span></p>'
        f'<div class="cards">{"".join(cards) or "<p>No floor was measured.</p>"}</div>'
        f'<p class="note">{_ONCE}{"" if models else _MODEL}</p>'
    )


def benchmark(results: Results) -> str:
    """The cases of a benchmark as bars, and all of its figures as a table."""
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in results.facts.items()
    )
    cards = "".join(
        _case_card(row, times)
        for row, times in zip(results.rows, results.times, strict=True)
        if times
    )
    keys = list(dict.fromkeys(key for row in results.rows for key in row))
    heads = "".join(f'<th scope="col">{escape(key)}</th>' for key in keys)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_plain(row.get(key, '–')))}</td>" for key in keys) + "</tr>"
        for row in results.rows
    )
    name = escape(results.name)
    return (
        f'<h3><code>{name}</code></h3><dl class="facts">{facts}</dl>'
        f'<div class="cards">{cards}</div><details><summary>All figures</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<caption>All figures of {name}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _sum_card(each: Sum, machine: str, title: str, noun: str, attributes: str) -> str:
    """The sum of several layers; titles are HTML, the machine is text."""
    times = {"floor": each.floor_ns, "reference": each.reference_ns, "tuned": each.median_ns}
    names = {"floor": "Without adapters", "reference": "PEFT", "tuned": "Tuned"}
    bars = [
        _bar(names[name], ns, each.floor_ns, max(times.values()), name)
        for name, ns in times.items()
    ]
    return (
        f'<figure class="card" {attributes}><figcaption><h3>{escape(machine)}</h3>'
        f"<small>{title}, {each.mode}</small></figcaption>"
        f'<p class="big"><strong data-field="speedup">{ratio(each.speedup)}</strong> as fast, '
        f'<strong data-field="removed">{percent(each.overhead_removed)}</strong> of the LoRA '
        f'overhead removed</p><ul class="bars">{"".join(bars)}</ul>'
        f'<p class="note"><span data-field="number">{each.number:,}</span> {noun}'
        f'<span data-field="left">{_left(each.left_out)}</span>. Tuning them took '
        f'<span data-field="cost">{wait(each.cost_s)}</span> and has '
        f'<span data-field="steps">{_paid(each.payback)}</span>.</p></figure>'
    )


def _case_card(row: Mapping[str, Any], times: dict[str, float]) -> str:
    """One case with a bar for each of its times."""
    words = (f"{key} {value}" if type(value) is int else value for key, value in row.items())
    title = ", ".join(word for word in words if isinstance(word, str) and word)
    floor, longest = times.get("floor"), max(times.values())
    bars = [
        _bar(name, ms * 1e6, (ms if floor is None else floor) * 1e6, longest * 1e6)
        for name, ms in times.items()
    ]
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3></figcaption>'
        f'<ul class="bars">{"".join(bars)}</ul></figure>'
    )


def _left(number: int) -> str:
    return f", {number:,} more without a floor" if number else ""


def _paid(payback: Payback) -> str:
    return f"paid after {payback.steps:,} such steps" if payback.steps else "not paid"


def _bar(name: str, ns: float, floor_ns: float, longest: float, key: str = "") -> str:
    """A bar of the base and what exceeds it; the script finds it by its key."""
    base = min(ns, floor_ns)
    over = f", LoRA {duration(ns - base)}" if ns > base else ""
    return (
        f'<li data-bar="{key}"><span>{escape(name)}</span><span><span class="value">{duration(ns)}'
        f'</span><span class="over">{over}</span></span><span class="track">'
        f'<span class="base" style="width:{100 * base / longest:.4g}%"></span>'
        f'<span class="lora" style="width:{100 * (ns - base) / longest:.4g}%"></span></span></li>'
    )


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
