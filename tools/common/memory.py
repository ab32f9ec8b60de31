"""Memory of a training step: what autograd saves, and the peak of the process or the GPU."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakSet

import torch

from autolora.timing.clock import peak_memory


class Held:
    """A tensor saved by autograd; it is freed when autograd frees it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_bytes(forward, parameters, context=None):
    """Bytes that autograd saves in one forward, each storage once, without the parameters."""
    held = WeakSet()

    def keep(tensor):
        it = Held(tensor)
        held.add(it)
        return it

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it.tensor)
    with context or nullcontext(), hooks:
        Y = forward()
    storages = [it.tensor.untyped_storage() for it in held]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for parameter in parameters:
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    del Y  # until here it holds the graph, and the graph what is counted
    return sum(sizes.values())


def peak_bytes(run, device):
    """The most memory of a device during a call, beyond that before it; None if not known."""
    if device.type == "cuda":
        return peak_memory(run, device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts when used
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # starts the peak anew
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def resident(field):
    """Bytes of a field of this process's status."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])
