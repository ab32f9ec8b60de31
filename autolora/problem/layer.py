"""The problem of a single LoRA layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autolora.problem.base import (
    COMPILED,
    DEFAULT_KIND,
    DEVICES,
    DTYPES,
    EAGER,
    MODES,
    BaseProblem,
    require,
    require_sizes,
)

LAYOUTS = ("linear", "conv1d", "nf4", "int8")
QUANTISED = ("nf4", "int8")
VARIANTS = ("lora", "dora")
GRADIENTS = ("X", "A", "B", "c", "M")
PLAIN_GRADIENTS = ("X", "A", "B")

_VARIANT_NAMES = {"lora": "LoRA", "dora": "DoRA"}


@dataclass(frozen=True, slots=True)
class Problem(BaseProblem):
    """One LoRA layer at one size: ``Y = X Wᵀ + b + s·((D Aᵀ) Bᵀ + c)`` with a frozen ``W``.

    D is X, or ``dropout(X)``. With the variant DoRA (arXiv 2402.09353) it is ``Y = b + g·(X Wᵀ +
    s·(X Aᵀ) Bᵀ)`` where ``g = M / ‖W + s·B A‖``, norms of rows, through which no gradient flows.

    Shapes: X ``(tokens, in_features)``, W ``(out_features, in_features)``, A ``(rank,
    in_features)``, B ``(out_features, rank)``, b, c and M ``(out_features,)``, Y ``(tokens,
    out_features)``.

    Args:
        in_features: columns of X.
        out_features: columns of Y.
        tokens: rows of X, the product of all its leading axes.
        rank: rows of A.
        dtype: of X, W and Y, the dtype the base product runs in.
        device: its type, ``"cpu"`` or ``"cuda"``; which one exactly is in the environment.
        layout: how W is stored: ``"linear"`` is ``(out_features, in_features)``, ``"conv1d"`` its
            transpose, as in GPT-2; ``"nf4"`` and ``"int8"`` are quantised by bitsandbytes.
        bias: whether the base layer has a bias b.
        adapter_dtype: of A and B as stored; ``""`` means ``dtype``.
        compute_dtype: in which the adapter branch runs; ``""`` means ``adapter_dtype``.
        dropout: whether the adapter sees ``dropout(X)`` instead of X.
        adapter_bias: whether lora_B has a bias c.
        variant: ``"lora"`` or ``"dora"``.
        gradients: which of ``"X"``, ``"A"``, ``"B"``, ``"c"``, ``"M"`` need a gradient; none of
            them is forward only.
        mode: ``"eager"``, or ``"compiled"`` by torch.compile.

    Raises:
        ValueError: a field has a value that is not allowed; the message says which are.
    """

    kind: ClassVar[str] = DEFAULT_KIND

    in_features: int
    out_features: int
    tokens: int
    rank: int
    dtype: str
    device: str
    layout: str = "linear"
    bias: bool = False
    adapter_dtype: str = ""
    compute_dtype: str = ""
    dropout: bool = False
    adapter_bias: bool = False
    variant: str = "lora"
    gradients: tuple[str, ...] = PLAIN_GRADIENTS
    mode: str = EAGER

    def __post_init__(self) -> None:
        if not self.adapter_dtype:
            object.__setattr__(self, "adapter_dtype", self.dtype)
        if not self.compute_dtype:
            object.__setattr__(self, "compute_dtype", self.adapter_dtype)
        require_sizes(self)
        for name, allowed in (
            ("dtype", DTYPES),
            ("adapter_dtype", DTYPES),
            ("compute_dtype", DTYPES),
            ("device", DEVICES),
            ("layout", LAYOUTS),
            ("variant", VARIANTS),
            ("mode", MODES),
        ):
            require(name, getattr(self, name), allowed)
        for name in ("bias", "dropout", "adapter_bias"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        needed = tuple(g for g in GRADIENTS if g in self.gradients)
        if len(needed) != len(self.gradients):
            raise ValueError(
                f"gradients must be distinct and of {', '.join(GRADIENTS)}, not {self.gradients!r}"
            )
        object.__setattr__(self, "gradients", needed)
        if self.adapter_bias and self.variant == "dora":
            raise ValueError("adapter_bias must be false for the variant dora")
        for gradient, there in (("c", self.adapter_bias), ("M", self.variant == "dora")):
            if gradient in needed and not there:
                raise ValueError(f"gradients name {gradient}, which this problem does not have")

    def __str__(self) -> str:
        return (
            f"{self.in_features}→{self.out_features} tokens {self.tokens} rank {self.rank} "
            f"{self.traits} {self.device} {''.join(self.gradients) or 'forward'}"
        )

    @property
    def layer_sizes(self) -> frozenset[tuple[int, int]]:
        """Its own."""
        return frozenset({(self.in_features, self.out_features)})

    @property
    def shape_text(self) -> str:
        """In and out features, and whether there is a bias: ``512 → 768 +b``."""
        return f"{self.in_features} → {self.out_features}" + (" +b" if self.bias else "")

    @property
    def section_text(self) -> str:
        """Variant, rank, dtypes and what is special."""
        title = f"{_VARIANT_NAMES[self.variant]} rank {self.rank}, {self.dtype}"
        if self.layout != "linear":
            title += f" {self.layout}"
        if self.adapter_dtype != self.dtype:
            title += f", adapters {self.adapter_dtype}"
        if self.compute_dtype != self.adapter_dtype:
            title += f" computed in {self.compute_dtype}"
        if self.adapter_bias:
            title += ", lora_B bias"
        return title + ", dropout" * self.dropout + f", {self.mode}" * (self.mode != EAGER)

    @property
    def traits(self) -> str:
        """The dtypes and what is special: ``bfloat16/float32, dropout``."""
        dtypes = "/".join(dict.fromkeys((self.dtype, self.adapter_dtype, self.compute_dtype)))
        special = (
            self.layout if self.layout != "linear" else "",
            self.variant if self.variant != "lora" else "",
            "dropout" if self.dropout else "",
            "lora_B bias" if self.adapter_bias else "",
            self.mode if self.mode != EAGER else "",
        )
        return ", ".join((dtypes, *filter(None, special)))

    @property
    def family_text(self) -> str:
        """Sizes, rank and traits."""
        return f"{self.in_features}→{self.out_features} rank {self.rank} {self.traits}"

    @property
    def rank_text(self) -> str:
        """Its rank."""
        return str(self.rank)

    @property
    def gradient_text(self) -> str:
        """X, A and B each in its place, then what else there is."""
        shown = [name if name in self.gradients else " " for name in PLAIN_GRADIENTS]
        shown += [name for name in self.gradients if name not in PLAIN_GRADIENTS]
        return " ".join(shown).rstrip() if self.gradients else "none"

    @property
    def tune_options(self) -> str:
        """Rank, dtype, and the kind of adapters."""
        options = f"--rank {self.rank} --dtype {self.dtype}"
        adapters = " --dropout 0.1" * self.dropout + " --lora-bias" * self.adapter_bias
        adapters += " --dora" * (self.variant == "dora")
        adapters += f" --quantised {self.layout}" * (self.layout in QUANTISED)
        return options + adapters + " --compiled" * (self.mode == COMPILED)
