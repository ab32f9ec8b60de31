"""Freezing: the layers of a model choose from records held in memory, whatever becomes of files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autolora.cache.files.store import search_path
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.nn.agreement import agree, in_group, trains_on_cuda
from autolora.nn.defaults import default_objective
from autolora.nn.layer_state import LayerState, layer_states
from autolora.nn.snapshot import FROZEN, Sizes, Snapshots, read_snapshot
from autolora.objective import Objective
from autolora.problem import DEVICES


@dataclass(frozen=True, slots=True)
class Frozen:
    """What :func:`freeze` did.

    Args:
        layers: how many layers choose from the plan.
        environments: of the devices that they are to run on.
        records: how many the plan holds.
        fitting: how many of those were measured in these environments.
        objectives: what the layers choose their graphs for.
        files: what the records are from.
        origin: ``"frozen"``, or ``"rank 0's plan"`` in a process group.
    """

    layers: int
    environments: tuple[Environment, ...]
    records: int
    fitting: int
    objectives: tuple[Objective, ...]
    files: tuple[str, ...]
    origin: str

    def __str__(self) -> str:
        machines = " and ".join(
            f"{each.device_name}, {each.units} units, torch {each.torch}"
            for each in self.environments
        )
        plan = "" if self.origin == FROZEN else f" on {self.origin}"
        return "\n".join(
            (
                f"autolora: {self.layers} LoRA layers frozen{plan} for "
                + " and ".join(map(str, self.objectives)),
                f"  {self.records} records for their sizes, {self.fitting} of them measured in "
                f"this environment ({machines})",
                f"  from {', '.join(self.files) or 'no file'}",
            )
        )


def freeze(model: nn.Module) -> Frozen:
    """Makes a model's layers choose their graphs from what the cache files hold now.

    From then on they choose from memory: neither changes of the files nor ``autolora.tune`` nor
    other values of ``AUTOLORA_CACHE`` and ``AUTOLORA_OBJECTIVE`` change what the model runs. What
    is not in the plan is a miss as ever, and so is the same in every run. Freezing again reads the
    files again; :func:`unfreeze` undoes it, and so does accelerating anew outside a process group.
    Copies of the model are not frozen.

    In a process group (torch.distributed) it is rank 0's plan that the other ranks freeze on, if
    their environment is rank 0's, so that all run the same graphs for the same problems. A rank in
    another environment freezes on its own plan and warns which fields differ. Every rank should
    freeze the model; one that waits in vain for rank 0, for five minutes at most, goes on with its
    own plan and a warning. :func:`~autolora.accelerate` in a process group freezes by itself, and
    ``autolora.tune(model)``, on every rank, freezes such a model anew.

    The plan holds the records of every environment for the sizes of the layers, so it may be made
    before the model is moved or cast. Environments are compared for the device types that the
    layers are on; where they are on the CPU, for CUDA too if CUDA is in use already, and for CUDA
    alone if the group's backend is nccl. A type that rank 0 did not compare counts as the same.

    Args:
        model: with layers that autolora runs: accelerated ones of PEFT, or ours.

    Returns:
        A short report; ``print`` it.

    Raises:
        AutoloraError: the model has no such layer.
    """
    return _freeze(model, lasting=True)


def freeze_in_group(model: nn.Module) -> Frozen:
    """Freezes a model until it is tuned, so that the ranks of its process group agree."""
    return _freeze(model, lasting=False)


def freeze_anew(model: nn.Module) -> None:
    """Freezes a model again that its process group alone had frozen: it has been tuned."""
    if any(
        state.snapshots is not None and not state.snapshots.lasting
        for _, state in layer_states(model)
    ):
        freeze_in_group(model)


def unfreeze(model: nn.Module) -> None:
    """Makes a model's layers choose from the files of the search path again."""
    _hold((state for _, state in layer_states(model)), None)


def _freeze(model: nn.Module, *, lasting: bool) -> Frozen:
    found = list(layer_states(model))
    if not found:
        raise AutoloraError(
            f"this {type(model).__name__} has no layer to freeze; call autolora.accelerate(model) "
            "first for a PEFT model, or autolora.add_lora(model, rank=...) without PEFT"
        )
    modules, states = zip(*found, strict=True)
    sizes = _sizes(modules)
    own = read_snapshot(sizes, default_objective(), search_path())
    grouped = in_group()
    environments = {
        device.type: Environment.of(device)
        for device in _devices(modules, nccl=grouped and trains_on_cuda())
    }
    snapshots = agree(own, environments, sizes) if grouped else Snapshots(own)
    _hold(states, replace(snapshots, lasting=lasting))
    return _report(states, snapshots, tuple(environments.values()))


def _hold(states: Iterable[LayerState], snapshots: Snapshots | None) -> None:
    for state in states:
        state.snapshots = snapshots
        state.choices.clear()


def _report(
    states: Iterable[LayerState], snapshots: Snapshots, environments: tuple[Environment, ...]
) -> Frozen:
    wanted = [state.wanted for state in states]
    plan = snapshots.of(environments[0].device)
    return Frozen(
        layers=len(wanted),
        environments=environments,
        records=len(plan.records),
        fitting=sum(record.environment in environments for record in plan.records),
        objectives=tuple(dict.fromkeys(wanted)),
        files=plan.files,
        origin=plan.origin,
    )


def _sizes(modules: Iterable[Any]) -> Sizes:
    return frozenset((module.in_features, module.out_features) for module in modules)


def _devices(modules: Iterable[nn.Module], *, nccl: bool) -> list[torch.device]:
    """A device of each type that the layers are on, or are likely to be moved to.

    No CUDA context is started for a model that may stay on the CPU.
    """
    parameters = (next(module.parameters(), None) for module in modules)
    on = {p.device.type: p.device for p in parameters if p is not None}
    if "cuda" not in on and nccl:
        return [torch.device("cuda")]
    there = [device for kind, device in on.items() if kind in DEVICES] or [torch.device("cpu")]
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [*there, torch.device("cuda")] if in_use and "cuda" not in on else there
