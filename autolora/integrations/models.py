"""The models that a script makes with PEFT, accelerated as they are made."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autolora.integrations.injection import each_model

if TYPE_CHECKING:
    from autolora.integrations.first_steps import FirstSteps


@dataclass(slots=True)
class ScriptModels:
    """Accelerates the models that a script makes, and counts what they run.

    torch and PEFT are imported when the script has imported them, not before.

    Args:
        compute_dtype: its name, None for PEFT's.
        objective: what graphs are chosen for, None for the default.
        max_saved_bytes: limit of a layer, None for the default.
        budget: seconds to tune the models in their first steps, None not to.
        report: whether models are kept for a report on each of their layers.
        told: is called with each line that a user should read.
    """

    compute_dtype: str | None = None
    objective: str | None = None
    max_saved_bytes: int | None = None
    budget: float | None = None
    report: bool = False
    told: Callable[[str], None] = lambda line: None
    kept: list[Any] = field(default_factory=list)
    _left: Counter[str] = field(default_factory=Counter)
    _failed: Counter[str] = field(default_factory=Counter)
    _number: int = 0
    _first: FirstSteps | None = None
    _undo: ExitStack = field(default_factory=ExitStack)
    _seen: Any = field(default_factory=weakref.WeakSet)  # models
    _made: Any = field(default_factory=weakref.WeakSet)  # states of their layers
    _lock: Any = field(default_factory=threading.RLock)

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Within the block every model is accelerated as it is made."""
        with self._undo, each_model(self.take):
            yield

    def take(self, model: Any) -> None:
        """Accelerates a model into which PEFT has put adapters. Never raises."""
        from autolora.errors import AutoloraError

        try:
            with self._lock:
                self._take(model)
        except AutoloraError as error:
            self._failed[str(error)] += 1  # it has no LoRA layer, or the arguments do not fit
        except Exception as error:  # whatever it is, the script goes on
            self._failed[f"{type(error).__name__}: {error}"] += 1

    def _take(self, model: Any) -> None:
        from autolora.nn.layer_state import layer_states

        states = [state for _, state in layer_states(model)]
        if all(state in self._made for state in states):
            left = self._accelerate(model)
            self._made.update(state for _, state in layer_states(model))
        else:
            left = []  # the script itself says how its layers run
        if model not in self._seen:
            self._seen.add(model)
            self._number += 1
            self._left.update(reason for _, reason in left)
            if self.report:
                self.kept.append(model)
        self._follow().watch(model)

    def _accelerate(self, model: Any) -> list[tuple[str, str]]:
        """Accelerates a model; returns the layers that are left, each with the reason."""
        import torch

        from autolora.nn.peft import accelerate

        dtype = None if self.compute_dtype is None else getattr(torch, self.compute_dtype)
        return accelerate(
            model,
            compute_dtype=dtype,
            objective=self.objective,
            max_saved_bytes=self.max_saved_bytes,
        ).left

    def _follow(self) -> FirstSteps:
        if self._first is None:
            import torch
            from torch.optim.optimizer import register_optimizer_step_post_hook

            from autolora.integrations.first_steps import FirstSteps

            first = self._first = FirstSteps(self.budget, told=self.told)

            def stepped(*_: Any) -> None:
                if not torch.compiler.is_compiling():
                    first.step()

            self._undo.callback(first.pause)
            self._undo.callback(register_optimizer_step_post_hook(stepped).remove)
        return self._first

    @property
    def missed(self) -> bool:
        """Whether layers ran graphs that were not measured, since they were last tuned."""
        return self._first is not None and self._first.missed > 0

    @property
    def waits(self) -> bool:
        """Whether a model has run that is to be tuned and is not yet."""
        return self._first is not None and self._first.waits

    def summary(self) -> list[str]:
        """What was accelerated and what it has run, in a few sentences."""
        failed = [f"not accelerated: {number} × {why}" for why, number in self._failed.items()]
        if self._first is None:
            return failed or ["nothing was accelerated: the script made no PEFT model"]
        usage = self._first.usage
        models = f"{self._number} model{'s' * (self._number > 1)}"
        parts = [f"{usage.layers} LoRA layers of {models} accelerated; {usage}"]
        if self._left:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in self._left.items())
            parts.append(f"left to PEFT: {reasons}")
        return [*parts, *failed]
