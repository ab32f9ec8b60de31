"""The forward routes: the steps that compute Y from X.

The tensors that they read, other than inputs, are made by the steps of :func:`intermediates`.

====================  =============================================
plain                 ``Y = X Wᵀ + b + s·(X Aᵀ) Bᵀ``
dropout               the same with ``(D Aᵀ)``, D = dropout(X)
a bias c in lora_B    the same with ``b + s·c``
DoRA                  ``Y = b + g·(X Wᵀ + s·(X Aᵀ) Bᵀ)``
DoRA and dropout      ``Y = b + (X − D) Wᵀ + g·(D Wᵀ + s·(D Aᵀ) Bᵀ)``
====================  =============================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from autolora.graphs.contraction import Concat, Contraction, Elementwise, Step
from autolora.graphs.tensors import sees_a_copy
from autolora.problem import QUANTISED, Problem

_ROUTES: dict[str, tuple[Step, ...]] = {
    "base_first": (
        Contraction("Y", "X", "W", onto="b"),
        Contraction("Y", "h", "B", onto="Y", scaled=True),
    ),
    "adapter_first": (
        Contraction("Y", "h", "B", onto="b", scaled=True),
        Contraction("Y", "X", "W", onto="Y"),
    ),
    "merged": (Contraction("Y", "X", "V", onto="b"),),
    "one_product": (Contraction("Y", "Xh", "WB", onto="b"),),
}

_SCALED_U = Elementwise("Y", ("b", "U", "g"), "Y = b + g·U", "torch.addcmul({b}, {U}, {g})")
_DORA: dict[str, tuple[Step, ...]] = {
    "base_first": (
        Contraction("U", "X", "W"),
        Contraction("U", "h", "B", onto="U", scaled=True),
        _SCALED_U,
    ),
    "merged": (_SCALED_U,),
    "scaled": (Contraction("Y", "X", "Vg", onto="b"),),
    "one_product": (Contraction("U", "Xh", "WB"), _SCALED_U),
}

_TWO_INPUTS = (
    Contraction("Y", "R", "W", onto="b"),
    Elementwise("Y", ("Y", "U", "g"), "Y = Y + g·U", "{Y}.addcmul_({U}, {g})"),
)
_DORA_DROPOUT: dict[str, tuple[Step, ...]] = {
    "base_first": (*_DORA["base_first"][:2], *_TWO_INPUTS),
    "merged": _TWO_INPUTS,
    "one_product": (_DORA["one_product"][0], *_TWO_INPUTS),
}

_INTERMEDIATES: tuple[Step, ...] = (
    Contraction("h", "X", "A"),
    Contraction("V", "B", "A", onto="W", scaled=True),
    Concat("Xh", ("X", "h")),
    Concat("WB", ("W", "B"), scaled=True),
    Elementwise("bc", ("b", "c"), "bc = b + s·c", "{b}.add({c}, alpha=s)"),
    Elementwise(
        "N",
        ("V",),
        "N = ‖V‖",
        "torch.linalg.vector_norm("
        "{V!}, dim=1, dtype=torch.promote_types({V!}.dtype, torch.{dtype})).to(torch.{dtype})",
    ),
    Elementwise("g", ("M", "N"), "g = M / N", "{M} / {N}"),
    Elementwise("Vg", ("V", "g"), "Vg = g·V", "{V} * {g}.unsqueeze(1)"),
    Contraction("U", "X", "V"),
    Elementwise("K", ("X",), "K = mask", "dropout_mask({X!}, p, torch.{adapter_dtype})"),
    Elementwise("D", ("X", "K"), "D = K·X", "{X} * {K!}"),
)
_DORA_D = Elementwise("D", ("X", "K"), "D = K·X/(1 − p)", "({X} * {K!}).mul_(1 / (1 - p))")
_NO_BIAS_BC = Elementwise("bc", ("c",), "bc = s·c", "{c} * s")
_NO_BIAS_SCALED_U = Elementwise("Y", ("U", "g"), "Y = g·U", "{U} * {g}")
_COPY = Elementwise("D", ("X",), "D = X", "{X}")
_R = Elementwise("R", ("X", "D"), "R = X − D", "{X} - {D}")
_W = Elementwise("W", ("Q",), "W = dequantize(Q)", "dequantize({Q!}, torch.{dtype})")


@lru_cache(maxsize=64)
def routes(problem: Problem) -> dict[str, tuple[Step, ...]]:
    """The forward routes of a problem, by name.

    With dropout the base and the adapter have different inputs, which rules out a merged weight.
    """
    if problem.variant == "dora":
        table = _DORA_DROPOUT if problem.dropout else _DORA
    else:
        table = {k: v for k, v in _ROUTES.items() if k != "merged" or not problem.dropout}
    return {name: tuple(_adjusted(s, problem) for s in steps) for name, steps in table.items()}


@lru_cache(maxsize=64)
def intermediates(problem: Problem) -> Mapping[str, Step]:
    """The step that makes each intermediate tensor, by its name."""
    table = {step.out: _adjusted(step, problem) for step in _INTERMEDIATES}
    if problem.dropout and problem.variant == "dora":
        table |= {"D": _DORA_D, "R": _R, "Xh": Concat("Xh", ("D", "h"))}
    if not problem.dropout:
        table["D"] = _COPY
    if not problem.bias:
        table["bc"] = _NO_BIAS_BC
    if problem.layout in QUANTISED:
        table["W"] = _W
    return table


def _adjusted(step: Step, problem: Problem) -> Step:
    """The step with the adapter's input and the bias of the problem."""
    if step is _SCALED_U and not problem.bias:
        return _NO_BIAS_SCALED_U
    if isinstance(step, Contraction):
        apart = problem.dropout if step.out == "U" else sees_a_copy(problem)
        if apart and step.out in ("h", "U") and step.left == "X":
            return replace(step, left="D")
        if problem.adapter_bias and step.onto == "b":
            return replace(step, onto="bc")
    return step
