"""The problem of a mixture's experts: one of their stacked weights with LoRA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from autolora.problem.base import (
    DEVICES,
    DTYPES,
    BaseProblem,
    require,
    require_sizes,
)
from autolora.problem.layer import PLAIN_GRADIENTS, Problem

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
LOADS = ("uniform", "skewed")
_LAYOUTS = ("linear", "conv1d")


@dataclass(frozen=True, slots=True)
class Experts(BaseProblem):
    """One projection of a mixture's routed experts: ``Y_e = X_e W_eᵀ + b_e + s·(X_e A_eᵀ) B_eᵀ``.

    A router sends each token to ``top_k`` of the experts; X_e are the rows that expert e gets, so
    that all of them together are ``tokens × top_k`` rows.

    Args:
        in_features: columns of X.
        out_features: columns of Y.
        tokens: that the router gets.
        experts: number of experts.
        top_k: experts of each token.
        rank: rows of each A_e.
        dtype: of X, W and Y; the adapters compute in it too.
        device: its type.
        layout: how W is stored: ``"linear"`` is ``(experts, out_features, in_features)``,
            ``"conv1d"`` is ``(experts, in_features, out_features)``.
        bias: whether there is a bias, ``(experts, out_features)``.
        adapter_dtype: of A and B as stored; ``""`` means ``dtype``.
        implementation: how the model runs its experts without autolora, in transformers' words.
        load: ``"uniform"`` or ``"skewed"``, how evenly the tokens are spread over the experts.
        gradients: which of ``"X"``, ``"A"`` and ``"B"`` need one.

    Raises:
        ValueError: a field has a value that is not allowed; the message says which are.
    """

    kind: ClassVar[str] = "experts"

    in_features: int
    out_features: int
    tokens: int
    experts: int
    top_k: int
    rank: int
    dtype: str
    device: str
    layout: str = "linear"
    bias: bool = False
    adapter_dtype: str = ""
    implementation: str = "grouped_mm"
    load: str = "uniform"
    gradients: tuple[str, ...] = PLAIN_GRADIENTS

    def __post_init__(self) -> None:
        if not self.adapter_dtype:
            object.__setattr__(self, "adapter_dtype", self.dtype)
        require_sizes(self)
        for name, allowed in (
            ("dtype", DTYPES),
            ("adapter_dtype", DTYPES),
            ("device", DEVICES),
            ("layout", _LAYOUTS),
            ("implementation", IMPLEMENTATIONS),
            ("load", LOADS),
        ):
            require(name, getattr(self, name), allowed)
        if type(self.bias) is not bool:
            raise ValueError(f"bias must be true or false, not {self.bias!r}")
        needed = tuple(name for name in PLAIN_GRADIENTS if name in self.gradients)
        if len(needed) != len(self.gradients):
            raise ValueError(f"gradients must be distinct and of X, A, B, not {self.gradients!r}")
        object.__setattr__(self, "gradients", needed)

    @property
    def rows(self) -> int:
        """Rows of X: a token counts once for each of its experts."""
        return self.tokens * self.top_k

    @property
    def compute_dtype(self) -> str:
        """In which the adapters compute: that of W, as in PEFT."""
        return self.dtype

    @property
    def part(self) -> Problem:
        """The problem of one expert that gets all rows; its graphs are those of each expert."""
        return Problem(
            in_features=self.in_features,
            out_features=self.out_features,
            tokens=self.rows,
            rank=self.rank,
            dtype=self.dtype,
            device=self.device,
            layout=self.layout,
            bias=self.bias,
            gradients=self.gradients,
        )

    @property
    def layer_sizes(self) -> frozenset[tuple[int, int]]:
        """Of one expert."""
        return frozenset({(self.in_features, self.out_features)})

    @property
    def shape_text(self) -> str:
        """Experts, and in and out features of each: ``32 experts 512 → 768 +b, top 4, skewed``."""
        sizes = f"{self.in_features} → {self.out_features}" + " +b" * self.bias
        load = f", {self.load}" * (self.load != LOADS[0])
        return f"{self.experts} experts {sizes}, top {self.top_k}{load}"

    @property
    def section_text(self) -> str:
        """Rank, dtypes and what is special."""
        title = f"LoRA on experts, rank {self.rank}, {self.dtype}"
        if self.adapter_dtype != self.dtype:
            title += f", adapters {self.adapter_dtype}"
        return f"{title}, {self._special}"

    @property
    def traits(self) -> str:
        """The dtypes and what is special."""
        dtypes = "/".join(dict.fromkeys((self.dtype, self.adapter_dtype)))
        return f"{dtypes}, {self._special}"

    @property
    def _special(self) -> str:
        return self.implementation + ", conv1d" * (self.layout == "conv1d")

    @property
    def rank_text(self) -> str:
        """Its rank."""
        return str(self.rank)

    @property
    def tune_options(self) -> str:
        """Rank and dtype."""
        return f"--rank {self.rank} --dtype {self.dtype}"


@lru_cache(maxsize=1024)
def at_loads(problem: BaseProblem) -> tuple[BaseProblem, ...]:
    """The problem; of experts one for each load, which depends on the data and changes."""
    if not isinstance(problem, Experts):
        return (problem,)
    return tuple(replace(problem, load=load) for load in LOADS)
