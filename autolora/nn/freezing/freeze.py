"""``autolora.freeze``: layers choose their graphs from records in memory, not from the files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autolora.cache.files.paths import search_path
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.nn.defaults import default_objective
from autolora.nn.freezing.agreement import agree, in_group, trains_on_cuda
from autolora.nn.freezing.snapshot import FROZEN, Sizes, Snapshots, read_snapshot
from autolora.nn.layer_state import choose_anew, layer_states
from autolora.objective import Objective
from autolora.problem import DEVICES


@dataclass(frozen=True, slots=True)
class Frozen:
    """The report of :func:`freeze`.

    Args:
        layers: number of frozen layers.
        environments: of the devices that the layers will run on.
        records: number of records in the plan.
        fitting: how many of those were measured in these environments.
        objectives: of the layers.
        files: that the records were read from.
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
    """Makes a model's layers choose their graphs from a copy of the current cache records.

    Afterwards neither changes of the files nor ``autolora.tune`` nor other values of
    ``AUTOLORA_CACHE`` and ``AUTOLORA_OBJECTIVE`` change what the model runs. Problems without
    records are misses as usual. Freezing again reads the files again. :func:`unfreeze` undoes it,
    as does accelerating again outside a process group. Copies of the model are not frozen.

    In a process group (torch.distributed) all ranks whose environment equals rank 0's use rank 0's
    plan, so that they run the same graphs. A rank in another environment uses its own plan and
    warns which fields differ. Every rank should freeze the model; a rank that has waited five
    minutes for rank 0 warns and uses its own plan. :func:`~autolora.accelerate` freezes the model
    if a process group is initialised, and ``autolora.tune(model)``, on every rank, freezes such a
    model again.

    The plan contains the records of every environment for the sizes of the layers, so the model may
    be moved or cast later. Environments are compared for the device types of the layers; for layers
    on the CPU also for CUDA if it is initialised, and only for CUDA if the backend is nccl. A type
    that rank 0 does not report counts as the same.

    Args:
        model: with accelerated PEFT layers or :class:`~autolora.LoRALinear`.

    Returns:
        A short report to print.

    Raises:
        AutoloraError: the model has no such layer.
    """
    return _freeze(model, lasting=True)


def freeze_in_group(model: nn.Module) -> Frozen:
    """Freezes a model on the plan of its process group until it is tuned."""
    return _freeze(model, lasting=False)


def freeze_anew(model: nn.Module) -> None:
    """Freezes a model again after tuning if :func:`freeze_in_group` froze it."""
    if any(
        state.policy.snapshots is not None and not state.policy.snapshots.lasting
        for _, state in layer_states(model)
    ):
        freeze_in_group(model)


def unfreeze(model: nn.Module) -> None:
    """Undoes :func:`freeze`: the layers choose from the files of the search path again."""
    choose_anew((state for _, state in layer_states(model)), snapshots=None)


def _freeze(model: nn.Module, *, lasting: bool) -> Frozen:
    found = list(layer_states(model))
    if not found:
        raise AutoloraError(
            f"this {type(model).__name__} has no layer to freeze; call autolora.accelerate(model) "
            "first for a PEFT model, or autolora.add_lora(model, rank=...) without PEFT"
        )
    modules: list[Any] = [module for module, _ in found]
    states = [state for _, state in found]
    sizes: Sizes = frozenset((each.in_features, each.out_features) for each in modules)
    own = read_snapshot(sizes, default_objective(), search_path())
    grouped = in_group()
    environments = {
        device.type: Environment.of(device)
        for device in _devices(modules, nccl=grouped and trains_on_cuda())
    }
    snapshots = agree(own, environments, sizes) if grouped else Snapshots(own)
    choose_anew(states, snapshots=replace(snapshots, lasting=lasting))
    here = tuple(environments.values())
    plan = snapshots.of(here[0].device)
    return Frozen(
        layers=len(states),
        environments=here,
        records=len(plan.records),
        fitting=sum(record.environment in here for record in plan.records),
        objectives=tuple(dict.fromkeys(state.policy.wanted for state in states)),
        files=plan.files,
        origin=plan.origin,
    )


def _devices(modules: Iterable[nn.Module], *, nccl: bool) -> list[torch.device]:
    """A device of each type that the layers are on, or are likely to be moved to.

    Does not initialise CUDA for a model that may stay on the CPU.
    """
    parameters = (next(module.parameters(), None) for module in modules)
    on = {p.device.type: p.device for p in parameters if p is not None}
    if "cuda" not in on and nccl:
        return [torch.device("cuda")]
    there = [device for kind, device in on.items() if kind in DEVICES] or [torch.device("cpu")]
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [*there, torch.device("cuda")] if in_use and "cuda" not in on else there
