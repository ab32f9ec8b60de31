"""The ways to compute ``Y = X Wᵀ + b + s·(X Aᵀ) Bᵀ``.

Each is the steps that end in Y; what they read and is not given comes from :data:`INTERMEDIATES`.
``b`` is left out where the layer has no bias.
"""

from __future__ import annotations

from autolora.graphs.contraction import Contraction, Join, Step

FORWARDS: dict[str, tuple[Step, ...]] = {
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

INTERMEDIATES: dict[str, Step] = {
    "h": Contraction("h", "X", "A"),
    "V": Contraction("V", "B", "A", onto="W", scaled=True),
    "Xh": Join("Xh", "X", "h"),
    "WB": Join("WB", "W", "B", scaled=True),
}
