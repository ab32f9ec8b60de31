"""What the ranks of a run under torchrun print: rank 0 the results, the others what is amiss."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

import torch

from autolora.cli.output.console import print_paragraph, say
from autolora.cli.output.figures import count
from autolora.cluster.liveness import DEAD, FAILED, STUCK
from autolora.cluster.share import Share
from autolora.environment import Environment
from autolora.tuning.result import TuneResult

_THREADS = "OMP_NUM_THREADS"
_LOST = {DEAD: "fell silent", STUCK: "came to no end"}


@contextmanager
def voice(rank: int) -> Iterator[None]:
    """On a rank other than 0 nothing goes to stdout, and each line on stderr names the rank."""
    if rank == 0:
        yield
        return
    named = _Named(sys.stderr, f"rank {rank}: ")
    with redirect_stderr(named), redirect_stdout(named):
        try:
            yield
        finally:
            named.end()


def say_threads(device: torch.device) -> None:
    """Says with how many threads a CPU is timed where torchrun has decided that, not the user."""
    if device.type == "cpu" and os.environ.get(_THREADS) == "1" and torch.get_num_threads() == 1:
        say(
            f"autolora: measuring with 1 thread per rank, since torchrun sets {_THREADS}=1 where "
            "it is not set; set it to what training will use"
        )


def shares_json(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """What each rank did, as plain data."""
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
    """What each rank did, in words."""
    own = shares[0].environment
    alike = [share for share in shares if share.environment == own]
    each = ", ".join(f"{share.measured} by rank {share.rank}" for share in alike)
    print_paragraph(f"{count(len(alike), 'rank')} shared the work: {each}.")
    for share in shares:
        if share.lost:
            end = _LOST.get(share.state, "has not said how it ended")
            had = " with a problem in hand, which is not measured" if share.busy else ""
            print_paragraph(f"Rank {share.rank}{_where(share)} {end}{had}.")
        elif share.state == FAILED:
            print_paragraph(f"Rank {share.rank}{_where(share)} could not take part: {share.error}")
    for environment in dict.fromkeys(share.environment for share in shares):
        if environment is not None and environment != own:
            print_paragraph(
                _elsewhere(
                    environment, [each for each in shares if each.environment == environment]
                )
            )


def seconds_of(result: TuneResult) -> float:
    """What measuring took: devices measure at the same time, ranks on one of them in turn."""
    if not result.shares:
        return sum(record.seconds for record in result.records)
    devices: dict[tuple[str, str], float] = {}
    for share in result.shares:
        place = share.host, share.device
        devices[place] = devices.get(place, 0.0) + share.seconds
    return max(devices.values())


def _where(share: Share) -> str:
    return f" on {share.host}" + (f" ({share.device})" if share.device else "")


def _elsewhere(environment: Environment, shares: Sequence[Share]) -> str:
    threads = f" with {count(environment.units, 'thread')}" if environment.device == "cpu" else ""
    problems = count(sum(share.measured for share in shares), "problem")
    their = "its" if len(shares) == 1 else "their"
    return (
        f"{count(len(shares), 'rank')} on {environment.device_name}{threads} tuned {problems} for "
        f"{their} own environment."
    )


class _Named(io.TextIOBase):
    """A stream each of whose lines says who wrote it; a line goes out when it is whole."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._rest = stream, name, ""

    def write(self, text: str) -> int:
        """Writes the lines that are whole by now."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._name}{line}\n")
        return len(text)

    def flush(self) -> None:
        """Flushes what is written."""
        self._stream.flush()

    def end(self) -> None:
        """Writes also a line that is not whole."""
        if self._rest:
            self.write("\n")
        self.flush()
