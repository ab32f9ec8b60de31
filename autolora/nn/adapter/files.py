"""The weights of an adapter in a file: ``adapter_model.safetensors``, and no pickle."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from torch import Tensor

from autolora.errors import AutoloraError, one_line

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


def safetensors() -> ModuleType:
    """The module ``safetensors.torch``.

    Raises:
        AutoloraError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise AutoloraError(
            "adapters are files of safetensors, which is not installed: pip install safetensors"
        ) from error
    return safetensors.torch


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in the file of a folder, by their names.

    Raises:
        AutoloraError: there is no such file, or it cannot be read.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / _PICKLE).exists():
            raise AutoloraError(
                f"{folder / _PICKLE} is a pickle, which can run any code; only {WEIGHTS} is read: "
                "have PEFT write that, by PeftModel.from_pretrained(...).save_pretrained(...)"
            )
        raise AutoloraError(f"{folder} holds no {WEIGHTS}")
    torch_files = safetensors()
    from safetensors import SafetensorError

    try:
        found: dict[str, Tensor] = torch_files.load_file(path)
    except (OSError, SafetensorError) as error:
        raise AutoloraError(f"cannot read {path}: {one_line(error)}") from error
    return found
