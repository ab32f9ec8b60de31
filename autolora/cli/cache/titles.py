"""What the ``autolora cache`` commands call things: records, environments, why a record stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from autolora.cache.joining import Conflict
from autolora.cache.records.precedence import EFFORTS, TEXT
from autolora.cache.records.table import Key
from autolora.cli.output.tables import call_title, environment_title
from autolora.environment import Environment
from autolora.problem import Problem

MOST = 20  # lines of a kind in the terminal; --json has all

T = TypeVar("T")


def problem_title(problem: Problem) -> str:
    """A problem in one line."""
    return f"{call_title(problem)}, rank {problem.rank}, {problem.kind}"


def key_title(key: Key) -> str:
    """A problem in one line, for records that may hold none."""
    try:
        return problem_title(key.problem)
    except ValueError:
        return f"{key.in_features} → {key.out_features}, {key.tokens} tokens, rank {key.rank}"


def environment_line(environment: Environment) -> str:
    """An environment in one line."""
    return ", ".join(line.plain for line in environment_title(environment))


def first(things: Sequence[T], line: Callable[[T], str], indent: str = "  ") -> list[str]:
    """The lines of as many things as a terminal should show, and how many more there are."""
    lines = [f"{indent}{line(thing)}" for thing in things[:MOST]]
    more = len(things) - MOST
    return [*lines, f"{indent}and {more:,} more, which --json lists"] if more > 0 else lines


def reason(conflict: Conflict) -> str:
    """Why one record stays and not the other: ``"effort normal over quick"``."""
    field = conflict.decided_by
    if field == TEXT:
        return "equally good, the greater text"
    won, lost = getattr(conflict.won, field), getattr(conflict.lost, field)
    if field == "effort":
        return f"effort {EFFORTS[won]} over {EFFORTS[lost]}"
    if field == "steadiness":
        return "spread {} % below {} %".format(*_apart(-100 * won, -100 * lost))
    if field == "measured_at":
        return f"newer, {won} over {lost}"
    return f"{won} {field} over {lost}"


def key_json(key: Key) -> dict[str, Any]:
    """Which record, as plain data."""
    return {"problem": key.problem.to_json(), "environment": key.environment}


def environments_by_id(environments: Iterable[Environment]) -> dict[str, Any]:
    """Environments as plain data."""
    return {environment.id: environment.to_json() for environment in environments}


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers that differ, with as few digits as show it."""
    shown = f"{one:.2g}", f"{other:.2g}"
    digits = 3
    while shown[0] == shown[1] and digits < 18:
        shown = f"{one:.{digits}g}", f"{other:.{digits}g}"
        digits += 1
    return shown
