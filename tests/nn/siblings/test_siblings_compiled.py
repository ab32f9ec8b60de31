"""Layers with one X inside torch.compile: together where a record says so, and PEFT's numbers."""

import copy

import pytest
import torch
from peft_models import assert_same_step, llama
from test_siblings import (
    Block,
    adapted,
    another_order,
    one_step,
    plainly,
    step,
    tune_together,
    twice,
    with_others_between,
)
from torch import nn

import autolora
from autolora.graphs.operators import TRACEABLE
from autolora.nn.layer_state import layer_states
from autolora.nn.siblings.family import families
from autolora.problem import COMPILED, Problem, Siblings
from autolora.tuning.check import check_records

pytestmark = [
    pytest.mark.skipif(not TRACEABLE, reason="this torch compiles PEFT's path"),
    pytest.mark.usefixtures("compile_anew"),
]


def pair(**lora):
    """PEFT's block, and its accelerated copy whose layers run together by eager records."""
    plain = adapted(**lora)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    one_step(fast)
    tune_together(fast, one_step)
    return plain, fast


def skipping(block, x):
    return torch.cat([block.q(x), block.v(x)], -1)


def changed_outputs(block, x):
    q = block.q(x)
    q += 1
    return torch.cat([torch.relu_(block.k(x)), q, block.v(x)], -1)


def compiled_program(model, program, backend):
    return torch.compile(
        lambda x: program(model.base_model.model, x), backend=backend, fullgraph=True
    )


def assert_same(plain, fast, program, compiled, steps=3):
    for number in range(steps):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(number))
        Y, mine = step(compiled_model(fast, compiled), program, x)
        expected, theirs = step(plain, program, x)
        torch.testing.assert_close(Y, expected, rtol=1e-4, atol=1e-5)
        for name, gradient in theirs.items():
            if gradient is None:  # of a layer that is not called
                assert mine[name] is None or not mine[name].any()
            else:
                torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-4)


class compiled_model(nn.Module):
    def __init__(self, model, compiled):
        super().__init__()
        self.base_model = model.base_model
        self.compiled = compiled

    def forward(self, x, _):
        return self.compiled(x)


def kept(model):
    """What the families hold after a step."""
    return {
        id(state.family): state.family.traced_x
        for _, state in layer_states(model)
        if state.family is not None
    }


@pytest.mark.parametrize("program", [plainly, another_order, with_others_between, changed_outputs])
def test_compiled_together(program, backend):
    plain, fast = pair()
    assert_same(plain, fast, program, compiled_program(fast, program, backend))
    assert set(kept(fast).values()) == {None}
    seen = [e for e in autolora.explain(fast).layers if e.problem.mode == COMPILED]
    assert [e for e in seen if isinstance(e.problem, Siblings)]
    nodes = [n for g in backend.traced for n in g.graph.nodes]
    applied = [n for n in nodes if "autograd_function_apply" in str(n.target)]
    assert len(applied) == 1


@pytest.mark.parametrize("program", [skipping, twice])
def test_whatever_differs_is_exact(program, backend):
    plain, fast = pair()
    assert_same(plain, fast, program, compiled_program(fast, program, backend), steps=5)
    assert set(kept(fast).values()) == {None}


def test_blocks_of_a_real_model_share_their_code(backend):
    plain = llama()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same_step(fast, plain, 1e-4)
    assert len(families(fast)) == 4
    tune_together(fast, lambda model: assert_same_step(model, plain, 1e-4))
    for block in fast.base_model.model.model.layers:
        block.compile(backend=backend, fullgraph=True)
    assert_same_step(fast, plain, 1e-4)
    # twice: the first block's input needs no gradient; q, k, v and gate, up are one each
    assert (len(backend.traced), backend.layers) == (2, 2 * 2)  # the others have no records
    assert_same_step(fast, plain, 1e-4)
    assert len(backend.traced) == 2


def test_dropout_and_disabled_adapters_run_one_by_one(backend):
    plain, fast = pair(lora_dropout=0.5)
    for model in (plain, fast):
        model.eval()
    compiled = compiled_program(fast, plainly, backend)
    assert_same(plain, fast, plainly, compiled, steps=1)
    for model in (plain, fast):
        model.base_model.model.k.enable_adapters(False)
    assert_same(plain, fast, plainly, compiled, steps=1)


def test_tuning_a_model_makes_its_families_known_before_it_is_compiled(backend):
    model, plain = llama(), llama()
    for each in (model, plain):
        del each.base_model.model.model.layers[1:]  # each is traced
    autolora.accelerate(model)
    result = autolora.tune(model, tokens=18, effort="quick")
    assert any(record.problem.parts for record in result.records)
    assert [len(names) for names in families(model)] == [3, 2]
    model.compile(backend=backend, fullgraph=True)
    assert_same_step(model, plain, 1e-4)


def test_siblings_are_measured_compiled():
    parts = [Problem(24, o, 32, 2, "float32", "cpu", mode=COMPILED) for o in (16, 8)]
    result = autolora.tune([Siblings.of(parts)], effort="quick")
    assert result.failed == []
    record = result.records[-1]
    assert record.problem == Siblings.of(parts)
    timed = {c.graph.partition("/")[0] for c in record.candidates if c.median_ns}
    assert {"apart", "reference"} <= timed
    assert any(name.startswith("together") for name in timed)
    (check,) = check_records([record], device=torch.device("cpu"), most=1).done
    assert check.record == record


def test_a_block_can_be_compiled_before_its_layers_are_known():
    block = Block()
    autolora.add_lora(block, rank=4, target_modules=["q", "k", "v"])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 5, 24)
    first = compiled(x, plainly)
    tune_together(block, one_step)
    torch.testing.assert_close(compiled(x, plainly), first)
    assert len(families(block)) == 1
