"""Which problems a model poses: seen in one run of it, or taken from its layers without running it.

A run tells how many tokens reach each LoRA layer and which layers need no gradient of their input,
as the first of a frozen model do not. On the meta device it allocates nothing and computes nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.problem import Problem
from autolora.tuning.model_file import one_line
from autolora.tuning.target import DEFAULT_BATCH_SIZE, Target
from autolora.tuning.watch import Tensors, autocasting, train_mode, watched

logger = logging.getLogger("autolora")


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
    """

    layers: list[tuple[str, Problem]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    inputs: dict[tuple[str, Problem], int] = field(default_factory=dict)

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
        return _distinct(Capture(layers, self.left, self.notes, self.sizes, inputs))

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
        target: is run once on the meta device.
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
        given = target.inputs(batch, length)
        _check_inputs(given)
        try:
            found = run_problems(target.model, given, autocast, device)
        except Exception as error:  # whatever a model does that cannot run without data
            found = model_problems(target.model, tokens or assumed, autocast, device)
            note = f"the model cannot be run on the meta device ({one_line(error)})"
            found.notes.append(
                f"{note}: every layer is taken to get {batch * length} tokens, {batch} of {length}"
                if not tokens
                else f"{note}: which layers need the gradient of their input is assumed"
            )
        else:
            found = found.at(tokens) if tokens else found
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

    The model runs in train mode with gradients enabled. Its LoRA layers compute their base product
    only, so that it can be on the meta device.

    Args:
        model: any module with LoRA layers.
        inputs: a tensor, or a tuple or mapping of the arguments of its forward.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.

    Raises:
        Exception: the model raised before every LoRA layer was called.
    """
    found = Capture(left=left_layers(model))
    layers = adapted_layers(model)
    seen: set[str] = set()
    tensors = Tensors()
    kind = device or (layers[0].device.type if layers else "cpu")

    def note(layer: AdaptedLayer, x: Tensor) -> torch.dtype:
        seen.add(layer.name)
        active = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        leaves = {"X": x, **layer.weights}
        needs = tuple(name for name, leaf in leaves.items() if leaf.requires_grad)
        if x.dim() < 2 or not x.numel():
            _leave(found, layer, "its input has no tokens")
        elif active is None and not layer.quantised and x.dtype != layer.base_dtype:
            _leave(found, layer, f"its input is {x.dtype}, its base weight {layer.base_dtype}")
        else:
            needs = needs if torch.is_grad_enabled() else ()
            problem = _note(found, layer, x.numel() // x.shape[-1], needs, active, device)
            if problem is not None:
                read = x.to(getattr(torch, problem.dtype))  # what autocast casts is nobody else's
                found.inputs.setdefault((layer.name, problem), tensors.number(read))
        return active or layer.base_dtype

    with train_mode(model), watched(layers, note), torch.enable_grad(), autocasting(kind, autocast):
        try:
            _call(model, inputs)
        except Exception:
            if len(seen) < len(layers):
                raise
    found.left += [(each.name, "not called") for each in layers if each.name not in seen]
    return _distinct(found)


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
        _leave(found, layer, str(error))
        return None
    found.layers.append((layer.name, problem))
    return problem


def _leave(found: Capture, layer: AdaptedLayer, reason: str) -> None:
    found.left.append((layer.name, reason))


def _check_inputs(inputs: Any) -> None:
    if not isinstance(inputs, (Tensor, tuple, Mapping)):
        raise AutoloraError(
            "example_inputs must return a tensor, or a tuple or dict of the model's arguments, "
            f"not a {type(inputs).__name__}"
        )


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)
