"""``autolora explain TARGET``."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autolora.cache.lookup.lookup import Lookup
from autolora.capture.capture import Capture
from autolora.cli.cache.files import open_cache
from autolora.cli.output.console import print_json, print_line, print_paragraph
from autolora.cli.output.figures import count
from autolora.cli.output.objectives import objective_from
from autolora.cli.output.tables import call_title, group_names, name_shape
from autolora.cli.targets import device_of, read_target
from autolora.environment import Environment
from autolora.nn.dispatch import ask
from autolora.nn.strict import is_strict, miss_detail
from autolora.nn.unmeasured import untuned_graph
from autolora.objective import TIME, Objective
from autolora.problem import Problem

_MISS = "not tuned"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the cache says about a problem.

    Args:
        graph: that would run.
        reason: ``exact``, ``interpolated``, ``nearest``, ``other-environment`` or ``miss``.
        detail: the same in words.
    """

    graph: str
    reason: str
    detail: str


def run(options: Namespace) -> int:
    """Prints for each layer of TARGET which graph it would run in training, and why."""
    device = device_of(options.device)
    paths = None if options.cache is None else [Path(options.cache)]
    if paths:
        open_cache(paths[0])  # a file that was named must be there
    found = read_target(options, device)
    asked = objective_from(options)
    decisions = decide(found.problems, device, Lookup(paths), asked)
    if options.json:
        print_json(_json(found, decisions, asked))
    else:
        _print(found, decisions, options.argv, asked)
    return 0


def decide(
    problems: Sequence[Problem], device: torch.device, lookup: Lookup, asked: Objective
) -> dict[Problem, Decision]:
    """The graph that a layer would run for each problem, as :mod:`autolora.nn.dispatch` decides."""
    environment, strict = Environment.of(device), is_strict()
    decisions = {}
    for problem in problems:
        graph, answer = ask(lookup, problem, environment, asked, elsewhere=not strict)
        detail = answer.detail
        if graph is None:
            graph, how = untuned_graph(problem, asked)
            detail = miss_detail(problem, how, strict)
        decisions[problem] = Decision(graph.name, answer.reason, detail)
    return decisions


def _json(
    found: Capture, decisions: Mapping[Problem, Decision], asked: Objective
) -> dict[str, Any]:
    return {
        "objective": asked.kind,
        "max_saved_bytes": asked.max_saved_bytes,
        "layers": [
            {"name": name, "problem": problem.to_json(), **asdict(decisions[problem])}
            for name, problem in found.layers
        ],
        "left": [{"name": name, "reason": reason} for name, reason in found.left],
        "counts": _counts(found, decisions),
        "notes": found.notes,
    }


def _print(
    found: Capture,
    decisions: Mapping[Problem, Decision],
    argv: Sequence[str],
    asked: Objective,
) -> None:
    groups: dict[tuple[str, Problem], list[str]] = {}
    for name, problem in found.layers:
        groups.setdefault((name_shape(name), problem), []).append(name)
    for (_, problem), names in groups.items():
        decision = decisions[problem]
        missed = decision.reason == "miss"
        why = ", ".join(filter(None, (_MISS if missed else decision.reason, decision.detail)))
        print_line(_title(names))
        print_line(f"  {call_title(problem)}: {why}", "yellow" if missed else "green")
        print_line(f"    {decision.graph}", "dim")
    _print_left(found.left)
    print_line()
    reasons = _counts(found, decisions)
    words = [f"{number} {_MISS if r == 'miss' else r}" for r, number in reasons.items()]
    purpose = "" if asked == TIME else f" for {asked}"
    print_paragraph(f"{count(len(found.layers), 'layer')}{purpose}: {', '.join(words)}.")
    if untuned := [reason for reason in ("miss", "other-environment") if reason in reasons]:
        words = [word for word in argv[1:] if word != "--json"]
        what = "them" if "miss" in untuned else "them for this environment"
        print_line(f"To tune {what}: autolora tune {shlex.join(words)}")


def _counts(found: Capture, decisions: Mapping[Problem, Decision]) -> dict[str, int]:
    """How many layers there are for each reason, those that are most first."""
    return dict(Counter(decisions[problem].reason for _, problem in found.layers).most_common())


def _print_left(left: Sequence[tuple[str, str]]) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in left:
        groups.setdefault((name_shape(name), reason), []).append(name)
    for (_, reason), names in groups.items():
        print_line(_title(names))
        print_line(f"  its own path: {reason}", "yellow")


def _title(names: Sequence[str]) -> str:
    return group_names(names) + (f" ×{len(names)}" if len(names) > 1 else "")
