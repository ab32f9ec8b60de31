"""Tuning in a training run: its first steps are recorded, and what is missing is measured."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autolora.capture.recording import Recording, record
from autolora.capture.siblings import problem_of_siblings
from autolora.errors import AutoloraError
from autolora.integrations import STEPS
from autolora.integrations.usage import Usage, usage_of
from autolora.nn.choosing import decide, refresh
from autolora.nn.freezing.agreement import in_group
from autolora.nn.freezing.freeze import freeze_anew, freeze_in_group
from autolora.nn.layer_state import LayerState, Policy, layer_states
from autolora.nn.strict import misses_expected
from autolora.problem import COMPILED, EAGER, BaseProblem
from autolora.timing.device import device_for
from autolora.tuning.entry import tune
from autolora.tuning.payback import Payback

logger = logging.getLogger("autolora")


@dataclass(slots=True)
class FirstSteps:
    """Follows the training steps of models; records the first ones and tunes, if that is wanted.

    One step passes before recording begins: in it the layers find their siblings, and torch.compile
    compiles them where it is used. In a process group rank 0 tunes for what it has recorded, and
    all ranks run its graphs.

    Args:
        budget: seconds that tuning may take; None does not tune.
        steps: that are recorded.
        told: is called with each line that a user should read.
        paybacks: what each tuning cost and saves.
        earlier: what the layers ran before they chose their graphs anew.
    """

    budget: float | None = None
    steps: int = STEPS
    told: Callable[[str], None] = logger.warning
    paybacks: list[Payback] = field(default_factory=list)
    earlier: Usage = field(default_factory=Usage)
    _states: list[LayerState] = field(default_factory=list)
    _models: list[weakref.ref[nn.Module]] = field(default_factory=list)  # that are not tuned yet
    _recordings: list[Recording] = field(default_factory=list)
    _recorded: int = 0
    _calls: int = 0
    _recording: ExitStack = field(default_factory=ExitStack)

    def watch(self, model: nn.Module) -> None:
        """Follows a model whose layers are accelerated."""
        known = {id(state) for state in self._states}
        new = [state for _, state in layer_states(model) if id(state) not in known]
        self._states += new
        if new and all(other() is not model for other in self._models):
            self._models.append(weakref.ref(model))
            if self.budget is not None:
                self._recording.enter_context(misses_expected())

    @property
    def usage(self) -> Usage:
        """What all layers have run so far."""
        return self.earlier + usage_of(self._states)

    @property
    def missed(self) -> int:
        """How many calls since the layers last chose their graphs had none that was measured."""
        return usage_of(self._states).missed

    def step(self) -> None:
        """To be called after every step of an optimizer. Never raises."""
        if not self._models:
            return
        try:
            self._step()
        except Exception:  # whatever it is, the training goes on
            logger.warning("autolora: the run is not tuned", exc_info=True)
            self.close()

    def close(self) -> None:
        """Ends a recording that has begun, and follows no model any more."""
        self._recording.close()
        self._models.clear()
        self._recordings.clear()

    def _step(self) -> None:
        models = [model for each in self._models if (model := each()) is not None]
        if not self._recordings:
            if not any(_has_run(state) for model in models for _, state in layer_states(model)):
                return
            for model in models:
                _agree(model)
            if self.budget is None:
                self._models.clear()
                return
            self._recordings = [self._recording.enter_context(record(m)) for m in models]
            self._recorded = self._calls = 0
            return
        calls = sum(each.calls.total() for each in self._recordings)
        if calls == self._calls:
            return
        self._calls, self._recorded = calls, self._recorded + 1
        if self._recorded == self.steps:
            self._recording.close()
            self._tune()
            self.close()

    def _tune(self) -> None:
        assert self.budget is not None
        end = time.monotonic() + self.budget
        before = self.usage
        for recording in self._recordings:
            policies = [state.policy for _, state in layer_states(recording.model)]
            compiled = any(policy.traced for policy in policies)
            tuned = None
            if not in_group() or torch.distributed.get_rank() == 0:
                left = max(end - time.monotonic(), 1.0)
                devices = [d for d in recording.devices if d.type == "cuda"]
                with torch.random.fork_rng(devices):
                    tuned = self._measured(recording, left, compiled)
            if tuned is None:
                refresh(recording.model)
                freeze_anew(recording.model)
            policy = next(layer_states(recording.model))[1].policy
            saved = _saved_in(recording, policy, compiled=compiled) / self._recorded
            if tuned is not None:
                self.paybacks.append(Payback(tuned, saved))
                self.told(f"autolora: {self.paybacks[-1]}")
        if not usage_of(self._states).calls.total():  # not frozen by the user
            self.earlier = before

    def _measured(self, recording: Recording, seconds: float, compiled: bool) -> float | None:
        """Seconds that the records of the recorded problems took; None if none was measured."""
        try:
            result = tune(recording, budget=seconds, compiled=compiled)
        except AutoloraError as error:
            self.told(f"autolora: not tuned: {error}")
            return None
        if result.interrupted:  # what is measured is kept; the training ends as it would have
            raise KeyboardInterrupt
        if result.unfinished:
            self.told(
                f"autolora: {len(result.unfinished)} problems are still to be tuned: the budget of "
                f"{self.budget:g} s is spent"
            )
        return sum(each.seconds for each in (*result.records, *result.skipped))


def _has_run(state: LayerState) -> bool:
    return bool(state.choices or state.policy.traced)


def _agree(model: nn.Module) -> None:
    """Has all ranks of a process group choose from one plan, if they do not yet."""
    states: list[Any] = [state for _, state in layer_states(model)]
    if in_group() and any(state.policy.snapshots is None for state in states):
        freeze_in_group(model)


def _saved_in(recording: Recording, policy: Policy, *, compiled: bool) -> float:
    """Seconds by which the recorded steps are faster with the graphs that layers choose now.

    Args:
        recording: of steps.
        policy: by which the layers choose.
        compiled: whether they run compiled.
    """

    def saved_ns(problem: BaseProblem) -> float:
        problem = problem.in_mode(COMPILED if compiled and COMPILED in problem.modes else EAGER)
        return decide(problem, device_for(problem, recording.device), policy).saved_ns

    total = sum(number * saved_ns(problem) for problem, number in recording.calls.items())
    for layers, number in recording.families.items():
        together = problem_of_siblings(layers)
        if number and together is not None and (gain := saved_ns(together)):
            total += number * (gain - sum(map(saved_ns, layers)))
    return total / 1e9
