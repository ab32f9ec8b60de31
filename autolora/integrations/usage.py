"""What the layers of a model have run in training so far, and how much time that has saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from autolora.cache.records.payback import seconds
from autolora.nn.choosing import MEASURED
from autolora.nn.layer_state import Choice, LayerState
from autolora.nn.siblings.family import together_of


@dataclass(frozen=True, slots=True)
class Usage:
    """The calls of layers in training; those without gradients, as in evaluation, do not count.

    Args:
        layers: number of layers.
        calls: number of calls by the reason of their graph, see :func:`~autolora.explain`.
        own: number of calls along the layer's own path, by why it has no graph.
        compiled: number of problems that torch.compile compiled, by the reason of their graph;
            their calls are not counted.
        saved_ns: by how much all calls together were faster than along the reference graphs, by the
            figures of the records.
    """

    layers: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    compiled: Counter[str] = field(default_factory=Counter)
    saved_ns: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            max(self.layers, other.layers),
            self.calls + other.calls,
            self.own + other.own,
            self.compiled + other.compiled,
            self.saved_ns + other.saved_ns,
        )

    @property
    def measured(self) -> int:
        """The number of calls on graphs that were measured in this environment."""
        return _measured(self.calls)

    @property
    def missed(self) -> int:
        """The number of calls, and of compiled problems, on graphs that were not measured."""
        every = self.calls + self.compiled
        return every.total() - _measured(every)

    @property
    def logged(self) -> dict[str, float]:
        """The figures that a training log gets; of compiled layers only the first is known."""
        if compiled := self.compiled.total():
            return {"autolora/measured_share": _measured(self.compiled) / compiled}
        counted = max(self.calls.total() + self.own.total(), 1)
        return {
            "autolora/measured_share": self.measured / counted,
            "autolora/saved_seconds": self.saved_ns / 1e9,
        }

    def __str__(self) -> str:
        parts = []
        if counted := self.calls.total() + self.own.total():
            text = f"{self.measured:,} of {counted:,} calls in training ran measured graphs"
            if self.saved_ns:
                how = "slower" if self.saved_ns < 0 else "faster"
                less = seconds(abs(self.saved_ns) / 1e9)
                text += f", {less} {how} than PEFT's by their records"
            parts.append(text)
        for reason, number in self.calls.items():
            if reason not in MEASURED:
                how = "graphs chosen unmeasured" if reason == "miss" else f"graphs of {reason}"
                parts.append(f"{number:,} ran {how}")
        parts += [f"{number:,} ran PEFT's path ({why})" for why, number in self.own.items()]
        if compiled := self.compiled.total():
            text = (
                f"{_measured(self.compiled)} of {compiled} problems compiled have measured graphs"
            )
            parts.append(f"{text} (calls of compiled code are not counted)")
        return "; ".join(parts) or "no layer has run in training yet"


def usage_of(states: Iterable[LayerState]) -> Usage:
    """What layers have run since they last chose their graphs anew; they are not counted."""
    saved = 0.0
    calls: Counter[str] = Counter()
    own: Counter[str] = Counter()
    traced: dict[int, Choice] = {}
    for state in states:
        traced |= {id(choice): choice for choice in state.policy.traced.values()}
        for choice in list(state.choices.values()):
            together = together_of(choice, state)
            for each in (choice,) if together is None else (choice, together):
                if each.problem is None:
                    own[each.detail] += each.calls
                elif each.problem.gradients and not each.is_compiled:
                    calls[each.reason] += each.calls
                    if each is choice or state.place == 0:  # once for all siblings
                        saved += each.calls * each.saved_ns
    compiled = Counter(c.reason for c in traced.values() if c.problem and c.problem.gradients)
    return Usage(0, +calls, +own, compiled, saved)


def _measured(counts: Counter[str]) -> int:
    """How many have a graph that was measured in this environment."""
    return sum(counts[reason] for reason in MEASURED)
