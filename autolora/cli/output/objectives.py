"""The graphs that layers run under each objective, with their speed and saved bytes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from autolora.cache.lookup.choice import choose
from autolora.cache.records.candidate import Candidate
from autolora.cache.records.record import Record
from autolora.cli.output.console import clean
from autolora.cli.output.figures import align
from autolora.cli.output.steps import Chosen, Step, reference_of
from autolora.nn.defaults import LIMIT_VARIABLE, VARIABLE, default_objective
from autolora.objective import KINDS, Objective
from autolora.units import count, percent, ratio, size

_HEAD = ("What each objective would run", "over PEFT", "keeps", "of PEFT's")
_SIDES = "lrrr"


def objective_from(options: Namespace) -> Objective:
    """The objective of a command's options, by default that of the environment variables."""
    default = default_objective()
    return Objective(
        options.objective or default.kind,
        options.max_saved_bytes or default.max_saved_bytes,
    )


def candidate_for(record: Record, objective: Objective) -> Candidate:
    """The candidate of a record that a layer would run; all graphs are assumed to be valid."""
    best = choose(record, objective)
    found = None if best is None else record.candidate(best.name)
    return reference_of(record) if found is None else found


def objectives_measured(records: Sequence[Record], asked: Objective) -> list[Objective]:
    """The objectives that all records were measured for, and the requested one."""
    kinds = [kind for kind in reversed(KINDS) if all(kind in r.objectives for r in records)]
    return list(dict.fromkeys([*map(Objective, kinds), asked]))


def objective_table(
    records: Sequence[Record], steps: Sequence[Step], objectives: Sequence[Objective]
) -> list[Text]:
    """The graph of each objective for each record, then the sums for each step.

    The figures are the speed-up over the reference graph, the bytes saved for the backward pass,
    and their share of what the reference graph saves.
    """
    rows: list[Sequence[str]] = [_HEAD]
    below: dict[int, str] = {}  # the line below a row, by its number
    titles: dict[int, str] = {}  # the line above it
    for record in records:
        titles[len(rows)] = record.problem.call_text
        seen: dict[str, Objective] = {}
        for objective in objectives:
            mine, theirs = candidate_for(record, objective), reference_of(record)
            first = seen.setdefault(mine.graph, objective)
            below[len(rows)] = mine.graph if first is objective else f"as for {_name(first)}"
            if not objective.admits(mine.saved_bytes):
                below[len(rows)] += ": none keeps less"
            speed = (theirs.median_ns or 0) / (mine.median_ns or 1)
            rows.append(_row(objective, speed, mine.saved_bytes, theirs.saved_bytes))
    for step in steps:
        titles[len(rows)] = f"{step.when}, {count(step.number, 'layer')} together"
        time, kept = step.nanoseconds(reference_of), step.saved_bytes(reference_of)
        for objective in objectives:
            chosen = _chosen(objective)
            speed = time / step.nanoseconds(chosen)
            rows.append(_row(objective, speed, step.saved_bytes(chosen), kept))
    shown = []
    for number, line in enumerate(align(rows, _SIDES)):
        shown += [Text(f"  {titles[number]}", "bold")] if number in titles else []
        shown.append(Text(line, "" if number else "bold"))
        shown += [Text(f"      {clean(below[number])}", "dim")] if number in below else []
    return shown


def shared_input_note(steps: Sequence[Step]) -> str:
    """How :meth:`Step.saved_bytes` counts an input that several layers share."""
    if all(layer in step.inputs for step in steps for layer in step.layers):
        return "An X that several layers get is counted once for the step."
    return (
        "Which layers get the same X was not seen, so that each is counted with an X of its own; "
        "q, k and v of a block keep theirs only once."
    )


def runs_json(record: Record, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """The graph that a layer runs under each objective."""
    found = []
    for objective in objectives:
        mine, theirs = candidate_for(record, objective), reference_of(record)
        found.append(
            {
                **_objective_json(objective),
                "graph": mine.graph,
                "median_ns": mine.median_ns,
                "speedup": (theirs.median_ns or 0) / (mine.median_ns or 1),
                "saved_bytes": mine.saved_bytes,
            }
        )
    return found


def steps_json(steps: Sequence[Step], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """The total time and saved bytes of each step under each objective."""
    return [
        {
            "tokens": step.tokens,
            "layers": step.number,
            **_objective_json(objective),
            "reference_ns": step.nanoseconds(reference_of),
            "median_ns": step.nanoseconds(_chosen(objective)),
            "reference_saved_bytes": step.saved_bytes(reference_of),
            "saved_bytes": step.saved_bytes(_chosen(objective)),
        }
        for step in steps
        for objective in objectives
    ]


def objective_settings(objective: Objective) -> tuple[str, str]:
    """The environment variables, and the arguments of ``accelerate``, that set an objective."""
    variables, arguments = [], []
    if objective.kind != "time":
        variables.append(f"{VARIABLE}={objective.kind}")
        arguments.append(f'objective="{objective.kind}"')
    if objective.max_saved_bytes is not None:
        variables.append(f"{LIMIT_VARIABLE}={objective.max_saved_bytes}")
        arguments.append(f"max_saved_bytes={objective.max_saved_bytes}")
    return " ".join(variables), ", ".join(arguments)


def _chosen(objective: Objective) -> Chosen:
    return lambda record: candidate_for(record, objective)


def _row(objective: Objective, speed: float, kept: int, of: int) -> Sequence[str]:
    share = percent(kept / of) if of else "-"
    return f"    {_name(objective)}", ratio(speed), size(kept), share


def _name(objective: Objective) -> str:
    limit = objective.max_saved_bytes
    return objective.kind + ("" if limit is None else f", at most {size(limit)} a layer")


def _objective_json(objective: Objective) -> dict[str, Any]:
    return {"objective": objective.kind, "max_saved_bytes": objective.max_saved_bytes}
