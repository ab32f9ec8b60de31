"""``autolora explain``: the graph that each layer of a model would run."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from autolora.cache.lookup.lookup import Lookup
from autolora.capture.found import Capture
from autolora.cli.cache.files import open_cache
from autolora.cli.output.console import print_json, print_line, print_paragraph
from autolora.cli.output.objectives import objective_from
from autolora.cli.output.tables import group_names, name_shape
from autolora.cli.targets import device_of, read_target
from autolora.environment import Environment
from autolora.graphs.kinds import unmeasured_graph
from autolora.nn.choosing import ask
from autolora.nn.strict import is_strict, miss_detail
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem
from autolora.units import count

_MISS = "not tuned"
# Reasons for which tuning is advised, the first one decides, and what for.
_UNTUNED = {"miss": "", "other-mode": " compiled", "other-environment": " for this environment"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision:
    """The graph for a problem.

    Args:
        graph: its name.
        reason: ``exact``, ``interpolated``, ``nearest``, ``other-mode``, ``other-environment``
            or ``miss``.
        detail: the reason in more words.
    """

    graph: str
    reason: str
    detail: str


def run(options: Namespace) -> int:
    """Prints for each layer of TARGET which graph it would run in training, and why."""
    device = device_of(options.device)
    paths = None if options.cache is None else [Path(options.cache)]
    if paths:
        open_cache(paths[0])  # raises if it does not exist
    found = read_target(options, device)
    asked = objective_from(options)
    decisions = decide(found.problems, device, Lookup(paths), asked)
    if options.json:
        print_json(_json(found, decisions, asked))
    else:
        words = [word for word in options.argv[1:] if word != "--json"]
        words += ["--", *options.arguments] if options.arguments else []
        _print(found, decisions, words, asked)
    return 0


def decide(
    problems: Sequence[BaseProblem], device: torch.device, lookup: Lookup, asked: Objective
) -> dict[BaseProblem, Decision]:
    """The graph that a layer would run for each problem, as :mod:`autolora.nn.choosing` decides."""
    environment, strict = Environment.of(device), is_strict()
    decisions = {}
    for problem in problems:
        graph, answer = ask(lookup, problem, environment, asked, strict=strict)
        detail = answer.detail
        if graph is None:
            graph, how = unmeasured_graph(problem, asked)
            detail = miss_detail(problem, how, strict)
        decisions[problem] = Decision(graph.name, answer.reason, detail)
    return decisions


def _json(
    found: Capture, decisions: Mapping[BaseProblem, Decision], asked: Objective
) -> dict[str, Any]:
    return {
        "objective": asked.kind,
        "max_saved_bytes": asked.max_saved_bytes,
        "layers": [
            {"name": name, "problem": problem.to_json(), **asdict(decisions[problem])}
            for name, problem in found.layers
        ],
        "siblings": [
            {"names": list(names), "problem": problem.to_json(), **asdict(decisions[problem])}
            for names, problem in found.families
        ],
        "left": [{"name": name, "reason": reason} for name, reason in found.left],
        "counts": _counts(found, decisions),
        "notes": found.notes,
    }


def _print(
    found: Capture,
    decisions: Mapping[BaseProblem, Decision],
    words: Sequence[str],
    asked: Objective,
) -> None:
    for title, problem in _groups(found.layers):
        decision = decisions[problem]
        missed = decision.reason == "miss"
        why = ", ".join(filter(None, (_MISS if missed else decision.reason, decision.detail)))
        print_line(title)
        print_line(f"  {problem.call_text}: {why}", "yellow" if missed else "green")
        print_line(f"    {decision.graph}", "dim")
    together = [(", ".join(names), problem) for names, problem in found.families]
    for title, family in _groups(together):
        decision = decisions[family]
        missed = decision.reason == "miss"
        why = "one by one, not tuned together" if missed else decision.reason
        print_line(title)
        print_line(f"  {family.call_text}: {why}", "" if missed else "green")
        if not missed:
            print_line(f"    {decision.graph}", "dim")
    for title, left_reason in _groups(found.left):
        print_line(title)
        print_line(f"  its own path: {left_reason}", "yellow")
    print_line()
    reasons = _counts(found, decisions)
    counts = [f"{number} {_MISS if r == 'miss' else r}" for r, number in reasons.items()]
    purpose = "" if asked == TIME else f" for {asked}"
    print_paragraph(f"{count(len(found.layers), 'layer')}{purpose}: {', '.join(counts)}.")
    if untuned := [reason for reason in _UNTUNED if reason in reasons]:
        what = f"them{_UNTUNED[untuned[0]]}"
        print_line(f"To tune {what}: autolora tune {shlex.join(words)}")


def _counts(found: Capture, decisions: Mapping[BaseProblem, Decision]) -> dict[str, int]:
    """The number of layers for each reason, the largest first."""
    return dict(Counter(decisions[problem].reason for _, problem in found.layers).most_common())


def _groups(layers: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Groups layers that differ only in numbers of their paths, with a title for each group."""
    groups: dict[tuple[str, T], list[str]] = {}
    for name, value in layers:
        groups.setdefault((name_shape(name), value), []).append(name)
    for (_, value), names in groups.items():
        yield group_names(names) + (f" ×{len(names)}" if len(names) > 1 else ""), value
