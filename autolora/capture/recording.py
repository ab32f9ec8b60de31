"""Recording the problems of a model's LoRA layers in real training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autolora.capture.forward import eagerly
from autolora.capture.siblings import problem_of_siblings
from autolora.capture.varying import thinned
from autolora.errors import AutoloraError
from autolora.graphs.function import LayerTensors
from autolora.nn.adapted import (
    adapted_layers,
    is_wrapped_experts,
    lora_modules,
    weights_of_experts,
    why_never,
)
from autolora.nn.experts.call import call_of, problems_of_call
from autolora.nn.layer_state import LayerState
from autolora.nn.layer_tensors import PLAIN
from autolora.nn.linear import LoRALinear
from autolora.nn.sharding.whole import whole_parameters
from autolora.nn.siblings.inputs import SharedInputs
from autolora.nn.statement import problem_of_call
from autolora.objective import Objective
from autolora.problem import BaseProblem, at_loads


@dataclass(eq=False, slots=True)
class Recording:
    """The problems of a model's LoRA layers in training, for ``autolora.tune(recording)``.

    Problems that differ in many token counts alone are replaced by the least count, the largest,
    and the powers of two between; the timing cache interpolates between those.

    Args:
        model: that was recorded.
        calls: number of calls with each problem.
        families: number of times that layers got the very same tensor, by their problems.
        left: paths of LoRA layers with the reasons why some of their calls had no problem.
        untrained: number of calls without gradients, as in evaluation; these are not tuned.
        devices: that the calls ran on.
    """

    model: nn.Module
    calls: Counter[BaseProblem] = field(default_factory=Counter)
    families: Counter[tuple[BaseProblem, ...]] = field(default_factory=Counter)
    left: list[tuple[str, str]] = field(default_factory=list)
    untrained: int = 0
    devices: list[torch.device] = field(default_factory=list)

    @property
    def uses(self) -> Mapping[BaseProblem, int]:
        """The problems to tune, and the number of calls with each or with token counts near it."""
        siblings: dict[BaseProblem, int] = {
            problem: number
            for layers, number in self.families.items()
            if number and (problem := problem_of_siblings(layers)) is not None
        }
        calls = {**self.calls, **siblings}
        for seen in self.calls:
            for other in at_loads(seen):  # as it may come to be later
                calls.setdefault(other, 1)
        return thinned(calls)

    @property
    def objective(self) -> list[Objective]:
        """What the layers choose their graphs for."""
        policies = [layer.state.policy for layer in adapted_layers(self.model)]
        return list(dict.fromkeys(policy.wanted for policy in policies))

    @property
    def device(self) -> torch.device | None:
        """The device of all calls, None if there are several or none."""
        return self.devices[0] if len(self.devices) == 1 else None

    def __iter__(self) -> Iterator[BaseProblem]:
        return iter(self.uses)

    def __len__(self) -> int:
        return len(self.uses)

    def __str__(self) -> str:
        uses = self.uses
        lines = [f"autolora: {len(uses)} problems in {self.calls.total()} calls of LoRA layers"]
        shapes: dict[str, dict[int, int]] = {}
        for problem, number in uses.items():
            counts = shapes.setdefault(problem.family_text, {})
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
    """Records the problems of a model's LoRA layers while it is trained.

    For models whose input cannot be described ahead: run a few real training steps inside, then
    ``autolora.tune`` the recording. Nothing that the model computes changes. Calls without
    gradients, as in evaluation, are counted and left out. What torch.compile compiled before runs
    eagerly meanwhile; tune such a recording with ``compiled=True``::

        with autolora.record(model) as problems:
            train(model, steps=3)
        print(problems)
        autolora.tune(problems)

    Args:
        model: with LoRA layers, PEFT's (accelerated or not) or ours.

    Yields:
        The recording so far; it is complete after the block, also if that raises.

    Raises:
        AutoloraError: the model has no LoRA layers.
    """
    recording = Recording(model)
    shared: SharedInputs[tuple[str, BaseProblem]] = SharedInputs()
    hooks = []
    stack = ExitStack()
    try:
        stack.enter_context(eagerly())
        for name, module in _layers(model, recording):
            # after the call, when other hooks have changed its arguments; and also if it raises,
            # since checkpointing ends its last call by an exception
            hook = _hook(recording, shared, name)
            hooks.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))
        if not hooks and not recording.left:
            raise AutoloraError(
                f"this {type(model).__name__} has no LoRA layers to record; make some with "
                "peft.get_peft_model or autolora.add_lora"
            )
        yield recording
    finally:
        stack.close()
        for handle in hooks:
            handle.remove()


def _layers(model: nn.Module, recording: Recording) -> list[tuple[str, nn.Module]]:
    """The LoRA layers that may have problems; the others are added to ``recording.left``."""
    within: set[Any] = set()  # the wrappers inside another, which notes their problems
    found = []
    with whole_parameters(model):
        for name, module in lora_modules(model):
            if is_wrapped_experts(module):
                within.add(module.base_layer)
            if module in within:
                continue
            if reason := why_never(module):
                recording.left.append((name, reason))
            else:
                found.append((name, module))
    return found


def _current_tensors(module: Any) -> tuple[LayerTensors, float] | str:
    """The tensors of a layer and its dropout now, or why it has none."""
    if isinstance(module, LoRALinear):
        found = module._tensors_now()
    else:
        from autolora.nn.peft_internals import peft_tensors

        found = peft_tensors(module)
    return found if isinstance(found, str) else (found[0], found[2])


def _hook(recording: Recording, shared: SharedInputs[tuple[str, BaseProblem]], name: str) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            recording.untrained += 1
            return
        with whole_parameters(module):  # one that is sharded by itself is so again
            note_call(module, args, kwargs)

    def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_wrapped_experts(module):
            _note_experts(recording, name, module, args, kwargs)
            return
        x, *more = (*args, *kwargs.values())
        if more:
            names = ", ".join(name for name in kwargs if name != "x") or "more arguments"
            problem: BaseProblem | str = f"its forward was given {names}"
        else:
            problem = _problem_of(x, module)
        if isinstance(problem, str):
            if (name, problem) not in recording.left:
                recording.left.append((name, problem))
        elif not problem.gradients:
            recording.untrained += 1
        else:
            recording.calls[problem] += 1
            _note_siblings(recording, shared, module, x, (name, problem))
            if x.device not in recording.devices:
                recording.devices.append(x.device)

    return note


def _note_experts(
    recording: Recording, name: str, wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Notes the problems of a call of experts, those of all wrappers around them."""
    found = weights_of_experts(wrapper)
    problems: Any = found
    if not isinstance(found, str):
        call = call_of(args[0] if args else None, args[1:], kwargs)
        problems = call if isinstance(call, str) else problems_of_call(*found, call)
    if isinstance(problems, str):
        if problems and (name, problems) not in recording.left:
            recording.left.append((name, problems))
        return
    for problem in problems.values():
        if problem.gradients:
            recording.calls[problem] += 1
        else:
            recording.untrained += 1
    if args[0].device not in recording.devices:
        recording.devices.append(args[0].device)


def _note_siblings(
    recording: Recording,
    shared: SharedInputs[tuple[str, BaseProblem]],
    module: nn.Module,
    x: Tensor,
    layer: tuple[str, BaseProblem],
) -> None:
    """Notes that a layer got the same tensor as those before it, if it did."""
    state = getattr(module, "_autolora", None)
    if state is not None and not state.policy.siblings:
        return
    together = shared.note(x, layer)
    if len({path for path, _ in together}) == len(together) > 1:
        problems = tuple(problem for _, problem in together)
        recording.families[problems] += 1
        if len(problems) > 2:
            recording.families[problems[:-1]] -= 1


def _problem_of(x: Tensor, module: nn.Module) -> BaseProblem | str:
    """The problem of a call, or why there is none."""
    found = _current_tensors(module)
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
    state = getattr(module, "_autolora", None) or LayerState()
    return problem_of_call(x, tensors, p, state.policy.compute_dtype)
