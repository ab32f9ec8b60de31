"""Tuning in a training run: its first steps are recorded, and what is missing is measured."""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from autolora.cache.records.payback import Payback
from autolora.capture.recording import Recording, record
from autolora.capture.siblings import problem_of_siblings
from autolora.errors import AutoloraError
from autolora.integrations import STEPS
from autolora.integrations.usage import Usage, usage_of
from autolora.nn.choosing import decide, refresh
from autolora.nn.freezing.agreement import in_group
from autolora.nn.freezing.freeze import freeze_anew, freeze_in_group
from autolora.nn.layer_state import Choice, LayerState, layer_states
from autolora.nn.strict import misses_expected
from autolora.problem import COMPILED, BaseProblem
from autolora.timing.device import device_for
from autolora.tuning.entry import tune

_KNOWN = ("exact", "interpolated")  # reasons of what need not be measured
_PATIENCE = 100  # steps in which a model does not run, after which it is not waited for

logger = logging.getLogger("autolora")


class FirstSteps:
    """Follows the training steps of models; records the first ones and tunes, if that is wanted.

    Each model is followed by itself. One step passes before it is recorded: in that its layers find
    their siblings, and torch.compile compiles it where it is used. In a process group rank 0 tunes
    for what it has recorded, and all ranks run its graphs.

    Args:
        budget: seconds that tuning a model may take; None does not tune.
        steps: that are recorded.
        told: is called with each line that a user should read.
    """

    def __init__(
        self,
        budget: float | None = None,
        steps: int = STEPS,
        told: Callable[[str], None] = logger.warning,
    ) -> None:
        self.budget, self.steps, self.told = budget, steps, told
        self.paybacks: list[Payback] = []
        self._layers = 0
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # of these
        self._states: list[LayerState] = []
        self._dropped = Usage()  # what layers ran before they chose their graphs anew
        self._followed: list[_Followed] = []

    def watch(self, model: nn.Module) -> None:
        """Follows a model whose layers are accelerated, until it is tuned."""
        self._note_layers(model)
        if not any(each.model() is model for each in self._followed):
            self._followed.append(_Followed(weakref.ref(model)))
        if self.budget is not None:
            for each in self._followed:
                each.expect_misses()

    @property
    def usage(self) -> Usage:
        """What all layers have run so far."""
        return Usage(self._layers) + self._dropped + usage_of(self._states)

    @property
    def missed(self) -> int:
        """How many calls since the layers last chose their graphs had none that was measured."""
        return usage_of(self._states).missed

    @property
    def waits(self) -> bool:
        """Whether a model has run that is to be tuned and is not yet."""
        return self.budget is not None and any(
            each.ran and not each.done for each in self._followed
        )

    def step(self) -> None:
        """To be called after every step of an optimizer.

        Raises nothing but the interruption of the user.
        """
        for each in self._followed:
            if not each.done:
                try:
                    self._advance(each)
                except Exception:  # whatever it is, the training goes on
                    logger.warning("autolora: the run is not tuned", exc_info=True)
                    each.end()

    def pause(self) -> None:
        """Ends recordings that have begun; what is not tuned is recorded from its next step on."""
        for each in self._followed:
            each.stop()

    def _note_layers(self, model: nn.Module) -> None:
        for module, state in layer_states(model):
            if module not in self._seen:
                self._seen.add(module)
                self._layers += 1
            if state.on_drop != self._keep:
                state.on_drop = self._keep
                self._states.append(state)

    def _keep(self, state: LayerState) -> None:
        """Counts what a layer has run before it drops its choices."""
        self._dropped += usage_of([state])

    def _advance(self, each: _Followed) -> None:
        model = each.model()
        if model is None:
            each.end()
        elif each.recording is None:
            self._note_layers(model)  # the script may have accelerated it anew
            if _has_run(model):
                _agree(model)
                if self.budget is None:
                    each.end()
                else:
                    each.begin(model)
            else:
                each.wait()
        elif each.has_run() and each.recorded == self.steps:
            recording, each.recording = each.recording, None
            each.end()
            self._tune(recording)

    def _tune(self, recording: Recording) -> None:
        """Measures what the cache lacks of a recording, on rank 0, and has all ranks use it."""
        layers = list(layer_states(recording.model))
        compiled = any(state.policy.traced for _, state in layers)
        missing = _missing(recording, compiled=compiled)
        seconds = None
        if in_group() and torch.distributed.get_rank() != 0:
            pass
        elif missing.calls or missing.families:
            seconds = self._measure(missing, compiled=compiled)
        else:
            self.told("autolora: what the first steps need is measured already")
        if seconds is None:
            refresh(recording.model)
            freeze_anew(recording.model)
        else:
            saved = _saved_s(recording, compiled=compiled) / self.steps
            self.paybacks.append(Payback(seconds, saved))
            self.told(f"autolora: {self.paybacks[-1]}")

    def _measure(self, recording: Recording, *, compiled: bool) -> float | None:
        """Measures what was recorded; the seconds that it took, None if it failed."""
        assert self.budget is not None
        begin = time.monotonic()
        try:
            with torch.random.fork_rng([d for d in recording.devices if d.type == "cuda"]):
                result = tune(recording, budget=self.budget, compiled=compiled)
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
        return time.monotonic() - begin


@dataclass(slots=True, eq=False)
class _Followed:
    """A model that is followed.

    Args:
        model: which is not kept alive, but while it is recorded.
        recording: of its first steps, once it has begun.
        recorded: number of steps in it.
        ran: whether it has run in a step.
        done: whether it is not followed any more.
        calls: in the recording at the last step.
        idle: number of steps since then in which the model did not run.
        open: what ends with the recording.
    """

    model: weakref.ref[nn.Module]
    recording: Recording | None = None
    recorded: int = 0
    ran: bool = False
    done: bool = False
    calls: int = 0
    idle: int = 0
    open: ExitStack = field(default_factory=ExitStack)
    _expects: bool = False

    def expect_misses(self) -> None:
        """Has nobody told of misses: they are going to be tuned."""
        if not (self._expects or self.done):
            self._expects = True
            self.open.enter_context(misses_expected())

    def begin(self, model: nn.Module) -> None:
        """Begins the recording."""
        self.ran, self.recorded, self.calls, self.idle = True, 0, 0, 0
        self.recording = self.open.enter_context(record(model))

    def wait(self) -> None:
        """Notes a step in which the model did not run."""
        self.idle += 1
        if self.idle == _PATIENCE:
            self.stop()

    def has_run(self) -> bool:
        """Notes a step that is recorded; whether the model ran in it."""
        assert self.recording is not None
        calls = self.recording.calls.total()
        if calls == self.calls:
            self.wait()
            return False
        self.calls, self.recorded, self.idle = calls, self.recorded + 1, 0
        return True

    def stop(self) -> None:
        """Ends the recording, if it has begun."""
        self.open.close()
        self.recording, self._expects = None, False

    def end(self) -> None:
        """Does not follow the model any more."""
        self.stop()
        self.done = True


def _has_run(model: nn.Module) -> bool:
    return any(state.choices or state.policy.traced for _, state in layer_states(model))


def _agree(model: nn.Module) -> None:
    """Has all ranks of a process group choose from one plan, if they do not yet."""
    states = [state for _, state in layer_states(model)]
    if in_group() and any(state.policy.snapshots is None for state in states):
        freeze_in_group(model)


def _missing(recording: Recording, *, compiled: bool) -> Recording:
    """What of a recording is not measured yet."""

    def lacks(problem: BaseProblem | None) -> bool:
        choice = None if problem is None else _choice(recording, problem, compiled=compiled)
        return choice is not None and (choice.reason not in _KNOWN or bool(choice.lack))

    calls = {problem: n for problem, n in recording.calls.items() if lacks(problem)}
    families = {
        layers: n for layers, n in recording.families.items() if lacks(problem_of_siblings(layers))
    }
    return replace(recording, calls=Counter(calls), families=Counter(families))


def _saved_s(recording: Recording, *, compiled: bool) -> float:
    """Seconds by which the recorded steps are faster with the graphs that the layers choose now."""

    def saved_ns(problem: BaseProblem) -> float:
        return _choice(recording, problem, compiled=compiled).saved_ns

    total = sum(number * saved_ns(problem) for problem, number in recording.calls.items())
    for layers, number in recording.families.items():
        together = problem_of_siblings(layers)
        if number and together is not None and (gain := saved_ns(together)):
            total += number * (gain - sum(map(saved_ns, layers)))
    return total / 1e9


def _choice(recording: Recording, problem: BaseProblem, *, compiled: bool) -> Choice:
    """What the layers of a recorded model choose for a problem, as they run from now on."""
    policy: Any = next(state.policy for _, state in layer_states(recording.model))
    if compiled and COMPILED in problem.modes:
        problem = problem.in_mode(COMPILED)
    return decide(problem, device_for(problem, recording.device), policy)
