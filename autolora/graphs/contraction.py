"""The steps of a graph as formulas: matrix products, concatenations, elementwise expressions.

FLOPs and bytes are derived from the axes of the tensors that a step names;
:mod:`autolora.graphs.source` generates the code that runs it.

Where several layers have one X, the tensors of each are numbered, ``W1`` and ``h2``, and so are
their axes; ``A``, ``h``, ``Z`` and ``dA`` are then those of all layers together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
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

_OWN_AXES = frozenset("orkn")  # of each of several layers


@cache
def stem(tensor: str) -> str:
    """The name of a tensor without the number of its layer."""
    return tensor.rstrip("0123456789")


def number_of(tensor: str) -> str:
    """The number of the layer that a tensor belongs to, ``""`` if there is only one."""
    return tensor[len(stem(tensor)) :]


@cache
def axes_of(tensor: str) -> tuple[str, ...]:
    """The axes of a tensor."""
    number = number_of(tensor)
    return tuple(axis + number if axis in _OWN_AXES else axis for axis in AXES[stem(tensor)])


# The adapter's matrices are in compute_dtype, its vectors in adapter_dtype, all others in dtype.
ADAPTER_TENSORS = frozenset({"A", "B", "D", "h", "Bg", "Z", "T", "P", "dA", "dB"})
ADAPTER_VECTORS = frozenset({"c", "M", "N", "g", "dc", "dM"})

# Products with a rank axis whose two orientations differ in speed.
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
        """Names of the tensors read."""
        return (self.left, self.right, *([self.onto] if self.onto else []))

    @property
    def axes(self) -> tuple[str, ...]:
        """The distinct axes, those of the result first."""
        return tuple(dict.fromkeys(axes_of(self.out) + axes_of(self.left) + axes_of(self.right)))

    @property
    def operands(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """The two factors in the order of the result's axes, each with whether it is transposed."""
        row, column = axes_of(self.out)
        first, second = (
            (self.left, self.right) if row in axes_of(self.left) else (self.right, self.left)
        )
        return (first, axes_of(first)[0] != row), (second, axes_of(second)[1] != column)

    @property
    def formula(self) -> str:
        """The step in mathematical notation."""
        factors = " ".join(f"{name}ᵀ" if transposed else name for name, transposed in self.operands)
        return f"{self.out} = {f'{self.onto} + ' if self.onto else ''}{'s·' * self.scaled}{factors}"

    def flops(self, sizes: Mapping[str, int]) -> int:
        """2 × the product of the distinct axes: one multiplication and one addition each."""
        return 2 * prod(sizes[axis] for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Concat:
    """``out`` is ``reads`` concatenated along the axis that they do not share.

    >>> Concat("WB", ("W", "B"), scaled=True).formula
    'WB = [W | s·B]'

    Args:
        out: the tensor written.
        reads: names of the tensors read.
        scaled: whether the last of them is times s.
    """

    out: str
    reads: tuple[str, ...]
    scaled: bool = False

    @property
    def axis(self) -> int:
        """The axis of concatenation."""
        first, second, *_ = map(axes_of, self.reads)
        return 1 if first[0] == second[0] else 0

    @property
    def formula(self) -> str:
        """The step in mathematical notation."""
        *others, last = self.reads
        mark = " | " if self.axis else "; "
        return f"{self.out} = [{mark.join((*others, 's·' * self.scaled + last))}]"

    def flops(self, sizes: Mapping[str, int]) -> int:
        """0: a copy."""
        return 0


@dataclass(frozen=True, slots=True)
class Elementwise:
    """``out`` by a torch expression without a matrix product.

    Args:
        out: the tensor written; changed in place if it is read as well.
        reads: names of the tensors read.
        formula: the step in mathematical notation.
        code: the expression: ``{name}`` is a tensor of ``reads`` in the dtype of ``out``,
            ``{name!}`` the same in its own dtype, ``{dtype}`` the dtype of ``out``; ``s`` is the
            scaling and ``p`` the dropout probability.
    """

    out: str
    reads: tuple[str, ...]
    formula: str
    code: str

    def flops(self, sizes: Mapping[str, int]) -> int:
        """0: negligible beside the products."""
        return 0


Step = Contraction | Concat | Elementwise


def elements_moved(step: Step, sizes: Mapping[str, int]) -> Counter[str]:
    """Elements read and written per tensor: each operand once, the result once."""
    moved: Counter[str] = Counter()
    for name in (*step.reads, step.out):
        moved[name] += size_of(name, sizes)
    return moved


def size_of(tensor: str, sizes: Mapping[str, int]) -> int:
    """Number of elements of a tensor, given the length of each axis."""
    return prod(sizes[axis] for axis in axes_of(tensor))
