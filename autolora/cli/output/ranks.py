"""Output under torchrun: rank 0 prints the results, the other ranks only their errors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

import torch

from autolora.cli.output.console import print_paragraph, print_status
from autolora.cluster.liveness import DEAD, FAILED, STUCK
from autolora.cluster.share import Share
from autolora.environment import Environment
from autolora.tuning.result import TuneResult
from autolora.units import count

_THREADS = "OMP_NUM_THREADS"
_LOST = {DEAD: "stopped responding", STUCK: "did not finish"}


@contextmanager
def rank_output(rank: int) -> Iterator[None]:
    """On ranks other than 0, sends all output to stderr, each line with the rank as its prefix."""
    if rank == 0:
        yield
        return
    prefixed = _PrefixedStream(sys.stderr, f"rank {rank}: ")
    with redirect_stderr(prefixed), redirect_stdout(prefixed):
        try:
            yield
        finally:
            prefixed.end()


def print_thread_note(device: torch.device) -> None:
    """Notes that a CPU is timed with one thread if torchrun chose that, and not the user."""
    if device.type == "cpu" and os.environ.get(_THREADS) == "1" and torch.get_num_threads() == 1:
        print_status(
            f"autolora: measuring with 1 thread per rank, since torchrun sets {_THREADS}=1 where "
            "it is not set; set it to what training will use"
        )


def shares_json(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """What each rank did, as JSON."""
    return [
        {
            "rank": share.rank,
            "host": share.host,
            "device": share.device,
            "environment": None if share.environment is None else share.environment.id,
            "measured": share.measured,
            "state": share.state,
        }
        for share in shares
    ]


def print_shares(shares: Sequence[Share]) -> None:
    """Prints what each rank did, lost and failed ranks, and other environments."""
    own = shares[0].environment
    alike = [share for share in shares if share.environment == own]
    each = ", ".join(f"{share.measured} by rank {share.rank}" for share in alike)
    print_paragraph(f"{count(len(alike), 'rank')} shared the work: {each}.")
    for share in shares:
        if share.lost:
            end = _LOST.get(share.state, "ended without a report")
            problem = " with a problem in hand, which is not measured" if share.busy else ""
            print_paragraph(f"Rank {share.rank}{_where(share)} {end}{problem}.")
        elif share.state == FAILED:
            print_paragraph(f"Rank {share.rank}{_where(share)} could not take part: {share.error}")
    for environment in dict.fromkeys(share.environment for share in shares):
        if environment is not None and environment != own:
            others = [share for share in shares if share.environment == environment]
            print_paragraph(_other_environment(environment, others))


def measuring_seconds(result: TuneResult) -> float:
    """How long measuring took: devices run at the same time, the ranks on one of them in turn."""
    if not result.shares:
        return sum(record.seconds for record in result.records)
    devices: dict[tuple[str, str], float] = {}
    for share in result.shares:
        place = share.host, share.device
        devices[place] = devices.get(place, 0.0) + share.seconds
    return max(devices.values())


def _where(share: Share) -> str:
    return f" on {share.host}" + (f" ({share.device})" if share.device else "")


def _other_environment(environment: Environment, shares: Sequence[Share]) -> str:
    threads = f" with {count(environment.units, 'thread')}" if environment.device == "cpu" else ""
    problems = count(sum(share.measured for share in shares), "problem")
    their = "its" if len(shares) == 1 else "their"
    return (
        f"{count(len(shares), 'rank')} on {environment.device_name}{threads} tuned {problems} for "
        f"{their} own environment."
    )


class _PrefixedStream(io.TextIOBase):
    """A stream that writes whole lines, each with a prefix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._rest = stream, prefix, ""

    def write(self, text: str) -> int:
        """Writes the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._stream.writelines(f"{self._prefix}{line}\n" for line in lines)
        return len(text)

    def flush(self) -> None:
        """Flushes what is written."""
        self._stream.flush()

    def end(self) -> None:
        """Writes the last line even if it is incomplete."""
        if self._rest:
            self.write("\n")
        self.flush()
