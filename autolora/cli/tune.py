"""``autolora tune``: measures the problems of a model."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from autolora.cache.files.paths import VARIABLE, search_path
from autolora.cache.records.record import Record
from autolora.capture.found import Capture
from autolora.cli import FAILED, INTERRUPTED
from autolora.cli.output import objectives, ranks, tables
from autolora.cli.output.console import (
    print_error,
    print_json,
    print_line,
    print_lines,
    print_paragraph,
    print_status,
    screen_width,
)
from autolora.cli.output.crossovers import print_families
from autolora.cli.output.estimates import print_estimates
from autolora.cli.output.progress import progress
from autolora.cli.output.steps import steps
from autolora.cli.parser import MANY
from autolora.cli.targets import device_of, read_target
from autolora.cluster import liveness
from autolora.cluster.ranks import Cluster
from autolora.cluster.torchrun import joined
from autolora.errors import AutoloraError
from autolora.objective import TIME, Objective
from autolora.problem import BaseProblem
from autolora.timing.compiling import mode_from, require_compiler
from autolora.timing.effort import ESTIMATE
from autolora.tuning.advice import measured_advice
from autolora.tuning.result import TuneResult
from autolora.tuning.tuner import tune_problems
from autolora.units import count, wait


def run(options: Namespace) -> int:
    """Measures what the cache does not hold yet, and prints what was found."""
    with joined() as cluster:
        if cluster is None:
            return _tune(options)
        with ranks.rank_output(cluster.rank):
            try:
                return _tune(options, cluster)
            except AutoloraError as error:
                if cluster.rank == 0 or not cluster.is_reported(str(error)):
                    print_error(str(error))
                cluster.end(liveness.FAILED, str(error))
                cluster.wait_for_report()
                return FAILED
            except KeyboardInterrupt:
                if cluster.rank == 0:
                    print_status("autolora: interrupted")
                cluster.end(liveness.INTERRUPTED)
                return INTERRUPTED


def _tune(options: Namespace, cluster: Cluster | None = None) -> int:
    device = device_of(options.device, 0 if cluster is None else cluster.local)
    asked = objectives.objective_from(options)
    options.compiled = options.compiled or options.compile_mode is not None
    found = read_target(options, device, None if options.yes else MANY)
    first_rank = cluster is None or cluster.rank == 0
    if cluster is not None and first_rank and options.effort != ESTIMATE:
        ranks.print_thread_note(device)
    compile_mode = mode_from(options.compile_mode or True)
    if options.compiled and options.effort != ESTIMATE:
        require_compiler(device)
    with progress() if first_rank else nullcontext() as on_progress:
        result = tune_problems(
            found.problems,
            effort=options.effort,
            budget=options.budget,
            cache=options.cache,
            force=options.force,
            device=device,
            on_progress=on_progress,
            objective=asked,
            weights=found.uses,
            between=options.tokens.ranged,
            cluster=cluster,
            compile_mode=compile_mode,
        )
    if not first_rank:
        return INTERRUPTED if result.interrupted else FAILED if result.parted else 0
    if options.effort == ESTIMATE:
        print_estimates(result.estimates, found, options.json)
        return 0
    found = _with_counts_between(found, result)
    advice = ""
    if cluster is None and not options.compute_dtype:
        advice = measured_advice(
            result, found.uses, device=device, budget=options.budget, compile_mode=compile_mode
        )
    if options.json:
        print_json({**tuned_json(result, found, asked), "advice": advice or None})
    else:
        _print(result, found, asked, options.tokens.ranged, advice)
    for problem, reason in result.failed:
        print_error(f"could not measure {problem}: {reason}")
    if result.interrupted:
        return INTERRUPTED
    lost = result.unfinished and any(share.lost for share in result.shares)
    return FAILED if result.failed or lost else 0


def tuned_json(result: TuneResult, found: Capture, asked: Objective = TIME) -> dict[str, Any]:
    """The result of a tuning run."""
    records = in_order(result, found.problems)
    shown = objectives.objectives_measured(records, asked)
    uses = found.uses
    measured = [(record, True) for record in result.records]
    measured += [(record, False) for record in result.skipped]
    environments = [record.environment for record, _ in measured]
    environments += [share.environment for share in result.shares if share.environment]
    measured_steps = list(steps(records, found))
    return {
        "cache": str(result.path),
        "records": [
            {
                **tables.record_json(record),
                "layers": uses[record.problem],
                "measured_now": now,
                "runs": objectives.runs_json(record, shown),
            }
            for record, now in measured
        ],
        "environments": tables.environments_json(environments),
        "ranks": ranks.shares_json(result.shares),
        "steps": objectives.steps_json(measured_steps, shown),
        "payback": [
            {
                "tokens": step.tokens,
                "cost_seconds": round(payback.cost_s, 3),
                "saved_seconds_per_step": payback.saved_s,
                "steps": payback.steps,
            }
            for step in measured_steps
            for payback in [step.payback]
        ],
        "unfinished": [problem.to_json() for problem in result.unfinished],
        "failed": [{"problem": p.to_json(), "reason": reason} for p, reason in result.failed],
        "interrupted": result.interrupted,
        "noisy": len(result.noisy),
        "left": [{"name": name, "reason": reason} for name, reason in found.left],
        "notes": found.notes,
    }


def _with_counts_between(found: Capture, result: TuneResult) -> Capture:
    """Adds the token counts that were measured because the winner changes there."""
    measured = {record.problem.tokens for record in result.known}
    added = measured - {problem.tokens for problem in found.problems}
    return found.at(sorted({*found.sizes, *added})) if added else found


def in_order(result: TuneResult, problems: Sequence[BaseProblem]) -> list[Record]:
    """The records of a run, measured or known, in the order of the model's problems."""
    place = {problem: number for number, problem in enumerate(problems)}
    return sorted(result.known, key=lambda record: place[record.problem])


def print_records(records: Sequence[Record], found: Capture) -> None:
    """Prints the records of a run, and their effect on a training step."""
    print_lines(tables.environment_title(records[0].environment))
    print_lines(tables.record_table(records, screen_width(), found.uses))
    print_line()
    measured = list(steps(records, found))
    for step in measured:
        print_paragraph(step.sentence)
    if len(measured) == 1:
        print_paragraph(f"{measured[0].payback}.")


def _print(result: TuneResult, found: Capture, asked: Objective, ranged: bool, advice: str) -> None:
    records = in_order(result, found.problems)
    if records and ranged:
        print_families(records, asked)
        print_line()
    elif records:
        print_records(records, found)
        _print_objectives(records, found, asked)
    if found.left:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in found.left))
        print_paragraph(f"{count(len(found.left), 'LoRA layer')} left out: {reasons}.")
    print_paragraph(_summary(result))
    if advice:
        print_paragraph(f"Advice: {advice}.")
    if result.shares:
        ranks.print_shares(result.shares)
    print_line(f"Cache: {result.path}")
    if records and not (result.unfinished or result.failed):
        _print_next(result.path, asked)


def _print_objectives(records: Sequence[Record], found: Capture, asked: Objective) -> None:
    """Prints the graphs of each objective if the records were measured for several."""
    shown = objectives.objectives_measured(records, asked)
    if len(shown) > 1:
        measured = list(steps(records, found))
        print_line()
        print_lines(objectives.objective_table(records, measured, shown))
        print_line()
        print_paragraph(objectives.shared_input_note(measured))


def _summary(result: TuneResult) -> str:
    new, known, open_ = len(result.records), len(result.skipped), len(result.unfinished)
    seconds = ranks.measuring_seconds(result)
    parts = [f"{count(new, 'problem')} measured" + (f" in {wait(seconds)}" if new else "")]
    if result.disturbed:
        parts.append(f"{len(result.disturbed)} of them while other processes kept the machine busy")
    if open_shares := result.undecided:
        within = f"within {max(open_shares):.1%} of the fastest graph"
        parts.append(f"{len(open_shares)} of them undecided: the winner is {within}")
    if known:
        parts.append(f"{known} already in the cache (--force measures anew)")
    if open_:
        lost = any(share.lost for share in result.shares)
        why = "A rank was lost" if lost else "The budget is spent"
        why = "Interrupted" if result.interrupted else why
        parts.append(f"{open_} still to do")
        return f"{why}: {', '.join(parts)}. What is measured is kept; run it again to go on."
    again = ""
    if result.noisy:
        when = " when the machine is quiet" if result.disturbed else ""
        again = f" Run it again{when}: {len(result.noisy)} of these are measured anew."
    return ", ".join(parts) + "." + again


def _print_next(path: Path, asked: Objective) -> None:
    if path.resolve() in (known.resolve() for known in search_path()):
        lead = "Next: train. The cache"
    else:
        others = [given] if (given := os.environ.get(VARIABLE)) else []
        print_line("Next: name the file where you train, and train:")
        print_line(f"  export {VARIABLE}={os.pathsep.join((str(path.resolve()), *others))}")
        lead = "The cache"
    print_paragraph(
        f"{lead} is read by the layers of autolora.add_lora(model, rank=...) and by those of a "
        "PEFT model after autolora.accelerate(model)."
    )
    variables, arguments = objectives.objective_settings(asked)
    if variables:
        print_line("By default they choose for time. For this objective, set where you train:")
        print_line(f"  export {variables}")
        print_paragraph(f"or in the code: autolora.accelerate(model, {arguments}).")
