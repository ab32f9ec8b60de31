"""Token counts that no one can list: a few of them, between which look-up interpolates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autolora.capture.tokens import rungs
from autolora.problem import Problem

MANY = 8  # token counts of one problem that are tuned one by one; more become a ladder

Layers = Sequence[tuple[str, Problem]]


@dataclass(frozen=True, slots=True)
class Varying:
    """What to tune for a layer that gets as many tokens as the data send it.

    Args:
        least: tokens that such a layer was seen to get.
        most: likewise.
        rungs: the counts of the ladder.
        families: the problems that the layer poses, at one token.
    """

    least: int
    most: int
    rungs: tuple[int, ...]
    families: tuple[Problem, ...]

    @property
    def problems(self) -> list[Problem]:
        """To be tuned."""
        return [family.at(rung) for family in self.families for rung in self.rungs]

    def instead_of(self, problem: Problem) -> list[Problem]:
        """What to tune for a problem of the layer: itself where it does not vary."""
        if _family(problem) not in self.families:
            return [problem]
        return list(map(problem.at, self.rungs))


def rungs_around(least: int, most: int, limit: int | None = None) -> tuple[int, ...]:
    """The powers of two from half of ``least`` to twice ``most``, the last at most ``limit``.

    >>> rungs_around(10, 20)
    (4, 8, 16, 32, 64)
    """
    low = 1 << (max(least // 2, 1).bit_length() - 1)
    high = 1 << (2 * most - 1).bit_length()
    return rungs(low, high if limit is None else min(high, max(limit, most)))


def thinned(uses: Mapping[Problem, int]) -> dict[Problem, int]:
    """A ladder instead of problems of which more than :data:`MANY` differ in nothing but tokens.

    Args:
        uses: how often each problem was posed.

    Returns:
        The problems to tune, each with the uses of those that are nearest to it.
    """
    families: dict[Problem, list[int]] = {}
    for problem in uses:
        families.setdefault(_family(problem), []).append(problem.tokens)
    found: dict[Problem, int] = {}
    for family, counts in families.items():
        kept = counts if len(counts) <= MANY else rungs(min(counts), max(counts))
        found |= {family.at(rung): 0 for rung in kept}
        for count in counts:
            nearest = min(kept, key=lambda rung: max(rung, count) / min(rung, count))
            found[family.at(nearest)] += uses[family.at(count)]
    return found


def ladders(
    runs: Sequence[Layers], sizes: Mapping[str, tuple[int, int]], limit: int | None = None
) -> dict[str, Varying]:
    """The layers of which runs on other data show other token counts, by their paths.

    Layers whose paths differ in numbers only are taken to be alike, as the experts of a mixture
    are: where one of them varies all do, those too that got no tokens in any run.

    Args:
        runs: what the layers were called with, once for each run.
        sizes: ``(in_features, out_features)`` of every layer by its path.
        limit: tokens that no such layer exceeds, None if that is not known.
    """
    calls: dict[str, list[set[Problem]]] = {name: [set() for _ in runs] for name in sizes}
    for number, run in enumerate(runs):
        for name, problem in run:
            calls[name][number].add(problem)
    alike: dict[str, list[str]] = {}
    for name in sizes:
        alike.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    varying = {
        name: families
        for names in alike.values()
        for name, families in _varying(names, calls, sizes).items()
    }
    counts: dict[tuple[int, int], list[int]] = {}
    for name, families in varying.items():
        tokens = [p.tokens for p in set().union(*calls[name]) if _family(p) in families]
        counts.setdefault(sizes[name], []).extend(tokens)
    found = {}
    for name, families in varying.items():
        least, most = min(counts[sizes[name]]), max(counts[sizes[name]])
        found[name] = Varying(least, most, rungs_around(least, most, limit), tuple(families))
    return found


def note_of(varying: Mapping[str, tuple[int, int]], layers: Layers) -> list[str]:
    """A sentence about layers with ladders, if there are some.

    Args:
        varying: the least and the most tokens that each was seen to get.
        layers: these and others, with the problems that are tuned.
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
    calls: Mapping[str, Sequence[set[Problem]]],
    sizes: Mapping[str, tuple[int, int]],
) -> dict[str, list[Problem]]:
    """Of layers that are alike, the families that each poses with varying token counts."""
    if all(first == run for name in names for first, *rest in [calls[name]] for run in rest):
        return {}
    counts: dict[Problem, set[int]] = {}
    for problem in (p for name in names for run in calls[name] for p in run):
        counts.setdefault(_family(problem), set()).add(problem.tokens)
    varying = [family for family, seen in counts.items() if len(seen) > 1]
    found = {}
    for name in names:
        own = set(map(_family, set().union(*calls[name])))
        found[name] = [
            family
            for family in varying
            if (family in own if own else sizes[name] == (family.in_features, family.out_features))
        ]
    return {name: families for name, families in found.items() if families}


def _family(problem: Problem) -> Problem:
    """What problems that differ in nothing but their tokens have in common."""
    return problem.at(1)
