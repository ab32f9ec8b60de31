"""``autolora.tune``: measuring a model, or problems, from Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from autolora.errors import AutoloraError
from autolora.nn.adapted import adapted_layers, left_layers
from autolora.nn.intent import default_objective, objective_of
from autolora.nn.plan import refresh
from autolora.problem import DEVICES, Problem
from autolora.tuning.capture import model_problems
from autolora.tuning.tuner import TuneResult, tune_problems


def tune(
    model_or_problems: nn.Module | Problem | Iterable[Problem],
    *,
    tokens: int | Iterable[int] | None = None,
    effort: str = "normal",
    budget: float | None = None,
    cache: Path | str | None = None,
    objective: str | None = None,
    max_saved_bytes: int | None = None,
) -> TuneResult:
    """Times the valid graphs of every problem that is not in the cache file yet.

    The layers of a model that was passed use the new timings from their next call on. Under an
    active ``torch.autocast`` it tunes for that autocast, without one for training without.

    Args:
        model_or_problems: a model with LoRA layers, PEFT's or ours, or problems.
        tokens: rows that a layer gets in one step, usually batch size × sequence length; one or
            several numbers. Needed for a model, not allowed with problems.
        effort: ``"quick"``, ``"normal"`` or ``"thorough"``.
        budget: seconds for the whole run; what was not begun by then is reported as unfinished.
        cache: the file to write; the first of the search path unless given.
        objective: what graphs are chosen for: ``"time"``, ``"memory"`` or ``"accuracy"``, see
            :class:`~autolora.objective.Objective`. That of the model's layers unless given; for
            problems that of the environment variable ``AUTOLORA_OBJECTIVE``, or time.
        max_saved_bytes: that one call of a layer may keep for its backward pass; likewise.

    Returns:
        The records measured now and those skipped.

    Raises:
        AutoloraError: no LoRA layers, no tokens, or an argument out of range; unwritable cache.
    """
    given = objective_of(objective, max_saved_bytes)
    if not isinstance(model_or_problems, nn.Module):
        if tokens is not None:
            raise AutoloraError("tokens go with a model; a problem has its own")
        problems = model_or_problems
        listed = [problems] if isinstance(problems, Problem) else list(problems)
        result = tune_problems(
            listed,
            effort=effort,
            budget=budget,
            cache=cache,
            objective=given or default_objective(),
        )
        refresh()
        return result
    model = model_or_problems
    counts = _counts(tokens)
    layers = adapted_layers(model)
    if not layers:
        raise AutoloraError(
            f"this {type(model).__name__} has no LoRA layer that can be tuned"
            + "".join(f"; {name}: {reason}" for name, reason in left_layers(model)[:3])
        )
    device = layers[0].device
    if device.type not in DEVICES:
        raise AutoloraError(
            f"the model is on {device}; move it to the {' or '.join(DEVICES)} device that will "
            "train it, or tune ahead with the command autolora tune"
        )
    on = torch.is_autocast_enabled(device.type)
    capture = model_problems(model, counts, torch.get_autocast_dtype(device.type) if on else None)
    own = list(dict.fromkeys(layer.site.wanted for layer in layers))
    result = tune_problems(
        capture.problems,
        effort=effort,
        budget=budget,
        cache=cache,
        device=device,
        objective=own if given is None else given,
    )
    refresh(model)
    return result


def _counts(tokens: int | Iterable[int] | None) -> list[int]:
    counts = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if not counts or not all(type(count) is int and count >= 1 for count in counts):
        raise AutoloraError(
            "tokens must be the rows that a layer gets in one step, usually batch size × sequence "
            f"length, as one or several whole numbers of at least 1, not {tokens!r}"
        )
    return [count for count in counts if count is not None]
