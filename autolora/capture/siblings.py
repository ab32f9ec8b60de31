"""The problems of sibling layers, from those of the layers and from who gets the same tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from autolora.problem import BaseProblem, Problem, Siblings

Family = tuple[str, ...]


def problem_of_siblings(layers: Sequence[BaseProblem]) -> Siblings | None:
    """The problem of layers with one X, None if they run one by one."""
    single = [layer for layer in layers if isinstance(layer, Problem)]
    if len(single) < len(layers):
        return None
    found = Siblings.of(single)
    return None if isinstance(found, str) else found


def families_of(
    layers: Iterable[tuple[str, BaseProblem]], siblings: Iterable[Family]
) -> Iterator[tuple[Family, Siblings]]:
    """The families that have problems, once for each problem of their first layer.

    Args:
        layers: path and problem of each layer; a layer may have several.
        siblings: the paths of each family.
    """
    problems: dict[str, list[BaseProblem]] = {}
    for name, problem in layers:
        problems.setdefault(name, []).append(problem)
    for names in siblings:
        if len(set(names)) < len(names):
            continue  # one of them is called twice
        for first in problems.get(names[0], []):
            like = (first.tokens, first.gradients)
            alike = [
                next((p for p in problems.get(name, []) if (p.tokens, p.gradients) == like), None)
                for name in names
            ]
            known = [problem for problem in alike if problem is not None]
            found = problem_of_siblings(known) if len(known) == len(names) else None
            if found is not None:
                yield names, found
