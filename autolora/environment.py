"""The environment of a timing: the machine and its libraries.

Only timings of equal environments may be compared. torch is imported only to read the environment.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.units import count

if TYPE_CHECKING:
    from torch import device as Device

LONGEST_TEXT = 200
MOST_UNITS = 2**53 - 1  # the largest integer that every JSON reader represents exactly

_CPUINFO = Path("/proc/cpuinfo")
# The lines of /proc/cpuinfo that identify a CPU model. Brand strings do not suffice: clouds shorten
# them to "AMD EPYC", and Arm has none.
_X86_LINES = ("cpu family", "model", "stepping")
_ARM_LINES = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
_BLAS_PATTERNS = (  # in torch's description of its build, and our name of the library
    (r"Math Kernel Library Version (\S+?)(?:-Product)?\s", "mkl"),
    (r"BLAS_INFO=(?!mkl)(\w+)", ""),
    (r"MKL-DNN v(\S+)", "onednn"),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and libraries that, beside the problem, decide how long a graph takes.

    Args:
        device: its type, ``"cpu"`` or ``"cuda"``.
        device_name: the model, as ``"NVIDIA H100 80GB HBM3"``.
        capability: the instruction set in use, ``"AVX512"``; for CUDA the compute capability.
        units: threads of torch; for CUDA the streaming multiprocessors.
        torch: its version, with the build: ``"2.13.0+cpu"``.
        blas: the matrix libraries and their versions.
        float32_matmul_precision: torch's setting: ``"highest"``, ``"high"`` or ``"medium"``; if the
            program sets it per backend, that backend's value.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    device: str
    device_name: str
    capability: str
    units: int
    torch: str
    blas: str
    float32_matmul_precision: str

    def __post_init__(self) -> None:
        for name, value in ((name, getattr(self, name)) for name in FIELDS if name != "units"):
            if not isinstance(value, str) or not value.isprintable():
                raise ValueError(f"environment.{name} must be printable text")
            if not 1 <= len(value) <= LONGEST_TEXT:
                raise ValueError(f"environment.{name} must have 1 to {LONGEST_TEXT} characters")
        if type(self.units) is not int or not 1 <= self.units <= MOST_UNITS:
            raise ValueError("environment.units must be a whole number of at least 1")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits derived from all fields."""
        return _id(self)

    @property
    def machine_text(self) -> str:
        """The device and its units: ``Intel Xeon, 8 threads``."""
        unit = "thread" if self.device == "cpu" else "multiprocessor"
        return f"{self.device_name}, {count(self.units, unit)}"

    @property
    def libraries_text(self) -> str:
        """The libraries, with what is special about them."""
        text = f"{self.capability}, torch {self.torch}, {self.blas}"
        if self.float32_matmul_precision != "highest":
            text += f", float32 products in {self.float32_matmul_precision} precision"
        return text

    @classmethod
    def of(cls, device: Device | str) -> Environment:
        """Reads the environment of a device; starts a CUDA context for a CUDA device only.

        Raises:
            ValueError: neither a CPU nor a CUDA device.
        """
        import torch  # takes seconds, and readers of cache files do not need it

        place = torch.device(device)
        if place.type not in _READERS:
            raise ValueError(f"device must be one of {', '.join(_READERS)}, not {place.type!r}")
        return cls(
            device=place.type,
            **_READERS[place.type](place),
            torch=_text(torch.__version__),
            float32_matmul_precision=_float32_matmul_precision(place.type),
        )

    @classmethod
    def from_json(cls, value: object) -> Environment:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or has a value that is not allowed.
        """
        if not isinstance(value, Mapping) or set(value) != set(FIELDS):
            raise ValueError(f"an environment must have the fields {', '.join(FIELDS)}, no others")
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """The fields in their declared order."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(Environment))


@lru_cache(maxsize=256)
def _id(environment: Environment) -> str:
    canonical = json.dumps(environment.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _read_cpu(device: Device) -> dict[str, Any]:
    import torch

    return {
        "device_name": _cpu_name(),
        "capability": _text(torch.backends.cpu.get_cpu_capability()),
        "units": torch.get_num_threads(),
        "blas": _cpu_blas(),
    }


def _read_cuda(device: Device) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return {
        "device_name": _text(properties.name),
        "capability": f"{properties.major}.{properties.minor}",
        "units": properties.multi_processor_count,
        "blas": _text(f"{'hipblas' if torch.version.hip else 'cublas'} of {toolkit}"),
    }


_READERS = {"cpu": _read_cpu, "cuda": _read_cuda}


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        return _text(cpu_name(_CPUINFO.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError):  # not Linux, or a kernel that says nothing
        return _text(_apple_brand() or platform.processor() or platform.machine())


def cpu_name(cpuinfo: str) -> str:
    """The CPU's name from ``/proc/cpuinfo``: ``"AMD EPYC (cpu family 25, model 17, stepping 1)"``.

    Raises:
        ValueError: the text has neither a brand nor a model.
    """
    first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    numbers = ", ".join(
        f"{name.removeprefix('CPU ')} {first[name]}"
        for name in (*_X86_LINES, *_ARM_LINES)
        if first.get(name)
    )
    brand = first.get("model name") or ("Arm" if first.get("CPU part") else "")
    if not brand and not numbers:
        raise ValueError("no CPU model in /proc/cpuinfo")
    return f"{brand or platform.machine()} ({numbers})" if numbers else brand


def _apple_brand() -> str:
    if platform.system() != "Darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@lru_cache(maxsize=1)
def _cpu_blas() -> str:
    import torch

    build = torch.__config__.show() + "\n"
    found = [
        f"{name} {match[1]}".strip()
        for pattern, name in _BLAS_PATTERNS
        if (match := re.search(pattern, build))
    ]
    return _text(", ".join(found))


def _float32_matmul_precision(device: str) -> str:
    import torch

    try:
        return _text(torch.get_float32_matmul_precision())
    except RuntimeError:  # set by torch's newer setting, one per backend
        backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
        return _text(str(backend.matmul.fp32_precision))


def _text(value: str) -> str:
    """A value for a text field: one line, printable, not empty, not too long."""
    words = " ".join(value.split())
    return "".join(c if c.isprintable() else "?" for c in words)[:LONGEST_TEXT] or "unknown"
