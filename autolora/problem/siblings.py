"""The problem of sibling layers: LoRA layers that are fed by one X, such as q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autolora.problem.base import (
    EAGER,
    BaseProblem,
    field_names,
)
from autolora.problem.layer import PLAIN_GRADIENTS, Problem

_MOST = 16  # siblings


@dataclass(frozen=True, slots=True)
class Siblings(BaseProblem):
    """Several LoRA layers with one X: ``Y_j = X W_jᵀ + b_j + s_j·(X A_jᵀ) B_jᵀ``.

    The gradient of X is the sum of theirs. Layers with dropout, which draw masks of their own, with
    DoRA or with a bias in lora_B are problems of their own.

    Args:
        in_features: columns of X.
        out_features: columns of each Y.
        tokens: rows of X.
        ranks: rows of each A.
        dtype: of X, each W and each Y.
        device: its type.
        layout: how each W is stored, see :class:`~autolora.problem.Problem`.
        biases: whether each layer has a bias.
        adapter_dtype: of each A and B as stored; ``""`` means ``dtype``.
        compute_dtype: in which the adapter branches run; ``""`` means ``adapter_dtype``.
        gradients: which of ``"X"``, ``"A"`` and ``"B"`` need one, in every layer.
        mode: ``"eager"``, or ``"compiled"`` by torch.compile.

    Raises:
        ValueError: a field has a value that is not allowed; the message says which are.
    """

    kind: ClassVar[str] = "siblings"

    in_features: int
    out_features: tuple[int, ...]
    tokens: int
    ranks: tuple[int, ...]
    dtype: str
    device: str
    layout: str = "linear"
    biases: tuple[bool, ...] = ()
    adapter_dtype: str = ""
    compute_dtype: str = ""
    gradients: tuple[str, ...] = PLAIN_GRADIENTS
    mode: str = EAGER

    def __post_init__(self) -> None:
        if self.biases == ():
            object.__setattr__(self, "biases", (False,) * len(self.out_features))
        number = len(self.out_features)
        if not 2 <= number <= _MOST or {len(self.ranks), len(self.biases)} != {number}:
            raise ValueError(
                f"out_features, ranks and biases must have an entry for each of 2 to {_MOST} layers"
            )
        for name in ("out_features", "ranks"):
            if any(type(size) is not int or size < 1 for size in getattr(self, name)):
                raise ValueError(f"{name} must be whole numbers of at least 1")
        if any(type(each) is not bool for each in self.biases):
            raise ValueError("biases must be true or false")
        if not {"A", "B"} <= set(self.gradients) <= set(PLAIN_GRADIENTS):
            raise ValueError(f"gradients must be X, A and B, or A and B, not {self.gradients!r}")
        first = self.parts[0]  # which checks what they have in common
        for name in ("adapter_dtype", "compute_dtype", "gradients"):
            object.__setattr__(self, name, getattr(first, name))

    @classmethod
    def of(cls, layers: Sequence[Problem]) -> Siblings | str:
        """The problem of some layers with one X, or why they are not one."""
        first = layers[0]
        for layer in layers:
            if layer.variant != "lora":
                return "DoRA"
            if layer.dropout:
                return "dropout, of which each draws its own mask"
            if layer.adapter_bias:
                return "a bias in lora_B"
            if not {"A", "B"} <= set(layer.gradients):
                return "a frozen lora_A or lora_B"
            if differing := [n for n in _SHARED if getattr(layer, n) != getattr(first, n)]:
                return f"another {differing[0]}"
        if not 2 <= len(layers) <= _MOST:
            return f"{len(layers)} layers"
        return cls(
            **{name: getattr(first, name) for name in _SHARED},
            out_features=tuple(layer.out_features for layer in layers),
            ranks=tuple(layer.rank for layer in layers),
            biases=tuple(layer.bias for layer in layers),
        )

    @property
    def parts(self) -> tuple[Problem, ...]:
        """The problem of each layer by itself."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in _SHARED}
        own = zip(self.out_features, self.ranks, self.biases, strict=True)
        return tuple(
            Problem(**shared, out_features=size, rank=rank, bias=bias) for size, rank, bias in own
        )

    @property
    def layer_sizes(self) -> frozenset[tuple[int, int]]:
        """Of its layers."""
        return frozenset((self.in_features, size) for size in self.out_features)

    @property
    def shape_text(self) -> str:
        """In features, and the out features of each, ``+b`` for a bias: ``576 → 576+b, 192``."""
        own = zip(self.out_features, self.biases, strict=True)
        outs = (f"{size}+b" if bias else str(size) for size, bias in own)
        return f"{self.in_features} → {', '.join(outs)}"

    @property
    def section_text(self) -> str:
        """Ranks, dtypes and what is special, as of one layer."""
        return self._like.section_text.replace(f"rank {self.ranks[0]}", f"rank {self.rank_text}", 1)

    @property
    def traits(self) -> str:
        """The dtypes and what is special, as of one layer."""
        return self._like.traits

    @property
    def tune_options(self) -> str:
        """As of one layer."""
        return self._like.tune_options

    @property
    def rank_text(self) -> str:
        """The rank of all, or that of each."""
        distinct = dict.fromkeys(self.ranks)
        return ", ".join(map(str, distinct if len(distinct) == 1 else self.ranks))

    @property
    def _like(self) -> Problem:
        """The first layer, for words."""
        return self.parts[0]


_SHARED = tuple(
    name
    for name in field_names(Problem)
    if name in field_names(Siblings) and name != "out_features"
)
