"""``autolora.tune``: tunes a model, a recording or problems from Python."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from autolora.capture.capture import model_problems
from autolora.capture.recording import Recording
from autolora.capture.tokens import Tokens
from autolora.errors import AutoloraError
from autolora.nn.adapted import adapted_layers, left_layers
from autolora.nn.choosing import refresh
from autolora.nn.defaults import default_objective, objective_of
from autolora.nn.freezing.freeze import freeze_anew
from autolora.nn.siblings.family import make_families
from autolora.objective import Objective
from autolora.problem import COMPILED, DEVICES, BaseProblem
from autolora.timing.compiling import mode_from, require_compiler
from autolora.timing.device import device_for
from autolora.timing.effort import ESTIMATE
from autolora.timing.kinds import forget
from autolora.tuning.advice import measured_advice
from autolora.tuning.result import TuneResult
from autolora.tuning.tuner import tune_problems

logger = logging.getLogger("autolora")


@dataclass(frozen=True, slots=True)
class _Asked:
    """The arguments of :func:`~autolora.tuning.tuner.tune_problems` for a target."""

    problems: list[BaseProblem]
    objective: Objective | list[Objective]  # unless the caller gives another
    device: torch.device | None = None
    model: nn.Module | None = None  # whose layers use the new timings immediately
    weights: Mapping[BaseProblem, int] | None = None
    between: bool = False

    def compiled(self) -> _Asked:
        """The same problems, compiled."""
        weights = self.weights and {
            p.in_mode(COMPILED): n for p, n in self.weights.items() if COMPILED in p.modes
        }
        problems = [p.in_mode(COMPILED) for p in self.problems if COMPILED in p.modes]
        return replace(self, problems=problems, weights=weights)


def tune(
    model_or_problems: nn.Module | Recording | BaseProblem | Iterable[BaseProblem],
    *,
    tokens: int | str | Iterable[int] | None = None,
    effort: str = "normal",
    budget: float | None = None,
    cache: Path | str | None = None,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
    compiled: bool | str = False,
) -> TuneResult:
    """Times the valid graphs of every problem that is not in the cache file yet.

    A model of transformers is run without its numbers, on inputs made from its configuration, to
    see which layers need the gradient of their input, and which share it.

    The layers of a tuned or recorded model use the new timings from their next call on, unless the
    user has frozen them (see :func:`~autolora.freeze`). A model is tuned for the ``torch.autocast``
    that is active now, a recording for what was recorded.

    Args:
        model_or_problems: a model with LoRA layers (PEFT's or autolora's), a recording of
            ``autolora.record``, or problems.
        tokens: rows that a layer gets in one step, usually batch size × sequence length; one or
            several numbers, or a range such as ``"512:8192"``, in which counts are added where the
            winner changes. Required for a model, not allowed otherwise.
        effort: ``"quick"``, ``"normal"`` or ``"thorough"``; ``"estimate"`` times and writes nothing
            and returns the graphs that run without measurements.
        budget: seconds for the whole run, most of them for the layers that take most time; problems
            not begun by then are reported as unfinished.
        cache: file to write; defaults to the first of the search path.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``, see
            :class:`~autolora.objective.Objective`. Defaults to that of the model's layers; for
            problems to the environment variable ``AUTOLORA_OBJECTIVE``, then to time.
        max_saved_bytes: limit on the bytes that one call of a layer keeps for its backward pass;
            defaults as ``objective``.
        compiled: measure the layers as torch.compile runs them, for a model that is compiled where
            it is trained; True for its default mode, or the name of a mode. Each graph is compiled
            as a layer of its own, which takes seconds.

    Returns:
        The new records and those skipped.

    Raises:
        AutoloraError: no LoRA layers, no tokens, nothing recorded, an argument out of range,
            torch.compile does not work here, or the cache cannot be written.
    """
    mode = mode_from(compiled)
    given = objective_of(objective, max_saved_bytes)
    if isinstance(model_or_problems, nn.Module):
        asked = _of_model(model_or_problems, Tokens.of(tokens))
    elif tokens is not None:
        raise AutoloraError("tokens go with a model; a problem has its own")
    elif isinstance(model_or_problems, Recording):
        asked = _of_recording(model_or_problems)
    else:
        problems = model_or_problems
        listed = [problems] if isinstance(problems, BaseProblem) else list(problems)
        asked = _Asked(listed, default_objective())
    if compiled:
        asked = asked.compiled()
        if effort != ESTIMATE:
            for device in {device_for(problem, asked.device) for problem in asked.problems}:
                require_compiler(device)
    result = tune_problems(
        asked.problems,
        effort=effort,
        budget=budget,
        cache=cache,
        device=asked.device,
        objective=asked.objective if given is None else given,
        weights=asked.weights,
        between=asked.between,
        compile_mode=mode,
    )
    advice = measured_advice(
        result, asked.weights or {}, device=asked.device, budget=budget, compile_mode=mode
    )
    forget()
    if advice:
        logger.warning("autolora: %s", advice)
    refresh(asked.model)
    if asked.model is not None:
        freeze_anew(asked.model)
    return result


def _of_model(model: nn.Module, tokens: Tokens) -> _Asked:
    layers = adapted_layers(model)
    if not layers:
        raise AutoloraError(
            f"this {type(model).__name__} has no LoRA layer that can be tuned"
            + "".join(f"; {name}: {reason}" for name, reason in left_layers(model)[:3])
        )
    if (device := layers[0].device).type not in DEVICES:
        raise AutoloraError(
            f"the model is on {device}; move it to the {' or '.join(DEVICES)} device that will "
            "train it, or tune ahead with the command autolora tune"
        )
    on = torch.is_autocast_enabled(device.type)
    autocast = torch.get_autocast_dtype(device.type) if on else None
    capture = model_problems(model, tokens.counts, autocast)
    for note in capture.notes:
        logger.warning("%s", note)
    if not capture.problems:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in capture.left))
        raise AutoloraError(f"no LoRA layer of this model can be tuned: {reasons}")
    wanted = list(dict.fromkeys(layer.state.policy.wanted for layer in layers))
    make_families(model, capture.siblings)
    return _Asked(capture.problems, wanted, device, model, capture.uses, tokens.ranged)


def _of_recording(recording: Recording) -> _Asked:
    if not len(recording):
        raise AutoloraError(
            "nothing was recorded: no LoRA layer ran in training inside the with-block"
            + (f"; {recording.untrained} calls needed no gradient" if recording.untrained else "")
            + "".join(f"; {name}: {reason}" for name, reason in recording.left[:3])
        )
    uses = recording.uses
    return _Asked(list(uses), recording.objective, recording.device, recording.model, uses)
