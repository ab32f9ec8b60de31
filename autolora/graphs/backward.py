"""The backward routes: the steps that compute each gradient from ``G = dY``, chosen independently.

The combinations of the first two routes of each gradient are the eight backward graphs of the paper
"Run LoRA Run" (arXiv 2312.03415). DoRA has the same with ``g·B`` for B and ``g·W`` for W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from autolora.graphs.contraction import Concat, Contraction, Elementwise, Step
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
    Concat("GZ", ("G", "Z")),
    Concat("WA", ("W", "A")),
    Contraction("T", "Z", "A"),
    Elementwise("Gg", ("G", "g"), "Gg = g·G", "{G} * {g}"),
    Elementwise("Gm", ("G", "g"), "Gm = (g − 1)·G", "{G} * ({g} - 1)"),
    Elementwise("Bg", ("B", "g"), "Bg = g·B", "{B} * {g}.unsqueeze(1)"),
    Elementwise("F", ("V", "g", "W"), "F = g·V − W", "({V} * {g}.unsqueeze(1)).sub_({W})"),
)


@lru_cache(maxsize=64)
def routes(problem: Problem) -> dict[str, Routes]:
    """The routes by name of each gradient that a problem needs: ``{"X": {...}, "A": ...}``."""
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
        needed: {k: tuple(_adjusted(s, problem) for s in v) for k, v in tables[needed].items()}
        for needed in problem.gradients
    }


@lru_cache(maxsize=64)
def intermediates(problem: Problem) -> Mapping[str, Step]:
    """The step that makes each intermediate tensor, by its name."""
    return {step.out: _adjusted(step, problem) for step in _INTERMEDIATES}


def _adjusted(step: Step, problem: Problem) -> Step:
    """The step with the adapter's input, and for DoRA with ``g·B`` for B."""
    if isinstance(step, Contraction):
        if sees_a_copy(problem) and step.out in ("dA", "P") and step.right == "X":
            return replace(step, right="D")
        if problem.variant == "dora" and "B" in (step.left, step.right):
            left, right = ("Bg" if name == "B" else name for name in (step.left, step.right))
            return replace(step, left=left, right=right)
    return step
