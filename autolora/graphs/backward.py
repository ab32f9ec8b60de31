"""The ways to compute each gradient from ``G = dY``, independent of one another.

With h, Z and P the two thin and the one wide product (``P = Gᵀ X``), the combinations of the two
first routes of each gradient are the eight backward graphs of the paper "Run LoRA Run"
(arXiv 2312.03415).
"""

from __future__ import annotations

from autolora.graphs.contraction import Contraction, Join, Step

DX: dict[str, tuple[Step, ...]] = {
    "lowrank": (
        Contraction("dX", "G", "W"),
        Contraction("dX", "Z", "A", onto="dX"),
    ),
    "merged": (Contraction("dX", "G", "V"),),
    "one_product": (Contraction("dX", "GZ", "WA"),),
}

DA: dict[str, tuple[Step, ...]] = {
    "via_z": (Contraction("dA", "Z", "X"),),
    "via_p": (Contraction("dA", "B", "P", scaled=True),),
}

DB: dict[str, tuple[Step, ...]] = {
    "via_h": (Contraction("dB", "G", "h", scaled=True),),
    "via_p": (Contraction("dB", "P", "A", scaled=True),),
}

INTERMEDIATES: dict[str, Step] = {
    "Z": Contraction("Z", "G", "B", scaled=True),
    "P": Contraction("P", "G", "X"),
    "GZ": Join("GZ", "G", "Z"),
    "WA": Join("WA", "W", "A"),
}
