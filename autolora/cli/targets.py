"""From options to a device, and to the problems of a model."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

import torch

from autolora.capture.capture import capture
from autolora.capture.found import Capture
from autolora.capture.target import Adapters, is_code, load_target
from autolora.errors import AutoloraError
from autolora.problem import COMPILED, DEVICES


def read_target(options: Namespace, device: torch.device, most: int | None = None) -> Capture:
    """Finds the problems of TARGET; what its code prints goes to stderr.

    Its code finds in ``sys.argv`` what it is called and the arguments after ``--``.

    Args:
        options: of the command.
        device: on which the model is trained.
        most: limit of the number of problems.

    Raises:
        AutoloraError: TARGET cannot be read, or has no problem or too many, or there are arguments
            and no code to parse them.
    """
    if options.arguments and not is_code(options.target):
        raise AutoloraError(
            f"arguments after -- go to the code of TARGET, and {options.target} holds none"
        )
    counts = options.tokens.counts
    adapters = Adapters(
        rank=options.rank,
        alpha=options.alpha,
        target_modules=options.target_modules,
        dtype=torch_dtype(options.dtype),
        adapter_dtype=torch_dtype(options.adapter_dtype),
        compute_dtype=torch_dtype(options.compute_dtype),
        dropout=options.dropout,
        dora=options.dora,
        lora_bias=options.lora_bias,
        quantised=options.quantised or "",
    )
    with redirect_stdout(sys.stderr), _run_as(options.target, options.arguments):
        found = capture(
            load_target(options.target, adapters),
            device=device.type,
            batch_size=options.batch_size,
            seq_len=options.seq_len,
            tokens=counts[:1],
            autocast=torch_dtype(options.autocast),
        )
    if options.compiled:
        found = found.changed(lambda problem: problem.in_mode(COMPILED))
    number = len(found.problems) * max(len(counts), 1)
    if most is not None and number > most:
        raise AutoloraError(
            f"{number:,} problems would take hours to measure; give fewer --tokens (a range "
            "LOW:HIGH without a step is a few), or --yes to measure all of them"
        )
    return found.at(counts) if len(counts) > 1 else found


@contextmanager
def _run_as(target: str, arguments: Sequence[str]) -> Iterator[None]:
    """What a program finds in ``sys.argv`` that is run by its path or the name of its module."""
    before = sys.argv
    sys.argv = [target.partition(":")[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def device_of(name: str | None, local: int = 0) -> torch.device:
    """The device of a name; by default a CUDA device if there is one, otherwise the CPU.

    Args:
        name: of a device, or of a device type.
        local: local rank of this process, which selects one of the host's CUDA devices.

    Raises:
        AutoloraError: this machine has no such device, or autolora does not support it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in DEVICES:
        raise AutoloraError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    present = torch.cuda.device_count()
    index = local % max(present, 1) if device.index is None else device.index
    if index >= present:
        found = f"{present} CUDA device{'s' * (present != 1)}" if present else "no CUDA device"
        raise AutoloraError(f"no device {name!r}: this machine has {found}")
    return torch.device("cuda", index)


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a valid name."""
    return None if name is None else getattr(torch, name)
