"""The problems of a model: seen in one run of its code, or stated from its layers without a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from autolora.capture.forward import example_of
from autolora.capture.found import Capture, distinct, note_problem
from autolora.capture.hf_config import hf_inputs_of
from autolora.capture.run import run_problems
from autolora.capture.target import DEFAULT_BATCH_SIZE, Target
from autolora.capture.user_code import summary_of
from autolora.capture.varying import note_of
from autolora.errors import AutoloraError
from autolora.nn.adapted import AdaptedLayer, adapted_layers, left_layers
from autolora.nn.layer_state import layer_states
from autolora.nn.sharding.units import needs_other_ranks
from autolora.nn.sharding.whole import whole_parameters
from autolora.nn.siblings.family import families

_FEW = 64  # tokens of a sequence in a run that is not asked for token counts
_GRADIENTS = "which layers need the gradient of their input is assumed"

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
    model = target.model
    batch, length = batch_size or DEFAULT_BATCH_SIZE, seq_len or target.seq_len
    found, reasons = None, [target.lack]
    if target.inputs is not None:
        given = example_of(target.inputs, batch, length)
        try:
            found = run_problems(model, given, autocast, device)
        except Exception as error:  # of any model that cannot run without numbers
            reasons = [f"the model cannot be run without its numbers ({summary_of(error)})"]
    if found is None:
        made = _run_on_made_inputs(model, batch, length, autocast, device)
        if isinstance(made, str):
            reasons.append(made)
        else:
            found = made
            if target.inputs is not None:
                found.notes.append(f"{reasons[0]}: it is run on inputs made from its configuration")
    if found is None:
        reason = ", and ".join(filter(None, reasons))
        found = _without_a_run(model, tokens or [batch * length], autocast, device)
        if not tokens:
            found.notes.append(
                f"{reason}: every layer is taken to get {batch * length} tokens, {batch} "
                f"sequences of {length}"
            )
        elif target.inputs is not None or made:
            found.notes.append(f"{reason}: {_GRADIENTS}")
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
    """The problems of a model's LoRA layers at given token counts.

    Which layers need no gradient of their input, such as the first ones of a frozen model, and
    which get the same input is seen in a run of a model of transformers on inputs made from its
    configuration. Of another model it is not known: the layers with the first layer's parent and
    ``in_features`` get a problem for each case, and siblings are those of a step that was trained.

    Args:
        model: any module with LoRA layers.
        tokens: counts of each layer.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train it; where the weights are unless given.
    """
    made = _run_on_made_inputs(model, DEFAULT_BATCH_SIZE, None, autocast, device)
    if isinstance(made, Capture):
        found = made.at(tokens)
        found.siblings = families(model) or found.siblings
    else:
        found = _without_a_run(model, tokens, autocast, device)
        found.notes += [f"{made}: {_GRADIENTS}"] if made else []
    states = [state for _, state in layer_states(model)]
    if states and not any(state.policy.siblings for state in states):
        found.siblings = []
    return found


def _run_on_made_inputs(
    model: nn.Module,
    batch: int,
    length: int | None,
    autocast: torch.dtype | None,
    device: str | None,
) -> Capture | str:
    """What a run on inputs made from the model's configuration shows.

    Layers that it shows no problem of, such as those of images whose size is not known, are taken
    to get all tokens.

    Args:
        model: with LoRA layers.
        batch: sequences or images.
        length: of a sequence; None where token counts are not asked for.
        autocast: its dtype while training, None where it is off.
        device: type of the device that will train the model.

    Returns:
        Its problems; or why there are none, which is ``""`` if the model is not of transformers.
    """
    inputs = hf_inputs_of(model)
    if inputs is None:
        return ""
    sized = length is not None
    length = length or min(inputs.seq_len, _FEW)
    try:
        with whole_parameters(model):
            if needs_other_ranks(model):
                return ""
            found = run_problems(model, inputs.batch(batch, length), autocast, device)
    except Exception as error:  # of any model that cannot run on these, or without numbers
        made = "inputs made from its configuration"
        return f"the model cannot be run on {made} ({summary_of(error)})"
    found.notes += inputs.notes if sized else []
    seen = {name for name, _ in found.layers}
    unseen = [
        layer
        for layer in adapted_layers(model)
        if layer.name not in seen and not _reads_weights(model, layer.name)
    ]
    stated = _stated(unseen, [batch * length], autocast, device)
    if taken := {name for name, _ in stated.layers}:
        reasons = dict.fromkeys(reason for name, reason in found.left if name in taken)
        who = f"{len(taken)} layers, such as" if len(taken) > 1 else "layer"
        found.notes.append(
            f"{who} {stated.layers[0][0]}: {', '.join(reasons)} in a run on inputs made from the "
            "configuration; how it is called in training is assumed"
        )
        found.left = [each for each in found.left if each[0] not in taken]
    found.layers += stated.layers
    return found


def _reads_weights(model: nn.Module, name: str) -> bool:
    """Whether a layer belongs to torch's attention, which reads its weights and never calls it."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)


def _without_a_run(
    model: nn.Module, tokens: Sequence[int], autocast: torch.dtype | None, device: str | None
) -> Capture:
    """The problems of a model's layers at given token counts, as :func:`model_problems` assumes."""
    found = _stated(adapted_layers(model), tokens, autocast, device)
    found.left[:0] = left_layers(model)
    found.siblings = families(model)
    return replace(found, sizes=tuple(tokens))


def _stated(
    layers: Sequence[AdaptedLayer],
    tokens: Sequence[int],
    autocast: torch.dtype | None,
    device: str | None,
) -> Capture:
    """The problems of layers, the first ones with and without the gradient of their input."""
    found = Capture()
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
