"""``autolora tune TARGET``."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora.cache.paths import VARIABLE
from autolora.cache.record import Record
from autolora.cache.store import search_path
from autolora.cli import INTERRUPTED, MENDABLE
from autolora.cli.console import (
    print_json,
    print_line,
    print_lines,
    print_paragraph,
    say_error,
    screen_width,
)
from autolora.cli.documents import environments_json, record_json
from autolora.cli.figures import count, duration, percent, ratio, wait
from autolora.cli.progress import progress
from autolora.cli.tables import environment_title, record_table
from autolora.cli.targets import device_of, read_target
from autolora.problem import Problem
from autolora.tuning.capture import Capture
from autolora.tuning.tuner import TuneResult, tune_problems


def run(options: Namespace) -> int:
    """Measures what the cache does not hold yet, and prints what was found."""
    device = device_of(options.device)
    found = read_target(options, device)
    with progress() as tell:
        result = tune_problems(
            found.problems,
            effort=options.effort,
            budget=options.budget,
            cache=options.cache,
            force=options.force,
            device=device,
            on_progress=tell,
        )
    if options.json:
        print_json(tuned_json(result, found))
    else:
        _print(result, found)
    for problem, reason in result.failed:
        say_error(f"could not measure {problem}: {reason}")
    if result.interrupted:
        return INTERRUPTED
    return MENDABLE if result.failed else 0


def tuned_json(result: TuneResult, found: Capture) -> dict[str, Any]:
    """What a tuning run did, as plain data."""
    uses = found.uses
    known = [(record, True) for record in result.records]
    known += [(record, False) for record in result.skipped]
    return {
        "cache": str(result.path),
        "records": [
            {**record_json(record), "layers": uses[record.problem], "measured_now": now}
            for record, now in known
        ],
        "environments": environments_json(record for record, _ in known),
        "unfinished": [problem.to_json() for problem in result.unfinished],
        "failed": [{"problem": p.to_json(), "reason": reason} for p, reason in result.failed],
        "interrupted": result.interrupted,
        "left": [{"name": name, "reason": reason} for name, reason in found.left],
        "notes": found.notes,
    }


def in_order(result: TuneResult, problems: Sequence[Problem]) -> list[Record]:
    """The records of a run, new and known, in the order in which the model poses its problems."""
    place = {problem: number for number, problem in enumerate(problems)}
    return sorted((*result.records, *result.skipped), key=lambda record: place[record.problem])


def print_records(records: Sequence[Record], found: Capture) -> None:
    """The table of a run, and what it means for one step of the model."""
    print_lines(environment_title(records[0].environment))
    print_lines(record_table(records, screen_width(), found.uses))
    print_line()
    for sentence in _steps(records, found):
        print_paragraph(sentence)


def _print(result: TuneResult, found: Capture) -> None:
    records = in_order(result, found.problems)
    if records:
        print_records(records, found)
    if found.left:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in found.left))
        print_paragraph(f"{count(len(found.left), 'LoRA layer')} left out: {reasons}.")
    print_paragraph(_summary(result))
    print_line(f"Cache: {result.path}")
    if records and not (result.unfinished or result.failed):
        _print_next(result.path)


def _steps(records: Sequence[Record], found: Capture) -> Iterator[str]:
    """What the layers of a step take together; one sentence for each size of step."""
    once: dict[tuple[str, int], Problem] = {}  # a layer's gradients may be known only as either-or
    for name, problem in found.layers:
        once.setdefault((name, problem.tokens), problem)
    calls = Counter(once.values())
    posed = [record for record in records if calls[record.problem]]
    steps = {"In one step": posed}
    if len(found.sizes) > 1:
        steps = {
            f"In one step of {tokens} tokens": [r for r in posed if r.problem.tokens == tokens]
            for tokens in found.sizes
        }
    for when, some in steps.items():
        if some:
            yield _step(when, some, calls)


def _step(when: str, records: Sequence[Record], calls: Mapping[Problem, int]) -> str:
    def total(times: Iterable[float]) -> float:
        return sum(n * time for n, time in zip(counts, times, strict=True))

    counts = [calls[record.problem] for record in records]
    tuned = total(record.median_ns for record in records)
    reference = total(record.median_ns * record.speedup for record in records)
    text = (
        f"{when}, forward and backward, these {count(sum(counts), 'layer')} take "
        f"{duration(reference)} along the reference graphs and {duration(tuned)} tuned: "
        f"{ratio(reference / tuned)} as fast"
    )
    if all(record.floor_ns is not None for record in records):
        floor = total(record.floor_ns or 0 for record in records)
        if floor < reference:
            share = percent((reference - tuned) / (reference - floor))
            text += f", {share} of the LoRA overhead removed"
    return text + "."


def _summary(result: TuneResult) -> str:
    new, known, open_ = len(result.records), len(result.skipped), len(result.unfinished)
    seconds = sum(record.seconds for record in result.records)
    parts = [f"{count(new, 'problem')} measured" + (f" in {wait(seconds)}" if new else "")]
    if known:
        parts.append(f"{known} already in the cache (--force measures anew)")
    if open_:
        why = "Interrupted" if result.interrupted else "The budget is spent"
        parts.append(f"{open_} still to do")
        return f"{why}: {', '.join(parts)}. What is measured is kept; run it again to go on."
    return ", ".join(parts) + "."


def _print_next(path: Path) -> None:
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
