"""The problems of a model as one run of its code shows them.

A run shows how many tokens reach each LoRA layer, which layers need no gradient of their input,
such as the first ones of a frozen model, and which get the very same input. It computes shapes
only, see :mod:`.fakes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.fakes import Fakes, running
from autolora.capture.forward import TensorIds, call, eagerly, intercept
from autolora.capture.found import Capture, distinct, note_problem
from autolora.capture.varying import Varying, varying_layers
from autolora.capture.weightless import without_weights
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.nn.siblings.inputs import SharedInputs
from autolora.problem import BaseProblem

_EMPTY, _NOT_CALLED = "its input has no tokens", "not called"


def run_problems(
    model: nn.Module, inputs: Any, autocast: torch.dtype | None = None, device: str | None = None
) -> Capture:
    """The problems of a model's LoRA layers in one training forward pass.

    The model's code runs in train mode with gradients enabled, but without numbers, see
    :mod:`autolora.capture.fakes`. If random numbers stood in for data, it runs a second time:
    layers that then get other token counts, such as experts, get problems at several counts.

    Args:
        model: any module with LoRA layers; nothing of it is changed.
        inputs: a tensor, or a tuple or mapping of the arguments of its forward.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.

    Raises:
        Exception: of the model, before all LoRA layers were called.
    """
    found, mode = _run(model, inputs, autocast, device, seed=0)
    if not mode.drawn:
        return found
    again, _ = _run(model, inputs, autocast, device, seed=1)
    weights = {layer.name: layer.weights for layer in adapted_layers(model)}
    sizes = {name: (own["A"].shape[1], own["B"].shape[0]) for name, own in weights.items()}
    varying = varying_layers((found.layers, again.layers), sizes, mode.rows or None)
    return _joined(found, again, varying)


def _run(
    model: nn.Module, inputs: Any, autocast: torch.dtype | None, device: str | None, seed: int
) -> tuple[Capture, Fakes]:
    """The problems seen in one run, and the mode that it ran in."""
    found = Capture(left=left_layers(model))
    layers = adapted_layers(model)
    shared: SharedInputs[str] = SharedInputs()
    together: list[list[str]] = []
    seen: set[str] = set()
    tensors = TensorIds()
    kind = device or (layers[0].device.type if layers else "cpu")
    asked = kind if kind == "cuda" and torch.cuda.is_available() else "cpu"

    def note(layer: AdaptedLayer, x: Tensor) -> torch.dtype:
        seen.add(layer.name)
        together.append(shared.note(x, layer.name))
        active = torch.get_autocast_dtype(asked) if torch.is_autocast_enabled(asked) else None
        leaves = {"X": x, **layer.weights}
        needs = tuple(name for name, leaf in leaves.items() if leaf.requires_grad)
        if x.dim() < 2 or not x.numel():
            found.left.append((layer.name, _EMPTY))
        elif active is None and not layer.quantised and x.dtype != layer.base_dtype:
            why = f"its input is {x.dtype}, its base weight {layer.base_dtype}"
            found.left.append((layer.name, why))
        else:
            needs = needs if torch.is_grad_enabled() else ()
            problem = note_problem(found, layer, x.numel() // x.shape[-1], needs, active, device)
            if problem is not None:
                read = x.to(getattr(torch, problem.dtype))  # autocast makes a tensor of its own
                found.inputs.setdefault((layer.name, problem), tensors.number(read))
        return x.dtype if layer.quantised else active or layer.base_dtype

    mode = Fakes()
    with (
        without_weights(model, mode),
        eagerly(),
        running(mode, seed),
        torch.enable_grad(),
        torch.autocast("cpu", autocast) if autocast else nullcontext(),
        torch.autocast(asked, autocast) if autocast else nullcontext(),
    ):
        model.train()
        intercept(layers, note)
        try:
            call(model, inputs)
        except Exception:
            if len(seen) < len(layers):
                raise
    found.left += [(each.name, _NOT_CALLED) for each in layers if each.name not in seen]
    found.siblings = [each for each in dict.fromkeys(map(tuple, together)) if len(each) > 1]
    return distinct(found), mode


def _joined(found: Capture, again: Capture, varying: Mapping[str, Varying]) -> Capture:
    """Joins two runs, with several counts for the layers whose token counts vary."""

    def at_counts(name: str, problem: BaseProblem) -> list[BaseProblem]:
        return varying[name].instead_of(problem) if name in varying else [problem]

    first, second = found.expanded(at_counts), again.expanded(at_counts)
    unseen = [(name, problem) for name, each in varying.items() for problem in each.problems]
    layers = first.layers + second.layers + unseen
    called = {name for name, _ in layers}
    left = [
        (name, why)
        for name, why in found.left + again.left
        if not (why == _NOT_CALLED and name in called) and not (why == _EMPTY and name in varying)
    ]
    later = len(found.inputs)  # numbers of the second run are other tensors
    inputs = {key: number + later for key, number in second.inputs.items()} | first.inputs
    ranges = {name: (each.least, each.most) for name, each in varying.items()}
    siblings = list(dict.fromkeys(found.siblings + again.siblings))
    return distinct(Capture(layers, left, inputs=inputs, siblings=siblings, varying=ranges))
