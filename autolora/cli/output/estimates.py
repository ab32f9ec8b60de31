"""``autolora tune --effort estimate``: what would run unmeasured, by counting alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from rich.text import Text

from autolora.capture.capture import Capture
from autolora.cli.output.console import clean, print_json, print_line, print_lines, print_paragraph
from autolora.cli.output.figures import align, count, percent, size
from autolora.cli.output.tables import gradient_title, layer_title, section_title
from autolora.tuning.estimate import Estimate

_HEADS = ("layer", "tokens", "grads", "layers", "FLOPs over PEFT's", "keeps", "PEFT keeps")


def show(estimates: Sequence[Estimate], found: Capture, as_json: bool) -> None:
    """Prints estimates, said to be no more than that.

    Args:
        estimates: of the problems of a model.
        found: the layers that pose them.
        as_json: print one JSON document instead.
    """
    uses = found.uses
    if as_json:
        described = [
            {**asdict(each), "problem": each.problem.to_json(), "layers": uses[each.problem]}
            for each in estimates
        ]
        print_json({"effort": "estimate", "estimates": described, "notes": found.notes})
        return
    print_line("Estimates: nothing was timed, and nothing is written to the cache.", "yellow")
    ordered = sorted(estimates, key=lambda each: section_title(each.problem))  # a stable sort
    rows = [_HEADS, *(_cells(each, uses[each.problem]) for each in ordered)]
    heads, *lines = align(rows, "lrlrrrr")
    print_lines([Text(f"  {heads}", "dim")])
    body = zip(ordered, lines, strict=True)
    for title, section in groupby(body, key=lambda pair: section_title(pair[0].problem)):
        print_line(title, "bold")
        for each, line in section:
            print_lines([Text(f"  {line}"), Text(f"    {clean(each.graph)}", "dim")])
    print_line()
    print_paragraph(
        f"These graphs run for {count(len(estimates), 'problem')} that are in no cache. FLOPs say "
        "little about time: run the command without --effort estimate to measure it."
    )


def _cells(each: Estimate, layers: int) -> tuple[str, ...]:
    problem = each.problem
    return (
        layer_title(problem),
        str(problem.tokens),
        gradient_title(problem),
        str(layers),
        percent(each.flops / each.reference_flops),
        size(each.saved_bytes),
        size(each.reference_saved_bytes),
    )
