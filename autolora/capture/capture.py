"""Which problems a model poses: seen in one run of it, or taken from its layers without running it.

A run tells how many tokens reach each LoRA layer and which layers need no gradient of their input,
as the first of a frozen model do not. It is a run of the model's code without its numbers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.example_inputs import call, example_of
from autolora.capture.fakes import Fakes, running
from autolora.capture.interception import TensorIds, autocasting, intercept
from autolora.capture.model_file import one_line
from autolora.capture.target import DEFAULT_BATCH_SIZE, Target
from autolora.capture.varying import Varying, ladders, note_of
from autolora.capture.weightless import without_weights
from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.problem import Problem

logger = logging.getLogger("autolora")

_EMPTY, _NOT_CALLED = "its input has no tokens", "not called"


@dataclass(slots=True)
class Capture:
    """The problems of a model.

    Args:
        layers: path of each LoRA layer with a problem that it poses, in order of appearance;
            a layer that is called with several token counts appears once for each.
        left: paths of LoRA layers that pose none, each with the reason.
        notes: what was assumed, and what was odd; one sentence each.
        sizes: token counts that each layer was asked about, where these were not seen in a run.
        inputs: for each entry of ``layers`` that was seen in a run which X it got, as a number:
            equal numbers are one tensor, as q, k and v of a block get.
        varying: the least and the most tokens that layers were seen to get whose token counts the
            data decide, by path; these appear in ``layers`` once for each count of a ladder.
    """

    layers: list[tuple[str, Problem]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    inputs: dict[tuple[str, Problem], int] = field(default_factory=dict)
    varying: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """The distinct problems, in order of first appearance."""
        return list(self.uses)

    @property
    def uses(self) -> Counter[Problem]:
        """How many layers share each problem."""
        return Counter(problem for _, problem in self.layers)

    def changed(self, change: Callable[[Problem], Problem]) -> Capture:
        """The same layers with other problems."""
        layers = [(name, change(problem)) for name, problem in self.layers]
        inputs = {(name, change(problem)): x for (name, problem), x in self.inputs.items()}
        return _distinct(Capture(layers, self.left, self.notes, self.sizes, inputs, self.varying))

    def at(self, tokens: Sequence[int]) -> Capture:
        """The same layers at other token counts."""
        layers = [(name, problem.at(count)) for name, problem in self.layers for count in tokens]
        inputs = {(n, p.at(count)): x for (n, p), x in self.inputs.items() for count in tokens}
        return _distinct(Capture(layers, self.left, self.notes, tuple(tokens), inputs))


def capture(
    target: Target,
    *,
    device: str,
    batch_size: int | None = None,
    seq_len: int | None = None,
    tokens: Sequence[int] = (),
    autocast: torch.dtype | None = None,
) -> Capture:
    """The problems that a target will pose in training.

    Args:
        target: its code is run, without numbers.
        device: type of the device that will train it.
        batch_size: of the run, :data:`DEFAULT_BATCH_SIZE` unless given.
        seq_len: of the run; the target's own unless given.
        tokens: counts to tune for, instead of those that the run shows.
        autocast: its dtype while training, None where it is off.

    Raises:
        AutoloraError: no LoRA layer poses a problem.
    """
    batch, length = batch_size or DEFAULT_BATCH_SIZE, seq_len or target.seq_len
    assumed = [batch * length]
    if target.inputs is None:
        found = model_problems(target.model, tokens or assumed, autocast, device)
        if not tokens:
            found.notes.append(
                "the file has no example_inputs(batch_size, seq_len): every layer is taken to get "
                f"{batch * length} tokens, {batch} sequences of {length}"
            )
    else:
        given = example_of(target.inputs, batch, length)
        try:
            found = run_problems(target.model, given, autocast, device)
        except Exception as error:  # whatever a model does that cannot run without numbers
            found = model_problems(target.model, tokens or assumed, autocast, device)
            note = f"the model cannot be run without its numbers ({one_line(error)})"
            found.notes.append(
                f"{note}: every layer is taken to get {batch * length} tokens, {batch} of {length}"
                if not tokens
                else f"{note}: which layers need the gradient of their input is assumed"
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
    """The problems of a model's LoRA layers at some token counts, without running it.

    Nothing tells which layers need no gradient of their input. The first ones seldom do, since what
    feeds them is frozen: those that share the first layer's parent and its ``in_features`` are
    taken to pose both problems.

    Args:
        model: any module with LoRA layers.
        tokens: counts that each layer gets.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.
    """
    found = Capture(left=left_layers(model), sizes=tuple(tokens))
    layers = adapted_layers(model)
    first = [each for each in layers if _reads_the_same(each, layers[0])]
    for layer in layers:
        weights = tuple(name for name, w in layer.weights.items() if w.requires_grad)
        for needs in (weights, ("X", *weights)) if layer in first else (("X", *weights),):
            for count in tokens:
                _note(found, layer, count, needs, autocast, device)
    return _distinct(found)


def run_problems(
    model: nn.Module, inputs: Any, autocast: torch.dtype | None = None, device: str | None = None
) -> Capture:
    """The problems that a model's LoRA layers pose in one training forward pass.

    The model's code runs in train mode with gradients enabled, but without its numbers, see
    :mod:`autolora.capture.fakes`. Where chance stood in for numbers it runs a second time: layers
    that then get other token counts, as the experts of a mixture do, are given a ladder of counts.

    Args:
        model: any module with LoRA layers; nothing of it is changed.
        inputs: a tensor, or a tuple or mapping of the arguments of its forward.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.

    Raises:
        Exception: the model raised before every LoRA layer was called.
    """
    found, mode = _run(model, inputs, autocast, device, seed=0)
    if not mode.drawn:
        return found
    again, _ = _run(model, inputs, autocast, device, seed=1)
    weights = {layer.name: layer.weights for layer in adapted_layers(model)}
    sizes = {name: (own["A"].shape[1], own["B"].shape[0]) for name, own in weights.items()}
    return _joined(found, again, ladders((found.layers, again.layers), sizes, mode.rows or None))


def _run(
    model: nn.Module, inputs: Any, autocast: torch.dtype | None, device: str | None, seed: int
) -> tuple[Capture, Fakes]:
    """What one run shows."""
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
                read = x.to(getattr(torch, problem.dtype))  # what autocast casts is nobody else's
                found.inputs.setdefault((layer.name, problem), tensors.number(read))
        return x.dtype if layer.quantised else active or layer.base_dtype

    mode = Fakes()
    with (
        without_weights(model, mode),
        running(mode, seed),
        torch.enable_grad(),
        autocasting("cpu", autocast),
        autocasting(asked, autocast),
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
    """Two runs as one, with ladders for the layers whose token counts the data decide."""
    joined = Capture(varying={name: (each.least, each.most) for name, each in varying.items()})

    def rungs(name: str, problem: Problem) -> list[Problem]:
        return varying[name].instead_of(problem) if name in varying else [problem]

    unseen = [(name, problem) for name, each in varying.items() for problem in each.problems]
    for name, problem in (*found.layers, *again.layers, *unseen):
        joined.layers += [(name, rung) for rung in rungs(name, problem)]
    called = {name for name, _ in joined.layers}
    joined.left = [
        (name, why)
        for name, why in found.left + again.left
        if not (why == _NOT_CALLED and name in called) and not (why == _EMPTY and name in varying)
    ]
    later = len(found.inputs)  # numbers of the second run are other tensors
    for inputs, offset in ((found.inputs, 0), (again.inputs, later)):
        for (name, problem), number in inputs.items():
            for rung in rungs(name, problem):
                joined.inputs.setdefault((name, rung), number + offset)
    return _distinct(joined)


def _distinct(found: Capture) -> Capture:
    found.layers = list(dict.fromkeys(found.layers))
    found.left = list(dict.fromkeys(found.left))
    return found


def _reads_the_same(layer: AdaptedLayer, first: AdaptedLayer) -> bool:
    def parent(name: str) -> str:
        return name.rpartition(".")[0]

    def width(layer: AdaptedLayer) -> int:
        return layer.weights["A"].shape[1]

    return parent(layer.name) == parent(first.name) and width(layer) == width(first)


def _note(
    found: Capture,
    layer: AdaptedLayer,
    tokens: int,
    gradients: Sequence[str],
    autocast: torch.dtype | None,
    device: str | None,
) -> Problem | None:
    try:
        problem = layer.problem(tokens, gradients=gradients, autocast=autocast, device=device)
    except ValueError as error:  # a dtype or a device that no graphs exist for
        found.left.append((layer.name, str(error)))
        return None
    found.layers.append((layer.name, problem))
    return problem
