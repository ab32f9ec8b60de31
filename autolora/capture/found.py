"""What was found of a model: the problems of its LoRA layers, and what is to be said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from autolora.capture.siblings import families_of
from autolora.nn.adapted import AdaptedLayer
from autolora.problem import BaseProblem, Siblings, at_loads


@dataclass(slots=True)
class Capture:
    """The problems of a model.

    Args:
        layers: path and problem of each LoRA layer, in order of appearance; a layer that is called
            with several token counts appears once for each.
        left: paths of the LoRA layers without a problem, each with the reason.
        notes: what was assumed or left out; one sentence each.
        sizes: token counts that were given, instead of seen in a run.
        inputs: a number for the X of each entry of ``layers`` that was seen in a run; equal numbers
            are one tensor, such as the X of q, k and v.
        siblings: the paths of layers that get the very same tensor one after the other, each family
            in the order of its calls.
        varying: by path, the least and the most tokens of each layer whose token counts depend on
            the data; these appear in ``layers`` once for each of several counts.
    """

    layers: list[tuple[str, BaseProblem]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    inputs: dict[tuple[str, BaseProblem], int] = field(default_factory=dict)
    siblings: list[tuple[str, ...]] = field(default_factory=list)
    varying: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def problems(self) -> list[BaseProblem]:
        """The distinct problems, in order of first appearance, those of siblings last."""
        return list(self.uses)

    @property
    def uses(self) -> Counter[BaseProblem]:
        """How many layers, and how many families of siblings, share each problem."""
        uses = Counter(problem for _, problem in self.layers)
        uses.update(problem for _, problem in self.families)
        return uses

    @property
    def families(self) -> list[tuple[tuple[str, ...], Siblings]]:
        """The paths and the problem of each family of siblings that has one."""
        return list(families_of(self.layers, self.siblings))

    def changed(self, change: Callable[[Any], BaseProblem]) -> Capture:
        """The same layers with other problems."""
        return self.expanded(lambda _, problem: [change(problem)])

    def at(self, tokens: Sequence[int]) -> Capture:
        """The same layers at other token counts."""
        found = self.expanded(lambda _, problem: list(map(problem.at, tokens)))
        return replace(found, sizes=tuple(tokens), varying={})

    def expanded(self, change: Callable[[str, BaseProblem], Sequence[BaseProblem]]) -> Capture:
        """The same layers, each with the problems that ``change(path, problem)`` gives."""
        layers = [(name, new) for name, problem in self.layers for new in change(name, problem)]
        inputs = {(n, new): x for (n, p), x in self.inputs.items() for new in change(n, p)}
        return distinct(replace(self, layers=layers, inputs=inputs))


def distinct(found: Capture) -> Capture:
    """The same without repetitions."""
    found.layers = list(dict.fromkeys(found.layers))
    found.left = list(dict.fromkeys(found.left))
    return found


def note_problem(
    found: Capture,
    layer: AdaptedLayer,
    tokens: int,
    gradients: Sequence[str],
    autocast: torch.dtype | None,
    device: str | None,
) -> BaseProblem | None:
    """Adds the problem of a call of a layer, or the reason why there is none."""
    try:
        problem = layer.problem(tokens, gradients=gradients, autocast=autocast, device=device)
    except ValueError as error:  # a dtype or a device that no graphs exist for
        found.left.append((layer.name, str(error)))
        return None
    found.layers += [(layer.name, each) for each in at_loads(problem)]
    return problem
