"""The device that a tool measures on: its option, its clock, and the sizes that suit it."""

from __future__ import annotations

import torch

from autolora.timing.clock import Measure, Run, cpu_measure


def device_option(parser, default="cpu"):
    """Adds ``--device``: ``cpu``, or ``cuda``, which is the first GPU that torch sees."""
    parser.add_argument("--device", type=_device, default=default, help="cpu or cuda")


def sizes_option(parser):
    """Adds ``--sizes``, instead of those that a tool has for the CPU."""
    text = "TOKENSxINxOUT, such as 2048x4096x11008"
    parser.add_argument("--sizes", nargs="*", type=_sizes, default=[], help=text)


def step_measure(device: torch.device) -> Measure:
    """Wall time of one call until the device is done: of whole training steps."""
    if device.type == "cpu":
        return cpu_measure

    def measure(run: Run) -> float:
        torch.cuda.synchronize(device)
        return cpu_measure(lambda: (run(), torch.cuda.synchronize(device)))

    return measure


def _device(text):
    if text not in ("cpu", "cuda"):
        raise ValueError(text)
    return torch.device("cuda", 0) if text == "cuda" else torch.device(text)


def _sizes(text):
    tokens, in_features, out_features = map(int, text.split("x"))
    return tokens, in_features, out_features
