"""Validation: all that is wrong or odd in a cache file, beyond what a reader needs to know.

A reader refuses what is no record. This room also asks whether the record can be true: whether its
graphs are known and compute its problem, whether its times can be, and whether the tuner would have
written it. What cannot be is an error; what is odd, though it may have happened, is a note. Graph
names mean nothing in this room: what is known of a graph comes from the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from autolora.cache.records.candidate import Candidate
from autolora.cache.records.document import NewerSchema, parse, render
from autolora.cache.records.record import Record
from autolora.cache.records.table import Key, Table
from autolora.problem import BaseProblem

# FLOP/s that no device reaches, for each of its units: a CPU's thread with matrix instructions
# makes some 6e12 of the narrowest dtype that there is here, the multiprocessor of a GPU some 2e13.
_MOST_FLOPS = {"cpu": 1e13, "cuda": 1e14}

_CLOCK_SLACK = 0.95  # the seconds of a record come from another clock than its times
_ROUNDED_S = 0.001  # and are rounded to that
_FUTURE = timedelta(days=1)
_FIRST_YEAR = "2023"  # before which there was no autolora
_ODDLY_SLOWER = 1.1  # times another candidate's time

Severity = Literal["error", "note"]


class Known(Protocol):
    """What is asked of a graph."""

    def flops(self, problem: BaseProblem) -> int:
        """Multiplications and additions of all products, forward and backward."""

    def saved_bytes(self, problem: BaseProblem) -> int:
        """Bytes kept from forward to backward beside the parameters."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """What is known of graphs.

    Args:
        find: the graph of a name, None where there is none that computes the problem.
        reference: the name of the graph that PEFT runs.
    """

    find: Callable[[str, BaseProblem], Known | None]
    reference: Callable[[BaseProblem], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd.

    Args:
        severity: ``"error"`` or ``"note"``.
        cause: in words.
        key: of the record, None where it is about the file, or an entry that is no record.
    """

    severity: Severity
    cause: str
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found in a file.

    Args:
        records: how many can be used.
        findings: in the order of the records, those about the file first.
    """

    records: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def validate(data: bytes, graphs: Graphs, now: datetime | None = None) -> Validation:
    """Checks the content of a cache file.

    Times are impossible where a graph would need more than 1e13 FLOP/s for each thread of a CPU, or
    1e14 for each multiprocessor of a GPU; no device comes near either.

    Args:
        data: the file.
        graphs: what is known of graphs.
        now: of which a measurement cannot be later; the present time unless given.
    """
    now = datetime.now(UTC) if now is None else now
    try:
        table = parse(data)
    except NewerSchema as error:
        return Validation(0, (Finding("error", str(error)),))
    except ValueError as error:
        return Validation(0, (Finding("error", f"it is no cache file: {str(error)[:200]}"),))
    about_records: list[Finding] = []
    findings = [Finding("error", f"an entry: {reason[:200]}") for reason in table.invalid]
    for key in sorted(table.lines):
        record = table.record(key)
        if record is None:
            about_records.append(Finding("error", table.invalid[-1][:200], key))
        else:
            about_records += _about_record(record, graphs, key, now)
    if not table.invalid:
        findings += _about_layout(data, table)
    return Validation(len(table.lines), (*findings, *about_records))


def _about_layout(data: bytes, table: Table) -> Iterator[Finding]:
    """Notes on how a sound file is written."""
    lines = data.decode("utf-8-sig").splitlines()
    found = (Key.of_line(line.strip().removesuffix(",")) for line in lines)
    keys = [key for key in found if key is not None]
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    for key in sorted(repeated):
        yield Finding("note", "is there more than once; only the best one counts", key)
    if keys != sorted(keys):
        yield Finding("note", "the records are not sorted")
    elif not repeated and data != render(table):
        yield Finding("note", "not in the layout that autolora writes")


def _about_record(record: Record, graphs: Graphs, key: Key, now: datetime) -> Iterator[Finding]:
    found = {c.graph: graphs.find(c.graph, record.problem) for c in record.candidates}
    for cause in (*_unknown(record, found, graphs), *_impossible(record, found, now)):
        yield Finding("error", cause, key)
    for cause in _odd(record, found):
        yield Finding("note", cause, key)


def _unknown(record: Record, found: dict[str, Known | None], graphs: Graphs) -> Iterator[str]:
    """Graphs that are none, or not those that they should be."""
    roles = {record.winner: "winner", record.reference: "reference"}
    roles.setdefault(record.flops_choice, "flops_choice")
    for name, graph in found.items():
        if graph is None:
            role = roles.get(name, "candidate")
            yield f"{role} {name!r} is no graph of this version of autolora for this problem"
    if record.reference != (reference := graphs.reference(record.problem)):
        yield f"reference must be {reference!r}, which PEFT runs, not {record.reference!r}"


def _impossible(record: Record, found: dict[str, Known | None], now: datetime) -> Iterator[str]:
    """Figures that no measurement gives."""
    environment = record.environment
    most = _MOST_FLOPS[environment.device] * environment.units
    for candidate in record.candidates:
        graph, median_ns = found[candidate.graph], candidate.median_ns
        if median_ns is None:
            continue
        speed = graph.flops(record.problem) / median_ns * 1e9 if graph is not None else 0.0
        if speed > most:
            yield (
                f"median_ns {median_ns} of {candidate.graph!r} would be {speed:.1e} FLOP/s, and "
                f"no {environment.device} device of {environment.units} units makes {most:.0e}"
            )
        if candidate.rounds == 1 and candidate.spread_ns:
            yield f"spread_ns of {candidate.graph!r} must be 0 after one round"
    # At least half of the winner's times were its median or more. The others' medians are not
    # their own: they are scaled to the rounds of the winner, or taken over from an earlier record.
    least = record.median_ns * record.rounds / 2 / 1e9
    if record.seconds + _ROUNDED_S < _CLOCK_SLACK * least:
        yield (
            f"seconds {record.seconds} is less than the winner's {record.rounds} rounds "
            f"took, {least:.3g} at the least"
        )
    if _moment(record.measured_at) > now + _FUTURE:
        yield f"measured_at {record.measured_at} is in the future"


def _odd(record: Record, found: dict[str, Known | None]) -> Iterator[str]:
    """What the tuner writes only on a bad day, or under another version."""
    winner = record.candidate(record.winner)
    if winner is None or winner.median_ns is None:
        return  # which no record has
    best = min(record.usable, key=lambda candidate: candidate.median_ns or 0, default=winner)
    if _surely_slower(winner, best):
        share = 100 * (winner.median_ns / (best.median_ns or 1) - 1)
        yield f"the winner is {share:.0f} % slower than {best.graph!r}, which may be used too"
    if winner.verdict is None and record.winner != record.reference:
        yield "the winner's accuracy was not measured"
    if (winner.spread_ns or 0) > winner.median_ns:
        yield f"the winner's spread is larger than its time, {winner.median_ns} ns"
    slowest = max(candidate.median_ns or 0 for candidate in record.candidates)
    if record.floor_ns is not None and record.floor_ns > slowest:
        yield f"floor_ns {record.floor_ns}, without an adapter, is above every candidate's time"
    if record.measured_at < _FIRST_YEAR:
        yield f"measured_at {record.measured_at} is before autolora was: a clock that was not set?"
    for candidate in record.candidates:
        graph = found[candidate.graph]
        kept = None if graph is None else graph.saved_bytes(record.problem)
        if kept is not None and kept != candidate.saved_bytes:
            yield (
                f"saved_bytes {candidate.saved_bytes} of {candidate.graph!r}, which keeps "
                f"{kept} in this version of autolora"
            )


def _surely_slower(winner: Candidate, best: Candidate) -> bool:
    """Whether a winner is slower than another by more than both spread."""
    if winner.median_ns is None or best.median_ns is None:
        return False
    noise = (winner.spread_ns or 0) + (best.spread_ns or 0)
    return winner.median_ns > max(_ODDLY_SLOWER * best.median_ns, best.median_ns + noise)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
