"""The machine's state during a measurement, by which a reader can judge its figures.

Nothing here raises: what cannot be read is None or left out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from autolora.cache.records.record import Scalar

_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")

_THROTTLE_REASONS = {  # NVML's bits, except the lowest: an idle GPU is not throttled
    0x2: "clocks setting",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}


_MOST_TAKEN = 0.2  # share of processor time that others may use in an undisturbed measurement


@dataclass(frozen=True, slots=True)
class Ticks:
    """Time of all processors together since boot, in the kernel's ticks.

    Args:
        busy: running a process or the kernel.
        stolen: used by the host of a virtual machine.
        total: busy, stolen and idle.
    """

    busy: int
    stolen: int
    total: int


@dataclass(frozen=True, slots=True)
class State:
    """The counters at one moment.

    Args:
        ticks: of the processors, None where the system does not say.
        own: seconds of processor time that this process has taken.
        at: seconds since 1970.
    """

    ticks: Ticks | None
    own: float
    at: float


def before() -> State:
    """The counters now, for :func:`since`."""
    return State(ticks(_text(_STAT)), time.process_time(), time.time())


def since(start: State, device: torch.device) -> dict[str, Scalar]:
    """The conditions of a measurement on a device that has just ended.

    Always there: ``load_1min``, ``processors``, ``others_busy`` and ``steal``, the shares of all
    processor time since the start that other processes and the host of a virtual machine took.
    Where readable: ``cpu_clock_mhz`` and ``cpu_governor``; of a GPU ``sm_clock_mhz``,
    ``memory_clock_mhz``, ``temperature_c``, ``power_w``, ``throttle_reasons``,
    ``gpu_other_processes`` and the share ``gpu_others_busy``.

    Args:
        start: from :func:`before`.
        device: that was measured on.
    """
    others, stolen = shares(start, before())
    found: dict[str, Scalar] = {
        "load_1min": _load(),
        "processors": os.cpu_count(),
        "others_busy": others,
        "steal": stolen,
    }
    if clocks := cpu_clocks(_text(_CPUINFO)) or _scaling_clocks():
        found["cpu_clock_mhz"] = round(mean(clocks))
    if governor := re.match(r"\w+", _text(_CPUS / "cpu0/cpufreq/scaling_governor")):
        found["cpu_governor"] = governor[0]
    return found | _gpu(device, start) if device.type == "cuda" else found


def disturbed(found: Mapping[str, Scalar], device: torch.device) -> bool:
    """Whether other processes used so much of the CPU that times on it are not those of training.

    They add more than noise: graphs that need all threads at once are slowed down more.

    Args:
        found: the conditions, see :func:`since`.
        device: that was measured on.
    """
    taken = (found.get(name) for name in ("others_busy", "steal"))
    return device.type == "cpu" and any(isinstance(t, float) and t > _MOST_TAKEN for t in taken)


def ticks(stat: str) -> Ticks | None:
    """The counters in the text of ``/proc/stat``, None where there are none."""
    match = re.search(r"^cpu((?: +\d+){8})", stat, re.MULTILINE)
    if match is None:
        return None
    user, nice, system, idle, waiting, irq, soft_irq, stolen = map(int, match[1].split())
    busy = user + nice + system + irq + soft_irq
    return Ticks(busy, stolen, busy + stolen + idle + waiting)


def shares(start: State, end: State) -> tuple[float | None, float | None]:
    """The shares of all processor time that other processes took, and that was stolen.

    None where the system does not say, or no time passed.
    """
    if start.ticks is None or end.ticks is None or end.ticks.total <= start.ticks.total:
        return None, None
    total = end.ticks.total - start.ticks.total
    own = (end.own - start.own) * os.sysconf("SC_CLK_TCK")
    others = end.ticks.busy - start.ticks.busy - own
    return _share(others / total), _share((end.ticks.stolen - start.ticks.stolen) / total)


def cpu_clocks(cpuinfo: str) -> list[float]:
    """The clock of each processor in MHz from the text of ``/proc/cpuinfo``, which may say none."""
    found = re.findall(r"^cpu MHz\s*:\s*(\d+(?:\.\d+)?)\s*$", cpuinfo, re.MULTILINE)
    return [clock for clock in map(float, found) if clock]


def throttle_reasons(bits: int) -> str:
    """Why a GPU's clocks are lower than they could be, in words, ``""`` if they are not.

    >>> throttle_reasons(0x5), throttle_reasons(0x44)
    ('power cap', 'power cap, hardware thermal slowdown')
    """
    return ", ".join(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)


def _scaling_clocks() -> list[float]:
    texts = map(_text, _CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))  # in kHz
    return [int(text) / 1000 for text in texts if re.fullmatch(r"[1-9][0-9]*\s*", text)]


def _load() -> float | None:
    with suppress(AttributeError, OSError):  # Windows has none
        return round(os.getloadavg()[0], 2)
    return None


def _share(value: float) -> float:
    """Clipped to 0...1, since the kernel's ticks are coarse."""
    return round(min(max(value, 0.0), 1.0), 3)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpu(device: torch.device, start: State) -> dict[str, Scalar]:
    """Readings of NVML; empty where it is not installed or does not work.

    Every exception is suppressed: no fault of a driver may lose a measurement.
    """
    found: dict[str, Scalar] = {}
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        try:
            handle = _handle(pynvml, str(torch.cuda.get_device_properties(device).uuid))
            for name, read in _READERS.items():
                with suppress(Exception):
                    found[name] = read(pynvml, handle, start)
        finally:
            pynvml.nvmlShutdown()
    return {name: value for name, value in found.items() if value is not None}


def _handle(nvml: Any, uuid: str) -> Any:
    """NVML's device, by UUID since CUDA_VISIBLE_DEVICES renumbers torch's devices."""
    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _others_count(nvml: Any, handle: Any, start: State) -> int | None:
    """The number of other processes on the device, None if unknown as in some containers.

    This process is counted by NVML too, perhaps under another number.
    """
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return len(processes) - 1 if processes else None


def _others_share(nvml: Any, handle: Any, start: State) -> float | None:
    """The share of the device's time that other processes used.

    None if this process is not listed: in a container NVML may report process ids of the host.
    """
    used: dict[int, list[int]] = {}
    for sample in nvml.nvmlDeviceGetProcessUtilization(handle, round(start.at * 1e6)):
        used.setdefault(sample.pid, []).append(sample.smUtil)
    if used.pop(os.getpid(), None) is None:
        return None
    return _share(sum(mean(each) for each in used.values()) / 100)


_READERS: dict[str, Callable[[Any, Any, State], Scalar]] = {
    "sm_clock_mhz": lambda nvml, gpu, _: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu, _: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "temperature_c": lambda nvml, gpu, _: nvml.nvmlDeviceGetTemperature(
        gpu, nvml.NVML_TEMPERATURE_GPU
    ),
    "power_w": lambda nvml, gpu, _: round(nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    "throttle_reasons": lambda nvml, gpu, _: throttle_reasons(
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    ),
    "gpu_other_processes": _others_count,
    "gpu_others_busy": _others_share,
}
