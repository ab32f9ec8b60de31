"""The verdict: what it accepts, what it refuses, and that nobody else's random numbers change."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import DORA, KINDS, small

from autolora.graphs.siblings.space import reference_graph as reference_of_siblings
from autolora.graphs.space import find_graph, reference_graph
from autolora.graphs.unmeasured import analytic_graph
from autolora.problem import Siblings
from autolora.timing import accuracy, kinds, siblings
from autolora.timing.accuracy import verdict
from autolora.timing.data import Data

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


def test_on_one_gpu_of_several_the_others_keep_their_random_state(monkeypatch):
    seeded = []

    class Generator:
        def __init__(self, number):
            self.number = number

        def manual_seed(self, seed):
            seeded.append((self.number, seed))

    monkeypatch.setattr(torch.random, "fork_rng", nullcontext)
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(map(Generator, range(3))))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    with accuracy._same_mask(torch.device("cuda", 1)):
        assert seeded == [(1, 1)]


def overwriting(forward):
    """A forward pass whose outputs are overwritten by the next one's, as with CUDA graphs."""
    last = []

    def made(self, graph):
        run = forward(self, graph)

        def once():
            for Y in last:
                Y.data.fill_(torch.nan)
            Y = run()
            last[:] = [Y] if isinstance(Y, torch.Tensor) else Y
            return Y

        return once

    return made


def test_outputs_that_the_next_call_overwrites_are_judged_before(monkeypatch):
    problem = small(**SIZES, dtype="float32")
    group = Siblings.of([problem, replace(problem, out_features=96)])
    monkeypatch.setattr(Data, "forward", overwriting(Data.forward))
    monkeypatch.setattr(siblings.Data, "forward", overwriting(siblings.Data.forward))
    accuracy._figures.cache_clear()
    siblings._figures.cache_clear()
    assert verdict(reference_graph(problem), problem, CPU).gain == pytest.approx((1, 1), abs=1e-2)
    found = siblings.verdict(reference_of_siblings(group), group, CPU)
    assert found.gain == pytest.approx((1, 1), abs=1e-2)
    accuracy._figures.cache_clear()
    siblings._figures.cache_clear()


def test_what_verdicts_share_can_be_freed():
    problem = small(**SIZES, dtype="float64")
    accuracy._figures.cache_clear()
    assert verdict(reference_graph(problem), problem, CPU).ok
    assert accuracy._oracle.cache_info().currsize > 0
    kinds.forget()
    assert accuracy._oracle.cache_info().currsize == 0
