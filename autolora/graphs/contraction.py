"""One step of a graph as a formula: a matrix product, a concatenation, an elementwise expression.

Pure integers and names: what a step reads, what it writes, its FLOPs and its bytes are all derived
from the axes of the tensors it names. How a step is run stands in :mod:`autolora.graphs.source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

# Axes: m tokens, i in_features, o out_features, r rank; k = i + r and n = o + r are concatenations.
AXES = {
    "X": "mi",
    "W": "oi",
    "Q": "oi",  # W as quantised
    "b": "o",
    "A": "ri",
    "B": "or",
    "c": "o",  # the bias of lora_B
    "M": "o",  # DoRA's magnitude
    "Y": "mo",
    "K": "mi",  # dropout's mask: 1 where an element of X is kept
    "D": "mi",  # X where it is kept, else 0
    "h": "mr",  # X Aᵀ, or D Aᵀ
    "V": "oi",  # W + s·B A, the merged weight
    "Xh": "mk",  # [X | h]
    "WB": "ok",  # [W | s·B]
    "bc": "o",  # b + s·c
    "N": "o",  # the norms of the rows of V
    "g": "o",  # M / N
    "U": "mo",  # X Vᵀ, or D Vᵀ
    "R": "mi",  # X − D
    "Vg": "oi",  # g·V
    "F": "oi",  # g·V − W
    "Bg": "or",  # g·B
    "G": "mo",  # dY
    "Gg": "mo",  # g·G
    "Gm": "mo",  # (g − 1)·G
    "Z": "mr",  # s·G B
    "T": "mi",  # Z A
    "P": "oi",  # Gᵀ X, or Gᵀ D
    "GZ": "mn",  # [G | Z]
    "WA": "ni",  # [W; A]
    "dX": "mi",
    "dA": "ri",
    "dB": "or",
    "dc": "o",
    "dM": "o",
}

# The matrices of the adapter branch are kept in compute_dtype, its vectors, which cost nothing, in
# adapter_dtype, and everything else in dtype.
ADAPTER_TENSORS = frozenset({"A", "B", "D", "h", "Bg", "Z", "T", "P", "dA", "dB"})
ADAPTER_VECTORS = frozenset({"c", "M", "N", "g", "dc", "dM"})

# Products over, or with, the rank axis alone: these have two orientations worth telling apart.
THIN_PRODUCTS = ("h", "Z", "dA", "dB")


@dataclass(frozen=True, slots=True)
class Contraction:
    """``out = [onto +] [s·] left · right``, summed over the one axis that ``out`` does not have.

    Which operand is transposed follows from the axes.

    >>> Contraction("h", "X", "A").formula
    'h = X Aᵀ'
    >>> Contraction("Y", "h", "B", onto="Y", scaled=True).formula
    'Y = Y + s·h Bᵀ'
    >>> Contraction("h", "X", "A").flops({"m": 10, "i": 4, "r": 2})
    160
    """

    out: str
    left: str
    right: str
    onto: str = ""
    scaled: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors this step needs."""
        return (self.left, self.right, *([self.onto] if self.onto else []))

    @property
    def axes(self) -> str:
        """The distinct axes, those of the result first."""
        return "".join(dict.fromkeys(AXES[self.out] + AXES[self.left] + AXES[self.right]))

    @property
    def operands(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """The two factors in the order of the result's axes, each with whether it is transposed."""
        row, column = tuple(AXES[self.out])
        first, second = (
            (self.left, self.right) if row in AXES[self.left] else (self.right, self.left)
        )
        return (first, AXES[first][0] != row), (second, AXES[second][1] != column)

    @property
    def formula(self) -> str:
        """The step as a person would write it."""
        factors = " ".join(f"{name}ᵀ" if turned else name for name, turned in self.operands)
        return f"{self.out} = {f'{self.onto} + ' if self.onto else ''}{'s·' * self.scaled}{factors}"

    def flops(self, sizes: Mapping[str, int]) -> int:
        """2 × the product of the distinct axes: one multiplication and one addition each."""
        return 2 * prod(sizes[axis] for axis in self.axes)

    def elements(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Elements moved per tensor: each factor read once, the result written, ``onto`` read."""
        return _elements((*self.reads, self.out), sizes)


@dataclass(frozen=True, slots=True)
class Join:
    """``out = [s·]`` ``first`` and ``second`` side by side along the axis that they do not share.

    >>> Join("WB", "W", "B", scaled=True).formula
    'WB = [W | s·B]'
    """

    out: str
    first: str
    second: str
    scaled: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors this step needs."""
        return (self.first, self.second)

    @property
    def axis(self) -> int:
        """Along which axis the two are put together."""
        return 1 if AXES[self.first][0] == AXES[self.second][0] else 0

    @property
    def formula(self) -> str:
        """The step as a person would write it."""
        mark = "|" if self.axis else ";"
        return f"{self.out} = [{self.first} {mark} {'s·' * self.scaled}{self.second}]"

    def flops(self, sizes: Mapping[str, int]) -> int:
        """None: a copy."""
        return 0

    def elements(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Elements moved per tensor."""
        return _elements((*self.reads, self.out), sizes)


@dataclass(frozen=True, slots=True)
class Elementwise:
    """``out`` by a torch expression without a product.

    Args:
        out: what it makes, or changes in place where it reads it too.
        reads: names of the tensors that it needs.
        formula: as a person would write it.
        code: the expression: ``{name}`` stands for a tensor of ``reads`` in the dtype of ``out``,
            ``{name!}`` for one in its own, ``{dtype}`` for the dtype of ``out``; ``s`` is the
            scaling and ``p`` dropout's probability.
    """

    out: str
    reads: tuple[str, ...]
    formula: str
    code: str

    def flops(self, sizes: Mapping[str, int]) -> int:
        """None that count: far fewer than any product."""
        return 0

    def elements(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Elements moved per tensor."""
        return _elements((*self.reads, self.out), sizes)


Step = Contraction | Join | Elementwise


def axis_sizes(*, tokens: int, in_features: int, out_features: int, rank: int) -> dict[str, int]:
    """The length of each axis."""
    return {
        "m": tokens,
        "i": in_features,
        "o": out_features,
        "r": rank,
        "k": in_features + rank,
        "n": out_features + rank,
    }


def size_of(tensor: str, sizes: Mapping[str, int]) -> int:
    """Elements of a tensor."""
    return prod(sizes[axis] for axis in AXES[tensor])


def _elements(names: tuple[str, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    moved: dict[str, int] = {}
    for name in names:
        moved[name] = moved.get(name, 0) + size_of(name, sizes)
    return moved
