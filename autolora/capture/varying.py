"""Token counts that vary with the data: a few to tune, between which look-up interpolates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autolora.capture.tokens import powers_of_two
from autolora.problem import BaseProblem

MANY = 8  # token counts of one problem that are all tuned; of more, a few are

Layers = Sequence[tuple[str, BaseProblem]]


@dataclass(frozen=True, slots=True)
class Varying:
    """What to tune for a layer whose token counts depend on the data.

    Args:
        least: the fewest tokens seen.
        most: the most tokens seen.
        counts: to tune for.
        families: the problems of the layer, at one token.
    """

    least: int
    most: int
    counts: tuple[int, ...]
    families: tuple[BaseProblem, ...]

    @property
    def problems(self) -> list[BaseProblem]:
        """To be tuned."""
        return [family.at(count) for family in self.families for count in self.counts]

    def instead_of(self, problem: BaseProblem) -> list[BaseProblem]:
        """What to tune for a problem of the layer: the problem itself if it does not vary."""
        if _family(problem) not in self.families:
            return [problem]
        return list(map(problem.at, self.counts))


def counts_around(least: int, most: int, limit: int | None = None) -> tuple[int, ...]:
    """The powers of two from half of ``least`` to twice ``most``, the last at most ``limit``.

    >>> counts_around(10, 20)
    (4, 8, 16, 32, 64)
    """
    low = 1 << (max(least // 2, 1).bit_length() - 1)
    high = 1 << (2 * most - 1).bit_length()
    return powers_of_two(low, high if limit is None else min(high, max(limit, most)))


def thinned(uses: Mapping[BaseProblem, int]) -> dict[BaseProblem, int]:
    """The problems to tune: a few token counts for more than :data:`MANY` of one problem.

    Args:
        uses: number of calls with each problem.

    Returns:
        The problems, each with the calls of those whose token counts are nearest to it.
    """
    families: dict[BaseProblem, list[int]] = {}
    for problem in uses:
        families.setdefault(_family(problem), []).append(problem.tokens)
    found: dict[BaseProblem, int] = {}
    for family, counts in families.items():
        kept = counts if len(counts) <= MANY else powers_of_two(min(counts), max(counts))
        found |= {family.at(count): 0 for count in kept}
        for count in counts:
            nearest = min(kept, key=lambda each: max(each, count) / min(each, count))
            found[family.at(nearest)] += uses[family.at(count)]
    return found


def varying_layers(
    runs: Sequence[Layers], sizes: Mapping[str, tuple[int, int]], limit: int | None = None
) -> dict[str, Varying]:
    """The layers that got other token counts in runs on other data, by their paths.

    Layers whose paths differ in numbers only, such as the experts of a mixture, vary together, also
    those that got no tokens in any run.

    Args:
        runs: path and problem of each call, for each run.
        sizes: ``(in_features, out_features)`` of every layer by its path.
        limit: the most tokens that such a layer can get, None if that is not known.
    """
    calls: dict[str, list[set[BaseProblem]]] = {name: [set() for _ in runs] for name in sizes}
    for number, run in enumerate(runs):
        for name, problem in run:
            calls[name][number].add(problem)
    groups: dict[str, list[str]] = {}
    for name in sizes:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    varying = {
        name: families
        for names in groups.values()
        for name, families in _varying(names, calls, sizes).items()
    }
    counts: dict[tuple[int, int], list[int]] = {}
    for name, families in varying.items():
        tokens = [p.tokens for p in set().union(*calls[name]) if _family(p) in families]
        counts.setdefault(sizes[name], []).extend(tokens)
    found = {}
    for name, families in varying.items():
        least, most = min(counts[sizes[name]]), max(counts[sizes[name]])
        found[name] = Varying(least, most, counts_around(least, most, limit), tuple(families))
    return found


def note_of(varying: Mapping[str, tuple[int, int]], layers: Layers) -> list[str]:
    """A sentence about the layers whose token counts vary, if there are any.

    Args:
        varying: the least and the most tokens seen of each.
        layers: all layers, with the problems to tune.
    """
    if not varying:
        return []
    least, most = min(map(min, varying.values())), max(map(max, varying.values()))
    counts = sorted({problem.tokens for name, problem in layers if name in varying})
    number = len(varying)
    who = f"{number} layers get as many tokens as the data send them"
    if number == 1:
        who = "1 layer gets as many tokens as the data send it"
    return [f"{who}, here {least} to {most}: tuned for {', '.join(map(str, counts))}"]


def _varying(
    names: Sequence[str],
    calls: Mapping[str, Sequence[set[BaseProblem]]],
    sizes: Mapping[str, tuple[int, int]],
) -> dict[str, list[BaseProblem]]:
    """For a group of layers, the problems of each whose token counts vary, at one token."""
    if all(first == run for name in names for first, *rest in [calls[name]] for run in rest):
        return {}
    counts: dict[BaseProblem, set[int]] = {}
    for problem in (p for name in names for run in calls[name] for p in run):
        counts.setdefault(_family(problem), set()).add(problem.tokens)
    varying = [family for family, seen in counts.items() if len(seen) > 1]
    found = {}
    for name in names:
        own = set(map(_family, set().union(*calls[name])))
        found[name] = [
            family
            for family in varying
            if (family in own if own else sizes[name] in family.layer_sizes)
        ]
    return {name: families for name, families in found.items() if families}


def _family(problem: BaseProblem) -> BaseProblem:
    """The problem at one token, which stands for it at all token counts."""
    return problem.at(1)
