"""The problems of a model: seen in one run of its code, or stated from its layers without a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from autolora.capture.forward import example_of
from autolora.capture.found import Capture, distinct, note_problem
from autolora.capture.hf_config import inputs_of
from autolora.capture.run import run_problems
from autolora.capture.target import DEFAULT_BATCH_SIZE, Target
from autolora.capture.user_code import summary_of
from autolora.capture.varying import note_of
from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.nn.layer_state import layer_states
from autolora.nn.siblings.family import families

_FEW = 8  # tokens of the example that shows which layers share their input

logger = logging.getLogger("autolora")


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
    found, problem = None, target.lack
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
    Which layers are siblings is known once the model has been trained for a step, and of a model of
    transformers also from a run of its code on an example of one word.

    Args:
        model: any module with LoRA layers.
        tokens: counts of each layer.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.
    """
    found = Capture(left=left_layers(model), sizes=tuple(tokens), siblings=_siblings(model))
    layers = adapted_layers(model)
    first = layers and _parent_and_width(layers[0])
    for layer in layers:
        weights = tuple(name for name, w in layer.weights.items() if w.requires_grad)
        either = _parent_and_width(layer) == first
        for needs in (weights, ("X", *weights)) if either else (("X", *weights),):
            for count in tokens:
                note_problem(found, layer, count, needs, autocast, device)
    return distinct(found)


def _parent_and_width(layer: AdaptedLayer) -> tuple[str, int]:
    return layer.name.rpartition(".")[0], layer.weights["A"].shape[1]


def _siblings(model: nn.Module) -> list[tuple[str, ...]]:
    """The layers that get the very same tensor, as far as that is known without an example."""
    states = [state for _, state in layer_states(model)]
    if states and not any(state.policy.siblings for state in states):
        return []
    if known := families(model):
        return known
    try:
        inputs = inputs_of(model, 1, _FEW)
        return [] if inputs is None else run_problems(model, inputs).siblings
    except Exception as error:  # of any model that cannot run without numbers
        logger.info("which layers share their input is not known: %s", summary_of(error))
        return []
