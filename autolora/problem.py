"""A problem: all that decides which graphs are valid and how long they take, but the machine.

This room holds one frozen, hashable value and its JSON form. It knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")
LAYOUTS = ("linear", "conv1d", "nf4")
GRADIENTS = ("X", "A", "B")


@dataclass(frozen=True, slots=True)
class Problem:
    """One LoRA layer at one size: ``Y = X Wᵀ + b + s·(X Aᵀ) Bᵀ`` with a frozen ``W``.

    Shapes: X ``(tokens, in_features)``, W ``(out_features, in_features)``, A ``(rank,
    in_features)``, B ``(out_features, rank)``, Y ``(tokens, out_features)``.

    Args:
        in_features: columns of X.
        out_features: columns of Y.
        tokens: rows of X, the product of all its leading axes.
        rank: rows of A.
        dtype: of X, W and Y, the dtype the base product runs in.
        device: its type, ``"cpu"`` or ``"cuda"``; which one exactly is in the environment.
        layout: how W is stored; ``"linear"`` is ``(out_features, in_features)``, the only one that
            graphs exist for.
        bias: whether the base layer has a bias.
        adapter_dtype: of A and B as stored; ``""`` means ``dtype``.
        compute_dtype: in which the adapter branch runs; ``""`` means ``adapter_dtype``.
        dropout: whether the adapter sees ``dropout(X)`` instead of X.
        gradients: which of ``"X"``, ``"A"``, ``"B"`` need a gradient; none of them is forward only.

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
    gradients: tuple[str, ...] = GRADIENTS

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
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("bias", "dropout"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        needed = tuple(g for g in GRADIENTS if g in self.gradients)
        if len(needed) != len(self.gradients):
            raise ValueError(
                f"gradients must be distinct and of {', '.join(GRADIENTS)}, not {self.gradients!r}"
            )
        object.__setattr__(self, "gradients", needed)

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
        dtypes = "/".join(dict.fromkeys((self.dtype, self.adapter_dtype, self.compute_dtype)))
        gradients = "".join(self.gradients) or "forward"
        return (
            f"{self.in_features}→{self.out_features} tokens {self.tokens} rank {self.rank} "
            f"{dtypes} {self.device} {gradients}"
        )
