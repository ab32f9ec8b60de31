"""What a record answers: the candidate that serves an objective best."""

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
    """The valid candidate that serves an objective best, None where there is none.

    Where only time counts it is the winner, as long as that is valid.

    Args:
        record: what was measured.
        objective: what the graph is for.
        valid: whether a name is that of a graph which computes the problem.
        tokens: rows of X that it is asked for; those of the record unless given.
    """
    raced = not lacks(record, objective)
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
    """A candidate as an option; what it keeps grows with the tokens, and is rounded up."""
    measured = record.problem.tokens
    saved_bytes = -(-candidate.saved_bytes * (tokens or measured) // measured)
    reference = candidate.graph == record.reference
    return Option(candidate.graph, time, saved_bytes, candidate.verdict, reference)


def lacks(record: Record, objective: Objective) -> str:
    """What a record was not measured for though an objective needs it, in words, or ``""``."""
    lacking = [kind for kind in objective.kinds if kind not in record.objectives]
    return f"not tuned for {' and '.join(lacking)}" if lacking else ""
