"""A problem: all that decides which graphs are valid and how long they take, but the machine.

This room holds one frozen, hashable value and its JSON form. It knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")
LAYOUTS = ("linear", "conv1d", "nf4", "int8")
QUANTISED = ("nf4", "int8")
VARIANTS = ("lora", "dora")
GRADIENTS = ("X", "A", "B", "c", "M")
PLAIN_GRADIENTS = ("X", "A", "B")


@dataclass(frozen=True, slots=True)
class Problem:
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

    Raises:
        ValueError: a field has a value that is not allowed; the message says which are.
    """

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

    def __post_init__(self) -> None:
        if not self.adapter_dtype:
            object.__setattr__(self, "adapter_dtype", self.dtype)
        if not self.compute_dtype:
            object.__setattr__(self, "compute_dtype", self.adapter_dtype)
        for name in ("in_features", "out_features", "tokens", "rank"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
        for name, allowed in (
            ("dtype", DTYPES),
            ("adapter_dtype", DTYPES),
            ("compute_dtype", DTYPES),
            ("device", DEVICES),
            ("layout", LAYOUTS),
            ("variant", VARIANTS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Problem:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or has a value that is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise ValueError(
                f"unknown problem field {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        if missing := sorted(known - set(value)):
            raise ValueError(f"problem field {missing[0]!r} is missing")
        gradients = value["gradients"]
        if not isinstance(gradients, list) or not all(isinstance(g, str) for g in gradients):
            raise ValueError(f"gradients must be a list of names, not {gradients!r}")
        return cls(**{**value, "gradients": tuple(gradients)})

    def to_json(self) -> dict[str, Any]:
        """The fields in their declared order, gradients as a list."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "gradients": list(self.gradients)}

    def at(self, tokens: int) -> Problem:
        """The same problem at another token count."""
        return replace(self, tokens=tokens)

    def __str__(self) -> str:
        return (
            f"{self.in_features}→{self.out_features} tokens {self.tokens} rank {self.rank} "
            f"{self.kind} {self.device} {''.join(self.gradients) or 'forward'}"
        )

    @property
    def kind(self) -> str:
        """The dtypes and what is special, in a few words: ``bfloat16/float32, dropout``."""
        dtypes = "/".join(dict.fromkeys((self.dtype, self.adapter_dtype, self.compute_dtype)))
        special = (
            self.layout if self.layout != "linear" else "",
            self.variant if self.variant != "lora" else "",
            "dropout" if self.dropout else "",
            "lora_B bias" if self.adapter_bias else "",
        )
        return ", ".join((dtypes, *filter(None, special)))
