"""What layers would run under each objective: the graphs, their speed, and the bytes they keep."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from autolora.cache.lookup.choice import choose
from autolora.cache.records.record import Candidate, Record
from autolora.cli.output.console import clean
from autolora.cli.output.figures import align, count, percent, ratio, size
from autolora.cli.output.steps import Chosen, Step, reference_of
from autolora.cli.output.tables import call_title
from autolora.nn.defaults import LIMIT_VARIABLE, VARIABLE, default_objective
from autolora.objective import KINDS, Objective

_HEAD = ("What each objective would run", "over PEFT", "keeps", "of PEFT's")
_SIDES = "lrrr"


def objective_from(options: Namespace) -> Objective:
    """The objective of a command's options; what they leave open is up to the environment."""
    default = default_objective()
    return Objective(
        options.objective or default.kind,
        options.max_saved_bytes or default.max_saved_bytes,
    )


def taken(record: Record, objective: Objective) -> Candidate:
    """The candidate of a record that a layer would run; all names are taken to be valid."""
    best = choose(record, objective)
    found = None if best is None else record.candidate(best.name)
    return reference_of(record) if found is None else found


def compared(records: Sequence[Record], asked: Objective) -> list[Objective]:
    """The objectives that all of these records were measured for, and the one asked for."""
    kinds = [kind for kind in reversed(KINDS) if all(kind in r.objectives for r in records)]
    return list(dict.fromkeys([*map(Objective, kinds), asked]))


def objective_table(
    records: Sequence[Record], steps: Sequence[Step], objectives: Sequence[Objective]
) -> list[Text]:
    """For each record the graph of each objective; in the end the same for each step.

    The figures are the speed over the reference graph, the bytes kept from forward to backward, and
    their share of what the reference graph keeps.
    """
    rows: list[Sequence[str]] = [_HEAD]
    below: dict[int, str] = {}  # what stands under a row
    titles: dict[int, str] = {}  # what stands over it
    for record in records:
        titles[len(rows)] = call_title(record.problem)
        seen: dict[str, Objective] = {}
        for objective in objectives:
            mine, theirs = taken(record, objective), reference_of(record)
            first = seen.setdefault(mine.graph, objective)
            below[len(rows)] = mine.graph if first is objective else f"as for {_words(first)}"
            if not objective.admits(mine.saved_bytes):
                below[len(rows)] += ": none keeps less"
            speed = (theirs.median_ns or 0) / (mine.median_ns or 1)
            rows.append(_row(objective, speed, mine.saved_bytes, theirs.saved_bytes))
    for step in steps:
        titles[len(rows)] = f"{step.when}, {count(len(step.layers), 'layer')} together"
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


def kept_note(steps: Sequence[Step]) -> str:
    """How an input that layers share is counted in :meth:`Step.saved_bytes`."""
    if all(layer in step.inputs for step in steps for layer in step.layers):
        return "An X that several layers get is counted once for the step."
    return (
        "Which layers get the same X was not seen, so that each is counted with an X of its own; "
        "q, k and v of a block keep theirs only once."
    )


def runs_json(record: Record, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """What a record answers under each objective, as plain data."""
    found = []
    for objective in objectives:
        mine, theirs = taken(record, objective), reference_of(record)
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
    """What the layers of each step take and keep together under each objective."""
    return [
        {
            "tokens": step.tokens,
            "layers": len(step.layers),
            **_objective_json(objective),
            "reference_ns": step.nanoseconds(reference_of),
            "median_ns": step.nanoseconds(_chosen(objective)),
            "reference_saved_bytes": step.saved_bytes(reference_of),
            "saved_bytes": step.saved_bytes(_chosen(objective)),
        }
        for step in steps
        for objective in objectives
    ]


def usage(objective: Objective) -> tuple[str, str]:
    """How layers are told an objective: environment variables, and arguments of accelerate."""
    variables, arguments = [], []
    if objective.kind != "time":
        variables.append(f"{VARIABLE}={objective.kind}")
        arguments.append(f'objective="{objective.kind}"')
    if objective.max_saved_bytes is not None:
        variables.append(f"{LIMIT_VARIABLE}={objective.max_saved_bytes}")
        arguments.append(f"max_saved_bytes={objective.max_saved_bytes}")
    return " ".join(variables), ", ".join(arguments)


def _chosen(objective: Objective) -> Chosen:
    return lambda record: taken(record, objective)


def _row(objective: Objective, speed: float, kept: int, of: int) -> Sequence[str]:
    share = percent(kept / of) if of else "-"
    return f"    {_words(objective)}", ratio(speed), size(kept), share


def _words(objective: Objective) -> str:
    limit = objective.max_saved_bytes
    return objective.kind + ("" if limit is None else f", at most {size(limit)} a layer")


def _objective_json(objective: Objective) -> dict[str, Any]:
    return {"objective": objective.kind, "max_saved_bytes": objective.max_saved_bytes}
