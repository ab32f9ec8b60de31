"""The interface of a graph, whatever kind of problem it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

REFERENCE = "reference"


class BaseGraph(ABC):
    """One way to compute a problem, forward and backward; frozen and hashable.

    ``problem`` is always one of the kind that the graph computes.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Stable and readable; what the cache stores."""

    @abstractmethod
    def flops(self, problem: Any) -> int:
        """Multiplications and additions of all products, forward and backward."""

    @abstractmethod
    def saved_bytes(self, problem: Any) -> int:
        """Bytes kept from forward to backward beside the parameters."""

    @abstractmethod
    def saved_input_bytes(self, problem: Any) -> int:
        """Of these, the bytes of the input itself, which other layers may keep as well."""

    @property
    def is_reference(self) -> bool:
        """Whether it is what PEFT runs; it may be used without a verdict on its accuracy."""
        return self.name == REFERENCE

    @property
    def is_apart(self) -> bool:
        """Whether the problems that a problem consists of run one by one, by their own records."""
        return False

    @property
    def routes(self) -> Hashable:
        """What decides how accurate Y and dX are, libraries apart; equal for graphs alike in it."""
        return self.name

    @property
    def routes_and_libraries(self) -> Hashable:
        """The same with the libraries that compute them."""
        return self.routes

    @property
    def structure(self) -> Hashable:
        """Equal for graphs that differ in orientations and libraries alone."""
        return self.name
