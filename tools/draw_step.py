"""Draws training steps as bars: the model itself, and what its adapters add.

    python tools/draw_step.py [docs/step.json] [docs/step.svg]

The input has a ``title``, a ``source`` and ``steps`` with the ``regime``, the ``speedup`` over PEFT
and the share of the LoRA ``overhead_removed``, as ``tools/bench_model.py --json`` writes them.
Colours are chosen for light and for dark pages.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
# As much contrast with white as with the darkest pages.
TEXT, BASE, PEFT, OURS = "#7a7a7a", "#6b87a8", "#c2703d", "#2f9e6e"
LEFT, WIDTH, BAR, GAP = 90, 560, 22, 6  # pixels; a step of PEFT is as long as WIDTH


def parts(step):
    """The model, its adapters with PEFT and with autolora, as shares of PEFT's step."""
    ours = 1 / step["speedup"]
    base = 1 - (1 - ours) / step["overhead_removed"]
    return base, 1 - base, ours - base


def text(x, y, words, *, size=13, anchor="start", weight="normal"):
    """A line of text."""
    style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def bar(y, name, base, adapters, colour):
    """The model and its adapters in one row, with a label on each side."""
    widths = base * WIDTH, adapters * WIDTH
    middle = y + 16
    return [
        text(LEFT - 8, middle, name, anchor="end"),
        f'<rect x="{LEFT}" y="{y}" width="{widths[0]:.1f}" height="{BAR}" fill="{BASE}"/>',
        f'<rect x="{LEFT + widths[0]:.1f}" y="{y}" width="{widths[1]:.1f}" height="{BAR}" '
        f'fill="{colour}"/>',
        text(LEFT + sum(widths) + 8, middle, f"{base + adapters:.0%}"),
    ]


def drawing(figures):
    """The SVG of all steps."""
    lines, told, y = [], [], 84
    for step in figures["steps"]:
        base, theirs, ours = parts(step)
        lines.append(text(LEFT, y, step["regime"], weight="bold"))
        lines += bar(y + 8, "PEFT", base, theirs, PEFT)
        lines += bar(y + 8 + BAR + GAP, "autolora", base, ours, OURS)
        told.append(
            f"{step['regime']}: {step['speedup']:.2f}x as fast, "
            f"{step['overhead_removed']:.0%} of what the adapters cost is gone"
        )
        y += 2 * BAR + GAP + 40
    x = LEFT
    for colour, words in ((BASE, "the model"), (PEFT, "LoRA, PEFT"), (OURS, "LoRA, autolora")):
        lines.append(f'<rect x="{x}" y="42" width="14" height="14" fill="{colour}"/>')
        lines.append(text(x + 20, 54, words))
        x += 150
    lines.append(text(LEFT, y - 8, figures["source"], size=11))
    title, told = escape(figures["title"]), escape("; ".join(told))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {y}" '
            f'role="img" aria-labelledby="title told" font-family="sans-serif" fill="{TEXT}">',
            f'<title id="title">{title}</title>',
            f'<desc id="told">{told}</desc>',
            text(LEFT, 24, figures["title"], size=16, weight="bold"),
            *lines,
            "</svg>\n",
        ]
    )


def main():
    """Draws the steps of a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="?", type=Path, default=DOCS / "step.json")
    parser.add_argument("svg", nargs="?", type=Path, default=DOCS / "step.svg")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text(encoding="utf-8"))
    options.svg.write_text(drawing(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
