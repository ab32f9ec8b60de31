"""The ways to compute each gradient from ``G = dY``, independent of one another.

With h, Z and P the two thin and the one wide product (``P = Gᵀ X``), the combinations of the two
first routes of each gradient are the eight backward graphs of the paper "Run LoRA Run"
(arXiv 2312.03415). DoRA's are the same with ``g·B`` for B, and ``g·`` before what W contributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autolora.graphs.contraction import Contraction, Elementwise, Join, Step
from autolora.graphs.tensors import sees_a_copy
from autolora.problem import Problem

Routes = dict[str, tuple[Step, ...]]

_DX: Routes = {
    "lowrank": (
        Contraction("dX", "G", "W"),
        Contraction("dX", "Z", "A", onto="dX"),
    ),
    "merged": (Contraction("dX", "G", "V"),),
    "one_product": (Contraction("dX", "GZ", "WA"),),
}
_DX_DROPOUT: Routes = {
    "lowrank": (
        Contraction("dX", "G", "W"),
        Elementwise(
            "dX", ("dX", "T", "K"), "dX = dX + K·T", "{dX}.addcmul_({T}, {K!}.to(torch.{dtype}))"
        ),
    ),
}
_DX_DORA: Routes = {
    "lowrank": (
        Contraction("dX", "Gg", "W"),
        Contraction("dX", "Z", "A", onto="dX"),
    ),
    "merged": (Contraction("dX", "G", "Vg"),),
}
_DX_TWO_INPUTS = (
    Contraction("dX", "G", "W"),
    Elementwise(
        "dX",
        ("dX", "T", "K"),
        "dX = dX + K·T/(1 − p)",
        "{dX}.addcmul_({T}, {K!}.to(torch.{dtype}), value=1 / (1 - p))",
    ),
)
_DX_DORA_DROPOUT: Routes = {
    "lowrank": (
        Contraction("T", "Gm", "W"),
        Contraction("T", "Z", "A", onto="T"),
        *_DX_TWO_INPUTS,
    ),
    "merged": (Contraction("T", "G", "F"), *_DX_TWO_INPUTS),
}

_DA: Routes = {
    "via_z": (Contraction("dA", "Z", "X"),),
    "via_p": (Contraction("dA", "B", "P", scaled=True),),
}

_DB: Routes = {
    "via_h": (Contraction("dB", "G", "h", scaled=True),),
    "via_p": (Contraction("dB", "P", "A", scaled=True),),
}
_ROWS_OF_DB = Elementwise("dB", ("dB", "g"), "dB = g·dB", "{dB}.mul_({g}.unsqueeze(1))")

_DC: Routes = {
    "": (Elementwise("dc", ("G",), "dc = s·Σ G", "{G!}.sum(0, dtype=torch.{dtype}) * s"),)
}

_DM: Routes = {
    "via_u": (
        Elementwise(
            "dM",
            ("G", "U", "N"),
            "dM = Σ G·U / N",
            "({G!} * {U!}).sum(0, dtype=torch.{dtype}).div_({N})",
        ),
    ),
    "via_p": (
        Elementwise(
            "dM",
            ("P", "V", "N"),
            "dM = Σ P·V / N",
            "({P!} * {V!}).sum(1, dtype=torch.{dtype}).div_({N})",
        ),
    ),
}

_INTERMEDIATES: tuple[Step, ...] = (
    Contraction("Z", "G", "B", scaled=True),
    Contraction("P", "G", "X"),
    Join("GZ", "G", "Z"),
    Join("WA", "W", "A"),
    Contraction("T", "Z", "A"),
    Elementwise("Gg", ("G", "g"), "Gg = g·G", "{G} * {g}"),
    Elementwise("Gm", ("G", "g"), "Gm = (g − 1)·G", "{G} * ({g} - 1)"),
    Elementwise("Bg", ("B", "g"), "Bg = g·B", "{B} * {g}.unsqueeze(1)"),
    Elementwise("F", ("V", "g", "W"), "F = g·V − W", "({V} * {g}.unsqueeze(1)).sub_({W})"),
)


def routes(problem: Problem) -> dict[str, Routes]:
    """The routes to each gradient that a problem needs, ``{"X": {...}, "A": {...}, ...}``."""
    dora = problem.variant == "dora"
    dx = {
        (False, False): _DX,
        (False, True): _DX_DROPOUT,
        (True, False): _DX_DORA,
        (True, True): _DX_DORA_DROPOUT,
    }[dora, problem.dropout]
    db = {name: (*steps, _ROWS_OF_DB) for name, steps in _DB.items()} if dora else _DB
    tables = {"X": dx, "A": _DA, "B": db, "c": _DC, "M": _DM}
    return {
        needed: {
            name: tuple(_adjusted(step, problem) for step in steps)
            for name, steps in tables[needed].items()
        }
        for needed in problem.gradients
    }


def intermediates(problem: Problem) -> Mapping[str, Step]:
    """How to make each tensor that a step may read and that is not given, by name."""
    return {step.out: _adjusted(step, problem) for step in _INTERMEDIATES}


def _adjusted(step: Step, problem: Problem) -> Step:
    """The step with the input that the adapter saw, and the B that DoRA's gradients meet."""
    if isinstance(step, Contraction):
        if sees_a_copy(problem) and step.out in ("dA", "P") and step.right == "X":
            return replace(step, right="D")
        if problem.variant == "dora" and "B" in (step.left, step.right):
            left, right = ("Bg" if name == "B" else name for name in (step.left, step.right))
            return replace(step, left=left, right=right)
    return step
