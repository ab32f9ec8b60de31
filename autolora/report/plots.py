"""The bars and the token counts of a report as pictures, by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from autolora.errors import AutoloraError
from autolora.report.contents import Contents
from autolora.report.families import Family
from autolora.report.summary import Sum, sums
from autolora.units import duration, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASE, _LORA = "#0072b2", "#e69f00"  # of Okabe and Ito's colours, as the curves
_CURVES = ("#d55e00", "#0072b2", "#009e73", "#b0508a", "#8a6d00", "#56b4e9")
_STYLES = ("solid", "dashed", "dashdot", "dotted")
_MOST = 12  # families that are drawn, of those with most ranges
_WIDTH = 90  # characters of a line in a legend


def require_matplotlib() -> None:
    """Raises ``AutoloraError`` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401  # nothing of it is needed yet
    except ImportError as error:
        raise AutoloraError(
            "--plots needs matplotlib, which is not installed: pip install 'autolora[report]'"
        ) from error


def write_plots(contents: Contents, folder: Path) -> Iterator[Path]:
    """Writes ``bars``, and ``tokens-01`` and so on for families, each as SVG and PNG.

    Raises:
        AutoloraError: the folder cannot be written.
    """
    figures = {"bars": _bars(sums(contents.records))}
    for number, family in enumerate(contents.families[:_MOST], start=1):
        figures[f"tokens-{number:02}"] = _tokens(family, contents)
    from matplotlib import rc_context

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                with rc_context({"svg.fonttype": "none"}):  # text stays text
                    figure.savefig(path, dpi=160, bbox_inches="tight")
                yield path
    except OSError as error:
        raise AutoloraError(f"cannot write the plots to {folder}: {error.strerror}") from error


def _bars(found: Sequence[Sum]) -> Figure:
    """Of each sum three bars: without adapters, along PEFT's graphs, and tuned."""
    from matplotlib.figure import Figure

    figure = Figure((8, 0.9 + 1.5 * max(len(found), 1)), layout="constrained")
    for place, each in enumerate(found):
        axes = figure.add_subplot(len(found), 1, place + 1)
        times = [each.median_ns, each.reference_ns, each.floor_ns]
        base = [min(time, each.floor_ns) for time in times]
        over = [time - part for time, part in zip(times, base, strict=True)]
        names = ["tuned", "PEFT", "without adapters"]
        axes.barh(names, [ns / 1e6 for ns in base], color=_BASE, label="base")
        axes.barh(
            names,
            [ns / 1e6 for ns in over],
            left=[ns / 1e6 for ns in base],
            color=_LORA,
            hatch="///",
            edgecolor="#5c4000",
            linewidth=0,
            label="LoRA overhead",
        )
        for row, time in enumerate(times):
            axes.annotate(
                f" {duration(time)}", (time / 1e6, row), verticalalignment="center", fontsize=9
            )
        axes.margins(x=0.12)
        axes.set_title(
            f"{each.environment.machine_text}, {each.mode}, {each.number:,} problems: "
            f"{ratio(each.speedup)} as fast",
            fontsize=10,
            loc="left",
            parse_math=False,
        )
        axes.spines[["top", "right"]].set_visible(False)
    if found:
        axes.set_xlabel("milliseconds, forward and backward, each problem once")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _tokens(family: Family, contents: Contents) -> Figure:
    """The speed-up of the graph that runs at each token count."""
    from matplotlib.figure import Figure

    figure = Figure((7, 3.6))
    axes = figure.add_subplot()
    records = {
        record.problem.tokens: record
        for record in contents.records
        if record.environment == family.environment and record.problem.at(1) == family.problem.at(1)
    }
    used: dict[str, int] = {}
    for each in family.ranges:
        if each.graph is None or each.first_speedup is None or each.last_speedup is None:
            continue
        points = {each.first_tokens: each.first_speedup, each.last_tokens: each.last_speedup}
        for tokens in each.measured:
            candidate = records[tokens].candidate(each.graph)
            if candidate is not None and candidate.median_ns is not None:
                points[tokens] = records[tokens].reference_ns / candidate.median_ns
        label = None if each.graph in used else each.graph
        number = used.setdefault(each.graph, len(used))
        axes.plot(
            *zip(*sorted(points.items()), strict=True),
            color=_CURVES[number % len(_CURVES)],
            linestyle=_STYLES[number % len(_STYLES)],
            linewidth=2.5,
            label=label and _broken(label),
        )
        shown = [tokens for tokens in each.measured if tokens in points]
        axes.plot(shown, [points[n] for n in shown], "o", color=_CURVES[number % len(_CURVES)])
    axes.set_xscale("log", base=2)
    axes.set_xticks(family.measured, [f"{tokens:,}" for tokens in family.measured])
    axes.minorticks_off()
    axes.axhline(1, color="#888888", linestyle="dotted", linewidth=1)
    title = f"{family.problem.family_text}, {family.environment.machine_text}"
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel("tokens")
    axes.set_ylabel("speed-up over PEFT")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula, whatever is in it
    return figure


def _broken(name: str) -> str:
    """A graph's name on several lines, which end where its parts do."""
    return fill(name.replace("/", "/ ").replace("+", "+ "), _WIDTH).replace(" ", "")
