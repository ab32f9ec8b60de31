"""The cost of the reference graph: its products and the bytes that autograd saves.

:func:`autolora.graphs.reference.reference` runs it.
"""

from __future__ import annotations

from autolora.graphs.contraction import Contraction
from autolora.graphs.tensors import BYTES, bytes_of, sizes_of, width
from autolora.problem import Problem


def products(problem: Problem) -> tuple[Contraction, ...]:
    """The matrix products of the reference graph, forward and backward."""
    needs = problem.gradients
    dora = problem.variant == "dora"
    twice = dora and problem.dropout  # DoRA with dropout sends D through the base as well
    found = [Contraction("Y", "X", "W", onto="b")]
    if dora:
        found.append(Contraction("V", "B", "A"))
    if twice:
        found.append(Contraction("U", "D", "W"))
    found += [Contraction("h", "X", "A"), Contraction("Y", "h", "B", onto="Y", scaled=True)]
    if "X" in needs:
        found += [Contraction("dX", "G", "W")] * (2 if twice else 1)
        found.append(Contraction("dX", "Z", "A", onto="dX"))
    if "X" in needs or "A" in needs:
        found.append(Contraction("Z", "G", "B", scaled=True))
    if "A" in needs:
        found.append(Contraction("dA", "Z", "X"))
    if "B" in needs:
        found.append(Contraction("dB", "G", "h", scaled=True))
    return tuple(found)


def flops(problem: Problem) -> int:
    """FLOPs of these products."""
    sizes = sizes_of(problem)
    total = sum(step.flops(sizes) for step in products(problem))
    if problem.variant == "dora":  # PEFT makes B A by sending an identity matrix through both
        total += 2 * problem.in_features**2 * problem.rank
    return total


def saved_bytes(problem: Problem) -> int:
    """Bytes that autograd saves beside the parameters.

    These are the adapter's input in compute_dtype, the dropout mask (on the CPU as wide as the
    input), h, and for DoRA two tensors of the size of Y, with g, g − 1 and the norms.
    """
    needs = problem.gradients
    if not needs:
        return 0
    saved = ("B" in needs) * bytes_of("h", problem) + ("A" in needs) * bytes_of("D", problem)
    if problem.dropout and "X" in needs:
        mask = BYTES[problem.adapter_dtype] if problem.device == "cpu" else 1
        saved += bytes_of("K", problem) * mask
    if "M" in needs:
        base, adapter = width("U", problem), BYTES[problem.compute_dtype]
        saved += bytes_of("U", problem) // base * (base + adapter)
    if problem.variant == "dora":
        saved += 2 * bytes_of("g", problem) + ("M" in needs) * bytes_of("N", problem)
    return saved
