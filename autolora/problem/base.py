"""The interface of a problem, whatever its kind.

A kind is a frozen dataclass derived from :class:`BaseProblem` and listed in
:data:`autolora.problem.kinds.KINDS`. Its fields are its key; graphs, timing and layers of the kind
are listed beside those of the others in :mod:`autolora.graphs.kinds` and
:mod:`autolora.timing.kinds`. This module knows nothing of torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")
DEFAULT_KIND = "layer"  # whose name is not written into a file
MODES = (EAGER, COMPILED) = ("eager", "compiled")


class BaseProblem(ABC):
    """A computation with trainable adapters at one size.

    The fields of a kind are its sizes first, whole numbers with ``tokens`` among them, then words,
    truth values, and tuples of words or numbers. Cache files order records by the sizes,
    interpolate between token counts, and compare everything else for equality. A kind that can be
    measured compiled has a field ``mode``, whose default is not written into a file.
    """

    __slots__ = ()

    kind: ClassVar[str]
    """Its name in cache files."""

    # Declared by each kind as fields.
    tokens: int
    dtype: str
    device: str
    gradients: tuple[str, ...]

    mode: str = EAGER
    """How it runs: ``"eager"``, or ``"compiled"`` by torch.compile."""

    @property
    def sizes(self) -> dict[str, int]:
        """The fields that are whole numbers, by name, in declared order."""
        return {name: getattr(self, name) for name in size_names(type(self))}

    def at(self, tokens: int) -> Self:
        """The same problem at another token count."""
        return replace(self, tokens=tokens)  # type: ignore[type-var]  # every kind is a dataclass

    @property
    def parts(self) -> tuple[BaseProblem, ...]:
        """The problems that it consists of; computed one by one, they compute it as well."""
        return ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that problems of its kind can have."""
        return MODES if "mode" in field_names(type(self)) else (EAGER,)

    def in_mode(self, mode: str) -> Self:
        """The same problem in another mode, or itself if its kind does not have that."""
        if mode == self.mode or mode not in self.modes:
            return self
        return replace(self, mode=mode)  # type: ignore[type-var]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Reads what :meth:`to_json` wrote of a problem of this kind.

        Raises:
            ValueError: a field is missing, unknown or has a value that is not allowed.
        """
        known = set(field_names(cls))
        value = {n: v for n, v in value.items() if (n, v) != ("kind", cls.kind)}
        if unknown := sorted(set(value) - known):
            raise ValueError(
                f"unknown problem field {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        if missing := sorted(known - {"mode", *value}):
            raise ValueError(f"problem field {missing[0]!r} is missing")
        gradients = value["gradients"]
        if not isinstance(gradients, list) or not all(isinstance(g, str) for g in gradients):
            raise ValueError(f"gradients must be a list of names, not {gradients!r}")
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in value.items()})

    def to_json(self) -> dict[str, Any]:
        """The kind, unless it is a single layer, and the fields in declared order.

        The mode is left out where it is eager.
        """
        found: dict[str, Any] = {} if self.kind == DEFAULT_KIND else {"kind": self.kind}
        for name in field_names(type(self)):
            value = getattr(self, name)
            if (name, value) != ("mode", EAGER):
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    def __str__(self) -> str:
        return (
            f"{self.shape_text} tokens {self.tokens} {self._rank_before(' ')}{self.traits} "
            f"{self.device} {''.join(self.gradients) or 'forward'}"
        )

    @property
    @abstractmethod
    def layer_sizes(self) -> frozenset[tuple[int, int]]:
        """``(in_features, out_features)`` of the layers that a model must have to pose it."""

    @property
    @abstractmethod
    def shape_text(self) -> str:
        """The sizes of the layers in words: ``512 → 768 +b``."""

    @property
    @abstractmethod
    def section_text(self) -> str:
        """What problems of one section of a table have in common: ``LoRA rank 8, float32``."""

    @property
    @abstractmethod
    def traits(self) -> str:
        """Dtypes and what else is special, in a few words: ``bfloat16/float32, dropout``."""

    @property
    @abstractmethod
    def tune_options(self) -> str:
        """The options that make ``autolora tune MODEL`` measure it, tokens and device apart."""

    @property
    def gradient_text(self) -> str:
        """The gradients that are needed, for a column of a table."""
        return " ".join(self.gradients) or "none"

    @property
    def call_text(self) -> str:
        """Sizes, tokens and needed gradients: ``512 → 768, 1024 tokens, dX, dA, dB``."""
        gradients = ", ".join(f"d{name}" for name in self.gradients) or "forward only"
        return f"{self.shape_text}, {self.tokens} tokens, {gradients}"

    @property
    def family_text(self) -> str:
        """What problems that differ in tokens only have in common, in one line."""
        return f"{self.shape_text} {self._rank_before(' ')}{self.traits}"

    @property
    def title(self) -> str:
        """All of it in one line."""
        return f"{self.call_text}, {self._rank_before(', ')}{self.traits}"

    @property
    def rank_text(self) -> str:
        """The rank of its adapters, ``""`` if they have none."""
        return ""

    def _rank_before(self, mark: str) -> str:
        return f"rank {self.rank_text}{mark}" if self.rank_text else ""


@lru_cache(maxsize=64)
def field_names(kind: type[BaseProblem]) -> tuple[str, ...]:
    """The fields of a kind in declared order."""
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def size_names(kind: type[BaseProblem]) -> tuple[str, ...]:
    """Those of them that are whole numbers."""
    return tuple(field.name for field in fields(kind) if field.type in ("int", int))  # type: ignore[arg-type]


def require(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Checks a field whose values are a few words.

    Raises:
        ValueError: it has another value; the message says which are allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def require_sizes(problem: BaseProblem) -> None:
    """Checks the fields that are whole numbers.

    Raises:
        ValueError: one is not a whole number of at least 1.
    """
    for name, size in problem.sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
