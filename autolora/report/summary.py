"""Sums of records: what layers take without adapters, along PEFT's graphs and tuned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean

from autolora.cache.records.payback import Payback
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.problem import BaseProblem, Siblings


@dataclass(frozen=True, slots=True)
class Sum:
    """The time of several problems together, forward and backward, on one machine.

    Args:
        environment: of the records.
        mode: how they run.
        number: of the layers that are counted.
        left_out: number of the layers whose floor was not taken.
        floor_ns: without adapters.
        reference_ns: along PEFT's graphs.
        median_ns: along the winners.
        cost_s: what measuring their problems took, in seconds.
    """

    environment: Environment
    mode: str
    number: int
    left_out: int
    floor_ns: int
    reference_ns: int
    median_ns: int
    cost_s: float

    @property
    def speedup(self) -> float:
        """Time along PEFT's graphs over the winners'."""
        return self.reference_ns / self.median_ns

    @property
    def overhead_removed(self) -> float | None:
        """Share of the LoRA overhead that the winners save, None where there is none."""
        overhead = self.reference_ns - self.floor_ns
        return (self.reference_ns - self.median_ns) / overhead if overhead > 0 else None

    @property
    def payback(self) -> Payback:
        """What measuring took and what one such step saves."""
        return Payback(self.cost_s, (self.reference_ns - self.median_ns) / 1e9)


@dataclass(frozen=True, slots=True)
class Machine:
    """The records of one environment in a few figures.

    Args:
        environment: of the records.
        number: of records.
        kept: number of records whose winner is PEFT's graph.
        speedup: geometric mean over PEFT's graphs.
        least: the smallest speed-up.
        largest: the largest one.
        cost_s: what measuring took, in seconds.
    """

    environment: Environment
    number: int
    kept: int
    speedup: float
    least: float
    largest: float
    cost_s: float


def sums(records: Iterable[Record], weights: Mapping[BaseProblem, int] | None = None) -> list[Sum]:
    """One sum for each machine and mode.

    Args:
        records: whatever their kinds.
        weights: how often a model's step poses each of its problems. Without it each problem
            counts once, and siblings do not unless there is nothing else, since their layers are
            counted one by one.
    """
    found = []
    for (environment, mode), every in _grouped(records):
        if weights is not None:
            counted = [(record, weights.get(record.problem, 0)) for record in every]
        else:
            single = [record for record in every if not isinstance(record.problem, Siblings)]
            counted = [(record, 1) for record in single or every]
        whole = [(record, times) for record, times in counted if times and record.floor_ns]
        if whole:
            found.append(
                Sum(
                    environment,
                    mode,
                    sum(times for _, times in whole),
                    sum(times for _, times in counted) - sum(times for _, times in whole),
                    sum(times * (record.floor_ns or 0) for record, times in whole),
                    sum(times * record.reference_ns for record, times in whole),
                    sum(times * record.median_ns for record, times in whole),
                    sum(record.seconds for record, _ in whole),
                )
            )
    return found


def machines(records: Iterable[Record]) -> list[Machine]:
    """The machines of records, each in a few figures."""
    found: dict[Environment, list[Record]] = {}
    for record in records:
        found.setdefault(record.environment, []).append(record)
    return [_machine(environment, group) for environment, group in found.items()]


def side_by_side(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each problem that several machines have measured, whatever their devices."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record.problem.to_json() | {"device": ""}), []).append(record)
    return [group for group in found.values() if len(group) > 1]


def _machine(environment: Environment, records: Sequence[Record]) -> Machine:
    speedups = [record.speedup for record in records]
    roles = Counter(record.winner == record.reference for record in records)
    return Machine(
        environment,
        len(records),
        roles[True],
        geometric_mean(speedups),
        min(speedups),
        max(speedups),
        sum(record.seconds for record in records),
    )


def _grouped(
    records: Iterable[Record],
) -> Iterable[tuple[tuple[Environment, str], list[Record]]]:
    def place(record: Record) -> tuple[str, str]:
        return record.environment.id, record.problem.mode

    for _, group in groupby(sorted(records, key=place), key=place):
        every = list(group)
        yield (every[0].environment, every[0].problem.mode), every
