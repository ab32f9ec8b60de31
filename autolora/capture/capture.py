"""The problems of a model: seen in one run of its code, or stated from its layers without a run.

A run shows how many tokens reach each LoRA layer and which layers need no gradient of their input,
such as the first ones of a frozen model. It computes shapes only, see :mod:`.fakes`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.fakes import Fakes, running
from autolora.capture.forward import TensorIds, call, example_of, intercept
from autolora.capture.model_file import summary_of
from autolora.capture.target import DEFAULT_BATCH_SIZE, Target
from autolora.capture.varying import Varying, note_of, varying_layers
from autolora.capture.weightless import without_weights
from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.problem import BaseProblem

logger = logging.getLogger("autolora")

_EMPTY, _NOT_CALLED = "its input has no tokens", "not called"


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
        varying: by path, the least and the most tokens of each layer whose token counts depend on
            the data; these appear in ``layers`` once for each of several counts.
    """

    layers: list[tuple[str, BaseProblem]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    inputs: dict[tuple[str, BaseProblem], int] = field(default_factory=dict)
    varying: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def problems(self) -> list[BaseProblem]:
        """The distinct problems, in order of first appearance."""
        return list(self.uses)

    @property
    def uses(self) -> Counter[BaseProblem]:
        """How many layers share each problem."""
        return Counter(problem for _, problem in self.layers)

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
        return _distinct(replace(self, layers=layers, inputs=inputs))


def capture(
    target: Target,
    *,
    device: str,
    batch_size: int | None = None,
    seq_len: int | None = None,
    tokens: Sequence[int] = (),
    autocast: torch.dtype | None = None,
) -> Capture:
    """The problems of a target in training.

    Args:
        target: its model's code is run, without numbers.
        device: type of the device that will train it.
        batch_size: of the run, :data:`DEFAULT_BATCH_SIZE` unless given.
        seq_len: of the run; the target's own unless given.
        tokens: counts to tune for, instead of those that the run shows.
        autocast: its dtype while training, None where it is off.

    Raises:
        AutoloraError: no LoRA layer has a problem.
    """
    batch, length = batch_size or DEFAULT_BATCH_SIZE, seq_len or target.seq_len
    found, problem = None, "the file has no example_inputs(batch_size, seq_len)"
    if target.inputs is not None:
        given = example_of(target.inputs, batch, length)
        try:
            found = run_problems(target.model, given, autocast, device)
        except Exception as error:  # of any model that cannot run without numbers
            problem = f"the model cannot be run without its numbers ({summary_of(error)})"
    if found is None:
        found = model_problems(target.model, tokens or [batch * length], autocast, device)
        if not tokens:
            found.notes.append(
                f"{problem}: every layer is taken to get {batch * length} tokens, {batch} "
                f"sequences of {length}"
            )
        elif target.inputs is not None:
            found.notes.append(
                f"{problem}: which layers need the gradient of their input is assumed"
            )
    else:
        found = found.at(tokens) if tokens else found
        found.notes += note_of(found.varying, found.layers)
    if not found.layers:
        raise AutoloraError(
            "no LoRA layer of this model was called"
            if not found.left
            else "no LoRA layer of this model can be tuned: "
            + ", ".join(dict.fromkeys(reason for _, reason in found.left))
        )
    if target.added is not None:
        found = found.changed(target.added.of)
    found.notes[:0] = target.notes
    for note in found.notes:
        logger.warning("%s", note)
    return found


def model_problems(
    model: nn.Module,
    tokens: Sequence[int],
    autocast: torch.dtype | None = None,
    device: str | None = None,
) -> Capture:
    """The problems of a model's LoRA layers at given token counts, without running it.

    Which layers need no gradient of their input is not known. The first ones of a frozen model do
    not: the layers with the first layer's parent and ``in_features`` get a problem for each case.

    Args:
        model: any module with LoRA layers.
        tokens: counts of each layer.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.
    """
    found = Capture(left=left_layers(model), sizes=tuple(tokens))
    layers = adapted_layers(model)
    first = layers and _parent_and_width(layers[0])
    for layer in layers:
        weights = tuple(name for name, w in layer.weights.items() if w.requires_grad)
        either = _parent_and_width(layer) == first
        for needs in (weights, ("X", *weights)) if either else (("X", *weights),):
            for count in tokens:
                _note(found, layer, count, needs, autocast, device)
    return _distinct(found)


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
    seen: set[str] = set()
    tensors = TensorIds()
    kind = device or (layers[0].device.type if layers else "cpu")
    asked = kind if kind == "cuda" and torch.cuda.is_available() else "cpu"

    def note(layer: AdaptedLayer, x: Tensor) -> torch.dtype:
        seen.add(layer.name)
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
            problem = _note(found, layer, x.numel() // x.shape[-1], needs, active, device)
            if problem is not None:
                read = x.to(getattr(torch, problem.dtype))  # autocast makes a tensor of its own
                found.inputs.setdefault((layer.name, problem), tensors.number(read))
        return x.dtype if layer.quantised else active or layer.base_dtype

    mode = Fakes()
    with (
        without_weights(model, mode),
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
    return _distinct(found), mode


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
    return _distinct(Capture(layers, left, inputs=inputs, varying=ranges))


def _distinct(found: Capture) -> Capture:
    found.layers = list(dict.fromkeys(found.layers))
    found.left = list(dict.fromkeys(found.left))
    return found


def _parent_and_width(layer: AdaptedLayer) -> tuple[str, int]:
    return layer.name.rpartition(".")[0], layer.weights["A"].shape[1]


def _note(
    found: Capture,
    layer: AdaptedLayer,
    tokens: int,
    gradients: Sequence[str],
    autocast: torch.dtype | None,
    device: str | None,
) -> BaseProblem | None:
    try:
        problem = layer.problem(tokens, gradients=gradients, autocast=autocast, device=device)
    except ValueError as error:  # a dtype or a device that no graphs exist for
        found.left.append((layer.name, str(error)))
        return None
    found.layers.append((layer.name, problem))
    return problem
