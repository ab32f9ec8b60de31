"""What running the adapter branch in the dtype of the base would bring, measured for one layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from autolora.graphs.kinds import reference_graph
from autolora.nn.advice import compute_dtype_advice, in_dtype_of_base, runs_in_float32
from autolora.problem import BaseProblem
from autolora.tuning.result import TuneResult
from autolora.tuning.tuner import tune_problems

_EFFORT = "quick"


def measured_advice(
    result: TuneResult,
    uses: Mapping[BaseProblem, int],
    *,
    device: torch.device | str | None,
    budget: float | None = None,
    compile_mode: str | None = None,
) -> str:
    """Measures a tuned layer with its branch in 16 bits, and says how much faster that is.

    It is the layer that takes most time of those that run their branch in float32 beside a base in
    16 bits. Says nothing if there is none, if it cannot be measured, or would not be faster.

    Args:
        result: of a tuning run.
        uses: number of layers that pose each problem.
        device: to measure on.
        budget: seconds of the run, this included.
        compile_mode: of torch.compile, for compiled problems.
    """
    found = [record for record in result.known if runs_in_float32(record.problem)]
    left = None if budget is None else budget - sum(each.seconds for each in result.records)
    if not found or result.interrupted or result.unfinished or (left is not None and left <= 0):
        return ""
    heaviest = max(found, key=lambda each: uses.get(each.problem, 1) * _flops(each.problem))
    measured = tune_problems(
        [in_dtype_of_base(heaviest.problem)],
        effort=_EFFORT,
        budget=left,
        cache=result.path,
        device=device,
        compile_mode=compile_mode,
    )
    faster = measured.known
    gain = heaviest.median_ns / faster[0].median_ns if faster else 0.0
    return compute_dtype_advice(heaviest.problem, gain) if gain > 1 else ""


def _flops(problem: BaseProblem) -> int:
    return reference_graph(problem).flops(problem)
