"""The kinds of problem there are, and reading one of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autolora.problem.base import DEFAULT_KIND, BaseProblem
from autolora.problem.experts import Experts
from autolora.problem.layer import Problem
from autolora.problem.siblings import Siblings

KINDS: dict[str, type[BaseProblem]] = {kind.kind: kind for kind in (Problem, Siblings, Experts)}


def problem_from_json(value: Mapping[str, Any]) -> BaseProblem:
    """Reads what :meth:`BaseProblem.to_json` wrote.

    Raises:
        ValueError: an unknown kind, or a field is missing, unknown or has a value that is not
            allowed.
    """
    kind = value.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind of problem {str(kind)[:40]!r}; known: {', '.join(KINDS)}")
    return KINDS[kind].from_json(value)
