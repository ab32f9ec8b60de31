"""Other implementations of LoRA: made as their documents say, here or in environments of their own.

Nothing of theirs is copied. Each becomes a layer in the place of an ``nn.Linear``, with its A and B
given, so that it computes what PEFT computes. An environment adds the packages of one peer, without
what they depend on beyond those listed, to the packages of this Python: torch stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from common.models import One, adapted


class Missing(Exception):
    """Why a peer cannot be run here."""


def of_loralib(linear, rank, alpha):
    """A layer of loralib, and its A and B."""
    kind = import_module("loralib").Linear
    sizes = (linear.in_features, linear.out_features)
    layer = kind(*sizes, r=rank, lora_alpha=alpha, bias=linear.bias is not None)
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer, layer.lora_A, layer.lora_B


def of_lycoris(linear, rank, alpha, *, bypass):
    """A module of LyCORIS that adds its part to Y (bypass), or makes s·BA first."""
    kind = import_module("lycoris.modules.locon").LoConModule
    layer = kind("layer", linear, lora_dim=rank, alpha=alpha, bypass_mode=bypass)
    return layer, layer.lora_down.weight, layer.lora_up.weight


def of_litgpt(linear, rank, alpha):
    """A layer of litgpt, and its A and B."""
    kind = import_module("litgpt.lora").LoRALinear
    sizes = (linear.in_features, linear.out_features)
    layer = kind(*sizes, r=rank, lora_alpha=alpha, bias=linear.bias is not None)
    layer.linear = linear
    return layer, layer.lora_A, layer.lora_B


def of_automodel(linear, rank, alpha):
    """A layer of NeMo Automodel that runs torch's products, and its A and B."""
    kind = import_module("nemo_automodel.components._peft.lora").LinearLoRA
    layer = kind(linear, dim=rank, alpha=alpha)
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer, layer.lora_A.weight, layer.lora_B.weight


class ByUnsloth(nn.Module):
    """A layer of PEFT, run by Unsloth's kernels."""

    def __init__(self, layer):
        super().__init__()
        self.o_proj = layer  # the name that they look for

    def forward(self, x):
        """X → Y; Unsloth takes X with a batch."""
        rows = x if x.dim() == 3 else x[None]
        return import_module("unsloth.kernels").apply_lora_o(self, rows).view(*x.shape[:-1], -1)


def of_unsloth(linear, rank, alpha):
    """PEFT's layer, run by Unsloth's kernels, and its A and B."""
    import_module("unsloth")
    model = adapted(One(linear, "linear"), rank, linear.weight.dtype, ["layer"])
    layer = model.base_model.model.layer
    layer.scaling["default"] = alpha / rank
    return ByUnsloth(layer), layer.lora_A["default"].weight, layer.lora_B["default"].weight


@dataclass(frozen=True)
class Peer:
    """Another implementation of LoRA.

    Args:
        module: that is imported if it is here.
        packages: what its environment has beside what is here.
        make: ``(linear, rank, alpha)`` → the layer in its place, its A and its B.
        device: the only one that it runs on, ``""`` for any.
    """

    module: str
    packages: tuple[str, ...]
    make: Callable
    device: str = ""

    @property
    def is_here(self):
        """Whether it can be imported in this process."""
        try:
            import_module(self.module)
        except Exception:  # whatever its import raises, it does not run here
            return False
        return True

    @property
    def installed(self):
        """The version of its first package."""
        try:
            return version(self.packages[0].partition("==")[0])
        except PackageNotFoundError:
            return None


_LYCORIS = ("lycoris-lora==4.1.3", "einops==0.8.2", "toml==0.10.2")
PEERS = {
    "loralib": Peer("loralib", ("loralib==0.1.2",), of_loralib),
    "LyCORIS": Peer(
        "lycoris.modules.locon",
        _LYCORIS,
        lambda *given: of_lycoris(*given, bypass=False),
    ),
    "LyCORIS, bypass_mode": Peer(
        "lycoris.modules.locon",
        _LYCORIS,
        lambda *given: of_lycoris(*given, bypass=True),
    ),
    "litgpt": Peer(
        "litgpt.lora",
        (
            "litgpt==0.5.13",
            "lightning==2.6.6",
            "lightning-utilities==0.15.3",
            "torchmetrics==1.9.0",
            "jsonargparse==4.53.0",
        ),
        of_litgpt,
    ),
    "NeMo Automodel": Peer(
        "nemo_automodel.components._peft.lora", ("nemo-automodel==0.7.0",), of_automodel
    ),
    "Unsloth": Peer(
        "unsloth",
        ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9", "cut_cross_entropy", "tyro", "xformers"),
        of_unsloth,
        device="cuda",
    ),
}


def replaced(model, peer, adapters, alpha):
    """Puts a peer's layers in the place of linear ones, in place.

    Args:
        model: with the layers.
        peer: that makes them.
        adapters: path of a layer → A and B, which it starts with.
        alpha: of all of them.

    Returns:
        Path → the A and B that are trained.
    """
    found = {}
    for path, (A, B) in adapters.items():
        parent, _, name = path.rpartition(".")
        linear = model.get_submodule(path)
        layer, *trained = peer.make(linear, len(A), alpha)
        layer.to(linear.weight)
        for parameter, given in zip(trained, (A, B), strict=True):
            parameter.data = given.detach().clone()
        setattr(model.get_submodule(parent), name, layer)
        found[path] = tuple(trained)
    return found


def environment(folder, peer):
    """The Python of a peer's environment, which is made if it is not there.

    Raises:
        Missing: pip cannot install its packages, or they cannot be imported.
    """
    place = folder.resolve() / peer.module.partition(".")[0]
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(place)
        ours = sysconfig.get_path("purelib")
        theirs = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
        line = f"import site; site.addsitedir({ours!r})\n"
        (theirs / "below.pth").write_text(line, encoding="utf-8")
    run = [str(python), "-c", f"import {peer.module}"]
    if subprocess.run(run, capture_output=True).returncode:
        install = ["-m", "pip", "install", "--quiet", "--no-deps", *peer.packages]
        _succeed([str(python), *install])
        _succeed(run)
    return str(python)


def _succeed(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise Missing(said[-1] if said else f"exit code {done.returncode}")


def why_not(peer, device):
    """Why a peer does not run on a device, ``""`` if it does."""
    if peer.device and peer.device != torch.device(device).type:
        return f"runs on {peer.device} only"
    return ""
