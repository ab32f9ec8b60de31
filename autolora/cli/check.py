"""``autolora check``: times winners of the cache again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from autolora.cache.files.store import TimingCache
from autolora.cache.records.record import Record
from autolora.cli import DRIFTED, FAILED, INTERRUPTED
from autolora.cli.cache.files import open_caches
from autolora.cli.output.console import (
    clean,
    print_error,
    print_json,
    print_line,
    print_lines,
    print_paragraph,
)
from autolora.cli.output.progress import progress
from autolora.cli.output.tables import environment_title, environments_json, record_json
from autolora.cli.targets import device_of
from autolora.environment import Environment
from autolora.problem import BaseProblem
from autolora.tuning.check import (
    TOLERANCE,
    Check,
    CheckResult,
    Outcome,
    check_records,
    fix_records,
)
from autolora.units import count

_WITHIN = f"{100 * TOLERANCE:.0f} %"


def run(options: Namespace) -> int:
    """Times a sample of the cache's winners again, and prints those that have drifted."""
    device = device_of(options.device)
    layers = open_caches(options.cache)
    records = _answering(layers)
    if options.fix and records:
        layers[0].save()  # raises before anything is measured if the file is not writable
    with progress() as on_progress:
        result = check_records(
            records,
            device=device,
            most=options.sample,
            budget=options.budget,
            seed=options.seed,
            on_progress=on_progress,
        )
    fixed: Outcome[Record] | None = None
    if options.fix and not result.interrupted:
        with progress() as on_progress:
            fixed = fix_records(result.drifted, layers[0], device=device, on_progress=on_progress)
    paths = [layer.path for layer in layers if layer.path is not None]
    if options.json:
        print_json(_json(result, fixed, paths))
    else:
        _print(result, fixed, paths, Environment.of(device))
    for record, reason in result.failed:
        print_error(f"could not time {record.problem}: {reason}")
    for record, reason in fixed.failed if fixed else []:
        print_error(f"could not measure {record.problem} anew: {reason}")
    if result.interrupted or (fixed and fixed.interrupted):
        return INTERRUPTED
    if result.drifted:
        return DRIFTED
    return FAILED if result.failed else 0


def _answering(layers: Sequence[TimingCache]) -> list[Record]:
    """The records that a lookup finds: of several for one problem, that of the first layer."""
    found: dict[tuple[BaseProblem, Environment], Record] = {}
    for layer in layers:
        for record in layer.records:
            found.setdefault((record.problem, record.environment), record)
    return list(found.values())


def _json(
    result: CheckResult, fixed: Outcome[Record] | None, paths: Sequence[Path]
) -> dict[str, Any]:
    return {
        "files": list(map(str, paths)),
        "environments": environments_json(check.record.environment for check in result.done),
        "tolerance": TOLERANCE,
        "checked": [
            {
                "record": record_json(check.record),
                "wins_now": check.winner,
                "drift": check.drift,
                "noise": check.noise,
                "drifted": check.drifted,
            }
            for check in result.done
        ],
        **_open_json(result),
        "undrawn": result.undrawn,
        "elsewhere": result.elsewhere,
        "fixed": fixed
        and {
            "file": str(paths[0]),
            "records": list(map(record_json, fixed.done)),
            **_open_json(fixed),
        },
    }


def _open_json(outcome: Outcome[Any]) -> dict[str, Any]:
    return {
        "unfinished": [record.problem.to_json() for record in outcome.left],
        "failed": [{"problem": r.problem.to_json(), "reason": why} for r, why in outcome.failed],
        "interrupted": outcome.interrupted,
    }


def _print(
    result: CheckResult,
    fixed: Outcome[Record] | None,
    paths: Sequence[Path],
    environment: Environment,
) -> None:
    if not (result.done or result.failed or result.left):
        where = str(paths[0]) if len(paths) == 1 else "the search path"
        others = f", but {count(result.elsewhere, 'record')} of others" if result.elsewhere else ""
        print_paragraph(
            f"Nothing to check: {where} has no records of this machine and its libraries{others}."
        )
        return
    print_lines(environment_title(environment))
    print_line()
    new = {record.problem: record for record in fixed.done} if fixed else {}
    for check in sorted(result.done, key=_severity, reverse=True):
        if check.winner != check.record.winner:
            print_lines([*_drift_lines(check, new.get(check.record.problem)), Text()])
    print_paragraph(_summary(result))
    if fixed is not None and result.drifted:
        print_paragraph(_fix_summary(fixed, paths[0]))
    elif result.drifted:
        print_paragraph("The same command with --fix tunes these anew.")


def _severity(check: Check) -> float:
    return float("inf") if check.winner is None else check.drift


def _drift_lines(check: Check, new: Record | None) -> list[Text]:
    """A winner that no longer wins, the graph that beats it, and the new winner."""
    problem = check.record.problem
    style = "yellow" if check.drifted else "dim"
    shown = [Text(problem.title, "bold"), Text(f"  {clean(check.record.winner)}")]
    if check.winner is None:
        shown.append(Text("  is no valid graph of this version of autolora", style))
    else:
        drift, noise = (f"{100 * share:.1f} %" for share in (check.drift, check.noise))
        shown.append(Text(f"  is now {drift} ± {noise} slower than", style))
        shown.append(Text(f"  {clean(check.winner)}"))
    if new is not None:
        shown += [Text("  Tuned anew, the winner is", "green"), Text(f"  {clean(new.winner)}")]
    return shown


def _summary(result: CheckResult) -> str:
    checked, drifted = len(result.done) + len(result.failed), len(result.drifted)
    winning = len(result.done) - drifted
    parts = [
        f"{winning} of {count(checked, 'winner')} still win{'s' * (winning == 1)} "
        f"(within {_WITHIN} and the noise)"
    ]
    unusable = sum(check.winner is None for check in result.done)
    for number, words in (
        (drifted - unusable, f"drifted by more than {_WITHIN}"),
        (unusable, "no longer valid"),
        (len(result.failed), "could not be timed"),
        (len(result.left), "still to check"),
    ):
        parts += [f"{number} {words}"] if number else []
    untimed = [f"{result.undrawn} more were not drawn (--sample)"] if result.undrawn else []
    if result.elsewhere:
        verb = "was" if result.elsewhere == 1 else "were"
        untimed.append(
            f"{count(result.elsewhere, 'record')} of other machines or libraries {verb} not timed"
        )
    why = "The budget is spent: " if result.left else ""
    why = "Interrupted: " if result.interrupted else why
    return why + "; ".join([", ".join(parts), *untimed]) + "."


def _fix_summary(fixed: Outcome[Record], path: Path) -> str:
    parts = [f"{count(len(fixed.done), 'record')} tuned anew and replaced in {path}"]
    parts += [f"{len(fixed.failed)} could not be"] if fixed.failed else []
    parts += [f"{len(fixed.left)} still to do"] if fixed.left else []
    return ("Interrupted: " if fixed.interrupted else "") + ", ".join(parts) + "."
