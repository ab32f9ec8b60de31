"""The output of ``autolora tune --effort estimate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from autolora.capture.found import Capture
from autolora.cli.output.console import clean, print_json, print_line, print_lines, print_paragraph
from autolora.cli.output.figures import align
from autolora.cli.output.tables import sections
from autolora.tuning.result import Estimate
from autolora.units import count, percent, size

_HEADS = ("layer", "tokens", "grads", "layers", "FLOPs over PEFT's", "keeps", "PEFT keeps")


def print_estimates(estimates: Sequence[Estimate], found: Capture, as_json: bool) -> None:
    """Prints the graphs that run unmeasured, with their FLOPs and saved bytes.

    Args:
        estimates: of the problems of a model.
        found: the layers of the model.
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
    rows = [_HEADS, *(_cells(each, uses[each.problem]) for each in estimates)]
    heads, *lines = align(rows, "lrlrrrr")
    print_lines([Text(f"  {heads}", "dim")])
    for title, section in sections(zip(estimates, lines, strict=True)):
        print_lines([title])
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
        problem.shape_text,
        str(problem.tokens),
        problem.gradient_text,
        str(layers),
        percent(each.flops / each.reference_flops),
        size(each.saved_bytes),
        size(each.reference_saved_bytes),
    )
