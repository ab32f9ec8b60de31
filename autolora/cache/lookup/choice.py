"""The graph that a record gives for an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autolora.cache.records.candidate import Candidate
from autolora.cache.records.record import Record
from autolora.objective import Objective, Option, Pick, pick

Valid = Callable[[str], bool]


def choose(
    record: Record,
    objective: Objective,
    valid: Valid = lambda name: True,
    tokens: int | None = None,
) -> Pick | None:
    """The best valid candidate for an objective, None if there is none.

    For time without a limit it is the winner, if valid.

    Args:
        record: what was measured.
        objective: what the graph is chosen for.
        valid: whether a graph of that name computes the problem.
        tokens: rows of X; by default those of the record.
    """
    raced = not not_tuned_for(record, objective)
    options = [
        replace(
            option_of(candidate, record, candidate.median_ns, tokens),
            rounds=candidate.rounds if raced else 0,
        )
        for candidate in record.candidates
        if candidate.median_ns is not None and valid(candidate.graph)
    ]
    return pick(options, objective, record.winner)


def option_of(
    candidate: Candidate, record: Record, time: float, tokens: int | None = None
) -> Option:
    """A candidate as an option; its saved bytes are scaled to the tokens and rounded up."""
    measured = record.problem.tokens
    saved_bytes = -(-candidate.saved_bytes * (tokens or measured) // measured)
    reference = candidate.graph == record.reference
    return Option(candidate.graph, time, saved_bytes, candidate.verdict, reference)


def not_tuned_for(record: Record, objective: Objective) -> str:
    """What a record was not tuned for though the objective needs it, in words, or ``""``."""
    missing = [kind for kind in objective.kinds if kind not in record.objectives]
    return f"not tuned for {' and '.join(missing)}" if missing else ""
