"""A callback for the Trainer of transformers, and for trainers that build on it, such as TRL's."""

from __future__ import annotations

import logging
from typing import Any

import torch

from autolora.errors import AutoloraError
from autolora.integrations import BUDGET, STEPS, TOO_SHORT
from autolora.integrations.first_steps import FirstSteps
from autolora.nn.defaults import objective_of, require_floating
from autolora.nn.layer_state import layer_states

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover - depends on the environment
    raise AutoloraError(
        "AutoloraCallback is for the Trainer of transformers, which is not installed: "
        "pip install 'autolora[peft]'"
    ) from error

logger = logging.getLogger("autolora")


class AutoloraCallback(TrainerCallback):  # type: ignore[misc]
    """Accelerates the model of a Trainer when training begins, and tunes in its first steps.

    ::

        trainer = Trainer(model, args, ..., callbacks=[AutoloraCallback(tune=True)])
        trainer.train()

    A model whose layers are accelerated already, or autolora's own, keeps its settings. With
    ``tune``, the first steps are recorded and what the cache lacks is measured, for the model
    compiled if it is; then training goes on with the new graphs. Evaluation and generation in
    between do not count. On several ranks all run the graphs of rank 0.

    The training log gets ``autolora/measured_share``, the share of calls that ran measured graphs,
    and ``autolora/saved_seconds``, by how much they were faster by their records: in
    ``state.log_history`` and in the logs that callbacks after this one get, as that of the console
    does. What was accelerated, what tuning cost and after how many steps it has paid is logged.

    Args:
        tune: whether to tune in the first steps.
        budget: seconds that this may take.
        steps: that are recorded.
        compute_dtype: as in :func:`~autolora.accelerate`, as the next three.
        objective: what graphs are chosen for.
        max_saved_bytes: limit on what a call keeps for its backward pass.
        siblings: whether layers with one input may run together.

    Raises:
        AutoloraError: a value is not allowed.
    """

    def __init__(
        self,
        *,
        tune: bool = False,
        budget: float = BUDGET,
        steps: int = STEPS,
        compute_dtype: torch.dtype | None = None,
        objective: str | None = None,
        max_saved_bytes: int | None = None,
        siblings: bool = True,
    ) -> None:
        for name, value in (("tune", tune), ("siblings", siblings)):
            if type(value) is not bool:
                raise AutoloraError(f"{name} must be True or False, not {value!r}")
        if not (isinstance(budget, (int, float)) and 0 < budget < float("inf")):
            raise AutoloraError(f"budget must be a positive number of seconds, not {budget!r}")
        if type(steps) is not int or steps < 1:
            raise AutoloraError(f"steps must be a whole number of at least 1, not {steps!r}")
        require_floating(compute_dtype)
        objective_of(objective, max_saved_bytes)  # raises
        self.settings: dict[str, Any] = {
            "compute_dtype": compute_dtype,
            "objective": objective,
            "max_saved_bytes": max_saved_bytes,
            "siblings": siblings,
        }
        self.first = FirstSteps(budget if tune else None, steps, told=logger.warning)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any
    ) -> None:
        """Accelerates the model; never raises."""
        from autolora.nn.peft import accelerate

        say = logger.warning if state.is_world_process_zero else logger.debug
        try:
            if not list(layer_states(model)):
                say("%s", accelerate(model, **self.settings))
            self.first.watch(model)
        except AutoloraError as error:
            say("autolora: nothing is accelerated: %s", error)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Counts a step."""
        self.first.step()

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **_: Any) -> None:
        """Adds the figures to the log of a training step."""
        if logs is None or "loss" not in logs:
            return
        figures = {key: round(value, 6) for key, value in self.first.usage.logged.items()}
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Says what the layers have run."""
        usage = self.first.usage
        if usage.layers and state.is_world_process_zero:
            logger.warning("autolora: %d LoRA layers: %s", usage.layers, usage)
            if self.first.waits:
                logger.warning("autolora: not tuned: %s", TOO_SHORT)
        self.first.pause()
