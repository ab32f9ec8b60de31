"""``autolora.explain``: the graph that each layer of a model runs, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolora.graphs.experts.space import advice
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.nn.choosing import decide, without_graph
from autolora.nn.layer_state import Choice
from autolora.nn.siblings.family import together_of
from autolora.nn.statement import layer_facts
from autolora.objective import TIME, Objective
from autolora.problem import DEVICES, EAGER, BaseProblem, Experts


@dataclass(frozen=True, slots=True)
class LayerExplanation:
    """The graph of one layer at one token count.

    Args:
        name: path in the model.
        problem: what the layer computes.
        graph: name of the graph that it runs.
        reason: ``exact``, ``interpolated``, ``nearest``, ``other-mode``, ``other-environment``,
            ``miss`` or ``pinned``.
        detail: more about the reason; also whether the layer is frozen, and on which plan.
        calls: number of calls so far; 0 if ``tokens`` was given or the layer is compiled.
        objective: what the graph was chosen for.
    """

    name: str
    problem: BaseProblem
    graph: str
    reason: str
    detail: str
    calls: int
    objective: Objective = TIME

    @property
    def why(self) -> str:
        """Reason and detail, the mode unless it is eager, and the objective if it is not time."""
        mode = "" if self.problem.mode == EAGER else self.problem.mode
        objective = "" if self.objective == TIME else f"for {self.objective}"
        return ", ".join(filter(None, (mode, objective, self.reason, self.detail)))


@dataclass(frozen=True, slots=True)
class Explanation:
    """The graphs that the layers of a model run.

    Args:
        layers: layers that can run measured graphs.
        left: paths of the layers that run their own ``forward``, each with the reason.
    """

    layers: list[LayerExplanation]
    left: list[tuple[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        """The number of ``layers`` for each reason, most frequent first."""
        return dict(Counter(layer.reason for layer in self.layers).most_common())

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {
            "layers": [
                {
                    "name": layer.name,
                    "problem": layer.problem.to_json(),
                    "graph": layer.graph,
                    "reason": layer.reason,
                    "detail": layer.detail,
                    "calls": layer.calls,
                    "objective": layer.objective.kind,
                    "max_saved_bytes": layer.objective.max_saved_bytes,
                }
                for layer in self.layers
            ],
            "left": [{"name": name, "reason": reason} for name, reason in self.left],
            "counts": self.counts,
        }

    def __str__(self) -> str:
        lines = [f"{layer.name}: {layer.graph} ({layer.why})" for layer in self.layers]
        lines += [f"{name}: its own path ({reason})" for name, reason in self.left]
        if not lines:
            return "no LoRA layers"
        totals = self.counts | ({"its own path": len(self.left)} if self.left else {})
        summary = ", ".join(f"{number} {reason}" for reason, number in totals.items())
        return "\n".join([*lines, f"in all: {summary}"])


def explain(model: nn.Module, tokens: int | None = None) -> Explanation:
    """Which graph each LoRA layer of a model runs, and why.

    Args:
        model: with LoRA layers, PEFT's or autolora's.
        tokens: rows of an input, under the autocast that is active now; None explains the calls
            made so far.
    """
    layers: list[LayerExplanation] = []
    left = left_layers(model)
    for layer in adapted_layers(model):
        for choice in _seen(layer) if tokens is None else [_ahead(layer, tokens)]:
            if choice.problem is None:
                left.append((layer.name, choice.detail))
            else:
                layers.append(_explained(layer, choice))
    return Explanation(layers, left)


def _explained(layer: AdaptedLayer, choice: Choice) -> LayerExplanation:
    assert choice.problem is not None
    return LayerExplanation(
        layer.name,
        choice.problem,
        choice.graph.name,
        choice.reason,
        "; ".join(filter(None, (choice.detail, choice.alone, _advice(choice)))),
        choice.calls,
        layer.state.policy.wanted,
    )


def _advice(choice: Choice) -> str:
    """What would make PEFT's path faster, where a layer runs it."""
    if not isinstance(choice.problem, Experts) or not choice.graph.is_reference:
        return ""
    return advice(choice.problem)


def _seen(layer: AdaptedLayer) -> list[Choice]:
    seen: list[Choice] = []
    for choice in layer.state.choices.values():
        together = together_of(choice, layer.state)
        if together is not None:
            seen.append(together)
        if together is None or choice.calls:
            seen.append(choice)
    if not any(choice.is_compiled for choice in seen):  # it may share others' compiled code
        seen += layer.state.policy.traced_for(layer_facts(layer.tensors))
    return seen


def _ahead(layer: AdaptedLayer, tokens: int) -> Choice:
    device = layer.device if layer.device.type in DEVICES else torch.device("cpu")
    kind = device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    training = layer.module.training
    try:
        problem = layer.problem(tokens, autocast=autocast, device=kind, training=training)
    except ValueError as error:  # there are no graphs for it
        return without_graph(str(error))
    return decide(problem, device, layer.state.policy)
