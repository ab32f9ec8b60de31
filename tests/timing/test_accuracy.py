"""The verdict: what it accepts, what it refuses, and that nobody else's random numbers change."""

import pytest
import torch
from cases import DORA, KINDS, small

from autolora.graphs.space import find_graph, reference_graph
from autolora.graphs.unmeasured import analytic_graph
from autolora.timing.accuracy import verdict

CPU = torch.device("cpu")
SIZES = {"in_features": 192, "out_features": 160, "tokens": 64, "rank": 8}
DTYPES = [
    ("float32", "float32", "float32"),
    ("float16", "float16", "float16"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    ("bfloat16", "float32", "bfloat16"),
    ("float32", "float32", "bfloat16"),
]


def judged(name, **fields):
    problem = small(**{**SIZES, **fields})
    graph = find_graph(name, problem)
    assert graph is not None
    return verdict(graph, problem, CPU)


@pytest.mark.parametrize("dtypes", DTYPES, ids="/".join)
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_without_measurement_is_accurate(kind, dtypes):
    dtype, adapter, compute = dtypes
    fields = {"dtype": dtype, "adapter_dtype": adapter, "compute_dtype": compute}
    problem = small(**{**SIZES, **fields, **KINDS[kind]})
    found = verdict(analytic_graph(problem), problem, CPU)
    assert found.ok, (analytic_graph(problem).name, found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_as_accurate_as_itself(kind):
    problem = small(**{**SIZES, "dtype": "float32", **KINDS[kind]})
    found = verdict(reference_graph(problem), problem, CPU)
    assert found.ok
    assert set(found.errors) == {"Y", *(f"d{name}" for name in problem.gradients)}
    assert max(max(pair) for pair in found.errors.values()) < 1e-5
    assert found.gain == pytest.approx((1.0, 1.0), abs=1e-2)


def test_a_merged_dora_loses_small_adapters_in_bfloat16():
    rest = "U=saved/dX=lowrank/dA=via_z/dB=via_h/dM=via_u"
    merged = judged(f"merged/h=recomputed/{rest}", dtype="bfloat16", **DORA)
    joined = judged(f"one_product/h=saved/{rest}", dtype="bfloat16", **DORA)
    assert not merged.ok
    assert "adapter gain" in merged.reason
    assert merged.gain[1] < 0.7 < 0.9 < joined.gain[1]
    assert joined.ok


def test_a_rounded_merged_weight_is_refused_where_the_adapter_is_wider():
    found = judged(
        "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h",
        dtype="bfloat16",
        adapter_dtype="float32",
        compute_dtype="float32",
    )
    assert found.gain[1] < 0.7


def test_judging_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    judged("base_first/h=saved/D=saved/dX=lowrank/dA=via_z/dB=via_h", dropout=True, dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)
