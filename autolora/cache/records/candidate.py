"""A candidate: one graph's part in a record, its times and its accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autolora.cache.records.checks import flag, members, real, text, whole

OUTPUTS = ("Y", "dX", "dA", "dB", "dc", "dM")  # of a single layer, in this order

_GRADIENT = re.compile(r"d[A-Za-z]\w{0,30}", re.ASCII)

Figures = tuple[float | None, float | None]

_LONGEST_REASON = 500
# The members of each object in a file, in the order in which they are written.
_VERDICT = ("ok", "errors", "gain", "reason")
_CANDIDATE = ("graph", "median_ns", "spread_ns", "rounds", "saved_bytes", "peak_bytes", "verdict")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a graph is as accurate as the reference graph, and its figures.

    Each figure was taken at two adapter sizes, ‖s·BA‖/‖W‖ = 1e-1 and 1e-3. One that is not finite,
    since the graph overflowed, is kept as ``None``: JSON has no infinity.

    Args:
        ok: whether the graph may be used.
        errors: relative error against float64 of each output that was computed: Y, and dX for the
            gradient of X, likewise the others.
        gain: adapter gain ⟨Y − Y₀, ΔY⟩/‖ΔY‖²; 1 means that the adapter's effect is kept whole.
        reason: why the graph was rejected, ``""`` if it was not.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    ok: bool
    errors: Mapping[str, Figures]
    gain: Figures
    reason: str = ""

    def __post_init__(self) -> None:
        flag("verdict.ok", self.ok)
        if not isinstance(self.errors, Mapping) or not all(map(_is_output, self.errors)):
            raise ValueError("verdict.errors must be an object of Y, dX and the other gradients")
        errors = {
            output: _figures("verdict.errors", self.errors[output])
            for output in sorted(self.errors, key=_place)
        }
        object.__setattr__(self, "errors", errors)
        object.__setattr__(self, "gain", _figures("verdict.gain", self.gain, signed=True))
        text("verdict.reason", self.reason, least=0 if self.ok else 1, most=_LONGEST_REASON)
        if self.ok and self.reason:
            raise ValueError("verdict.reason must be empty where ok is true")

    @classmethod
    def from_json(cls, value: object) -> Verdict:
        """Reads what :meth:`to_json` wrote, or raises ``ValueError``."""
        return cls(**members("verdict", value, _VERDICT))

    def to_json(self) -> dict[str, Any]:
        """Each pair of figures becomes a list."""
        errors = {output: list(pair) for output, pair in self.errors.items()}
        return {"ok": self.ok, "errors": errors, "gain": list(self.gain), "reason": self.reason}


LONGEST_GRAPH = 2000  # characters of a name, which may be those of many layers


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph that took part, with what is known about it.

    Args:
        graph: its name.
        median_ns: time of forward and backward together, None if it was not timed.
        spread_ns: interquartile range of those times, None likewise.
        rounds: how many times it was timed.
        saved_bytes: activations kept from forward to backward.
        verdict: None if its accuracy was not measured. A graph that ran out of memory is rejected
            for that, without figures.
        peak_bytes: allocated at the peak of forward and backward, beyond the data; None where the
            device does not count, or the graph was not timed.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    graph: str
    median_ns: int | None
    spread_ns: int | None
    rounds: int
    saved_bytes: int
    verdict: Verdict | None = None
    peak_bytes: int | None = None

    def __post_init__(self) -> None:
        text("candidate.graph", self.graph, most=LONGEST_GRAPH)
        whole("candidate.rounds", self.rounds)
        whole("candidate.saved_bytes", self.saved_bytes)
        if self.peak_bytes is not None:
            whole("candidate.peak_bytes", self.peak_bytes)
        if self.median_ns is not None:
            whole("candidate.median_ns", self.median_ns, least=1)
            whole("candidate.spread_ns", self.spread_ns)
            whole("candidate.rounds", self.rounds, least=1)
        elif self.rounds or self.spread_ns is not None or self.peak_bytes is not None:
            raise ValueError("a candidate without median_ns has no spread_ns, rounds or peak_bytes")

    @classmethod
    def from_json(cls, value: object) -> Candidate:
        """Reads what :meth:`to_json` wrote, or raises ``ValueError``."""
        fields = members("candidate", value, _CANDIDATE)
        verdict = fields["verdict"]
        return cls(**{**fields, "verdict": None if verdict is None else Verdict.from_json(verdict)})

    def to_json(self) -> dict[str, Any]:
        """The fields in the order of the file."""
        verdict = self.verdict and self.verdict.to_json()
        return {**{name: getattr(self, name) for name in _CANDIDATE}, "verdict": verdict}


def _is_output(name: object) -> bool:
    return name == "Y" or (isinstance(name, str) and _GRADIENT.fullmatch(name) is not None)


def _place(output: str) -> tuple[int, str]:
    """Those of a single layer first, then the others by name."""
    known = OUTPUTS.index(output) if output in OUTPUTS else len(OUTPUTS)
    return known, output


def _figures(name: str, value: object, *, signed: bool = False) -> Figures:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must have two figures, one per adapter size")
    first, second = value
    return _figure(name, first, signed), _figure(name, second, signed)


def _figure(name: str, value: object, signed: bool) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return real(name, value, signed=signed)
