"""How a layer is trained; a regime is stated by its name, as ``"dropout, bfloat16"``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

BF16 = torch.bfloat16
_DTYPES = {"float32": torch.float32, "bfloat16": BF16}
_LORA = {"dropout": {"lora_dropout": 0.1}, "DoRA": {"use_dora": True}}
_LAYOUTS = ("nf4", "conv1d")

# How whole models are timed.
OF_MODELS = (
    "float32",
    "bfloat16",
    "bfloat16, float32 adapters, autocast",
    "bfloat16, float32 adapters, compute_dtype",
)


@dataclass(frozen=True)
class Regime:
    """How a layer is trained.

    Args:
        base: dtype of the base weight, or the one that a quantised base computes in.
        adapter: dtype of the adapters.
        autocast: whether it runs under bfloat16 autocast.
        compute: autolora's ``compute_dtype``.
        layout: ``"linear"``, ``"conv1d"`` or ``"nf4"``.
        lora: further arguments of PEFT's ``LoraConfig``.
    """

    base: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    autocast: bool = False
    compute: torch.dtype | None = None
    layout: str = "linear"
    lora: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> Regime:
        """Reads a name: words and dtypes, separated by commas, in any order.

        ``compute_dtype`` means bfloat16. Adapters have the dtype of the base unless the name says
        otherwise.

        Raises:
            KeyError: an unknown word.
        """
        base, adapter, found = torch.float32, None, {}
        lora: dict[str, Any] = {}
        for word in name.split(", "):
            if word.endswith(" adapters"):
                adapter = _DTYPES[word.removesuffix(" adapters")]
            elif word in _LAYOUTS:
                found["layout"] = word
            elif word == "autocast":
                found["autocast"] = True
            elif word == "compute_dtype":
                found["compute"] = BF16
            elif word in _LORA:
                lora |= _LORA[word]
            else:
                base = _DTYPES[word]
        return cls(base, adapter or base, lora=lora, **found)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast, None without it."""
        return BF16 if self.autocast else None

    def context(self, device: str = "cpu") -> AbstractContextManager[Any]:
        """The context of a forward pass on a type of device."""
        return torch.autocast(device, BF16) if self.autocast else nullcontext()
