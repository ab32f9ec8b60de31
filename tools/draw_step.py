"""Draws training steps as bars: the model itself, and what its adapters add.

    python tools/draw_step.py [RESULTS] [docs/step.svg]

The input is what ``tools/bench_model.py --json`` writes: of one machine and of all models, of which
SmolLM2 is drawn. Colours are chosen for light and for dark pages.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

from common.results import RESULTS, ROOT

MODELS = RESULTS / "amd-epyc-25-17-1-2-threads/models.json"  # of the machine of README's figures
STEP = ROOT / "docs/step.svg"
# As much contrast with white as with the darkest pages.
TEXT, BASE, PEFT, OURS = "#7a7a7a", "#6b87a8", "#c2703d", "#2f9e6e"
LEFT, WIDTH, BAR, GAP = 90, 560, 22, 6  # pixels; a step of PEFT is as long as WIDTH


def parts(row):
    """The model, its adapters with PEFT and with autolora, as shares of PEFT's step.

    Where autolora is faster than the model without adapters, no adapters are left.
    """
    theirs = 1 - row["ms"]["floor"] / row["ms"]["peft"]
    step = 1 - row["overhead_removed"] * theirs
    base = min(1 - theirs, step)
    return base, theirs, step - base


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


def drawing(results):
    """The SVG of the steps of SmolLM2."""
    rows = [row for row in results["rows"] if row["model"] == "smollm2"]
    title = f"One training step of SmolLM2-135M with LoRA, rank {rows[0]['rank']}"
    lines, told, y = [], [], 84
    for row in rows:
        base, theirs, ours = parts(row)
        lines.append(text(LEFT, y, row["regime"], weight="bold"))
        lines += bar(y + 8, "PEFT", 1 - theirs, theirs, PEFT)
        lines += bar(y + 8 + BAR + GAP, "autolora", base, ours, OURS)
        told.append(
            f"{row['regime']}: {row['speedup']:.2f}x as fast, "
            f"{row['overhead_removed']:.0%} of what the adapters cost is gone"
        )
        y += 2 * BAR + GAP + 40
    x = LEFT
    for colour, words in ((BASE, "the model"), (PEFT, "LoRA, PEFT"), (OURS, "LoRA, autolora")):
        lines.append(f'<rect x="{x}" y="42" width="14" height="14" fill="{colour}"/>')
        lines.append(text(x + 20, 54, words))
        x += 150
    lines.append(text(LEFT, y - 8, source(results), size=11))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {y}" '
            f'role="img" aria-labelledby="title told" font-family="sans-serif" fill="{TEXT}">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="told">{escape("; ".join(told))}</desc>',
            text(LEFT, 24, title, size=16, weight="bold"),
            *lines,
            "</svg>\n",
        ]
    )


def source(results):
    """By what and where the steps were measured."""
    machine = results["environment"]
    return f"{results['command']}, {machine['threads']} cores of {machine['device_name']}"


def main():
    """Draws the steps of a result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=MODELS)
    parser.add_argument("svg", nargs="?", type=Path, default=STEP)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.svg.write_text(drawing(results), encoding="utf-8")


if __name__ == "__main__":
    main()
