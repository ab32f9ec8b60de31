"""Recording the problems that the LoRA layers of a model pose in real training steps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.varying import thinned
from autolora.errors import AutoloraError
from autolora.graphs.function import LayerTensors
from autolora.nn.adapted import adapted_layers
from autolora.nn.dispatch import LayerState, problem_of
from autolora.nn.layer_tensors import PLAIN, plain_tensors
from autolora.nn.linear import LoRALinear
from autolora.objective import Objective
from autolora.problem import Problem

Found = (
    tuple[LayerTensors, float] | str
)  # the tensors of a layer and its dropout now, or why it has none


@dataclass(eq=False, slots=True)
class Recording:
    """The problems of a model's LoRA layers in training, ready for ``autolora.tune(recording)``.

    Where calls differ in their token counts alone, and in more than a few of them, it holds a
    ladder instead: the least count, the largest, and the powers of two between. The timing cache
    answers for the counts between those.

    Args:
        model: the recorded one.
        calls: how often each problem was posed, as it was posed.
        left: paths of LoRA layers with the reasons why calls of theirs posed none.
        untrained: calls that needed no gradient, as in evaluation; these are not tuned.
        devices: where the calls ran.
    """

    model: nn.Module
    calls: Counter[Problem] = field(default_factory=Counter)
    left: list[tuple[str, str]] = field(default_factory=list)
    untrained: int = 0
    devices: list[torch.device] = field(default_factory=list)

    @property
    def uses(self) -> Mapping[Problem, int]:
        """The problems to tune, and how often each was posed; on a ladder, how often near it."""
        return thinned(self.calls)

    @property
    def objective(self) -> list[Objective]:
        """What the layers choose their graphs for."""
        return list(dict.fromkeys(layer.state.wanted for layer in adapted_layers(self.model)))

    @property
    def device(self) -> torch.device | None:
        """Where the layers ran, None where they ran in several places or nowhere."""
        return self.devices[0] if len(self.devices) == 1 else None

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.uses)

    def __len__(self) -> int:
        return len(self.uses)

    def __str__(self) -> str:
        uses = self.uses
        lines = [f"autolora: {len(uses)} problems in {sum(uses.values())} calls of LoRA layers"]
        shapes: dict[str, dict[int, int]] = {}
        for problem, number in uses.items():
            counts = shapes.setdefault(
                f"{problem.in_features}→{problem.out_features} rank {problem.rank} {problem.kind}",
                {},
            )
            counts[problem.tokens] = counts.get(problem.tokens, 0) + number
        for shape, counts in shapes.items():
            tokens = ", ".join(f"{count} (×{counts[count]})" for count in sorted(counts))
            lines.append(f"  {shape}: tokens {tokens}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left:
            reasons.setdefault(reason, []).append(name)
        lines += [
            f"  left: {len(names)} × {reason} ({names[0]}{', …' if len(names) > 1 else ''})"
            for reason, names in reasons.items()
        ]
        if self.untrained:
            lines.append(f"  {self.untrained} calls needed no gradient: these are not tuned")
        return "\n".join(lines)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Records which problems the LoRA layers of a model pose while it is trained.

    For models whose input no one can describe ahead: run a few real training steps inside, then
    ``autolora.tune`` what was recorded. Nothing that the model computes changes. Calls without
    gradients, as in evaluation, are counted and left out::

        with autolora.record(model) as problems:
            train(model, steps=3)
        print(problems)
        autolora.tune(problems)

    Args:
        model: with LoRA layers, PEFT's (accelerated or not) or ours.

    Yields:
        What was recorded so far; complete behind the block, also if an exception left it.

    Raises:
        AutoloraError: the model has no LoRA layers.
    """
    recording = Recording(model)
    hooks = []
    try:
        for name, module, tensors_of in _layers(model, recording):
            # behind the call, when all that others change of its arguments is done; and whatever
            # becomes of it, since checkpointing leaves the last one by an exception
            hook = _hook(recording, name, tensors_of)
            hooks.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))
        if not hooks and not recording.left:
            raise AutoloraError(
                f"this {type(model).__name__} has no LoRA layers to record; make some with "
                "peft.get_peft_model or autolora.add_lora"
            )
        yield recording
    finally:
        for handle in hooks:
            handle.remove()


def _layers(
    model: nn.Module, recording: Recording
) -> Iterator[tuple[str, nn.Module, Callable[[Any], Found]]]:
    """The LoRA layers that may pose problems; the recording is told of the others."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module, _our_tensors
    if "peft" in sys.modules:  # a model of PEFT's cannot exist before
        from autolora.nn.peft import lora_layers, why_left

        for name, module in lora_layers(model):
            if reason := why_left(module):
                recording.left.append((name, reason))
            else:
                yield name, module, _peft_tensors


def _our_tensors(module: LoRALinear) -> Found:
    tensors = plain_tensors(module.base_layer, module.lora_A, module.lora_B)
    return tensors if isinstance(tensors, str) else (tensors, module.dropout * module.training)


def _peft_tensors(module: Any) -> Found:
    from autolora.nn.peft import peft_tensors

    found = peft_tensors(module)
    return found if isinstance(found, str) else (found[0], found[2])


def _hook(recording: Recording, name: str, tensors_of: Callable[[Any], Found]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            recording.untrained += 1
            return
        x, *more = (*args, *kwargs.values())
        if more:
            names = ", ".join(name for name in kwargs if name != "x") or "more arguments"
            problem: Problem | str = f"its forward was given {names}"
        else:
            problem = _posed(x, tensors_of(module), module)
        if isinstance(problem, str):
            if (name, problem) not in recording.left:
                recording.left.append((name, problem))
        elif not problem.gradients:
            recording.untrained += 1
        else:
            recording.calls[problem] += 1
            if x.device not in recording.devices:
                recording.devices.append(x.device)

    return note


def _posed(x: Tensor, found: Found, module: nn.Module) -> Problem | str:
    """The problem of a call, or why it poses none; what is said of it when it runs as a graph."""
    if isinstance(found, str):
        return found
    tensors, p = found
    if type(x) not in PLAIN:
        return f"its input is a {type(x).__name__}"
    if p and not x.is_contiguous():
        return "dropout of an input that is not contiguous"
    own = None if isinstance(tensors[0], Tensor) else getattr(tensors[0], "compute_dtype", None)
    if own is not None and x.dtype != own:  # a quantised layer casts it first
        x = x.new_empty((), dtype=own).expand(x.shape).requires_grad_(x.requires_grad)
    return problem_of(getattr(module, "_autolora", None) or LayerState(), x, tensors, p)
