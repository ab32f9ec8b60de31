"""On a GPU accelerated layers compute what PEFT's do, tuned there or not."""

import copy

import pytest
import torch

import autolora
from autolora.graphs.operators import TRACEABLE
from autolora.graphs.space import reference_graph
from autolora.nn.choosing import pin
from autolora.problem import Experts

peft = pytest.importorskip("peft")
from peft_models import (  # noqa: E402
    BF16,
    REGIMES,
    TOLERANCE,
    assert_same_step,
    batch,
    fast_calls,
    llama,
    quantised,
)

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
TOKENS = batch()["input_ids"].numel()


def pair(model):
    """A model on the device, and its accelerated copy."""
    plain = model.to(DEVICE).train()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    return plain, fast


def assert_fast(model):
    fast, left = fast_calls(model)
    assert fast
    assert not left


@pytest.mark.parametrize("regime", REGIMES)
def test_a_tuned_model_trains_as_before(regime):
    dtype, adapters32, autocast = REGIMES[regime]
    plain, fast = pair(llama(dtype, adapter_dtype32=adapters32))
    tolerance = TOLERANCE[BF16 if autocast else dtype]
    assert_same_step(fast, plain, tolerance, autocast)  # untuned
    with torch.autocast(DEVICE, autocast, enabled=autocast is not None):
        assert autolora.tune(fast, tokens=TOKENS, effort="quick").records
    for _ in range(2):  # the second time siblings are known
        assert_same_step(fast, plain, tolerance, autocast)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_dropout_draws_the_masks_of_peft(dtype):
    lora = {"lora_dropout": 0.5, "adapter_dtype32": False}
    plain, fast = pair(llama(dtype, **lora))
    losses = []
    for model in (plain, fast):
        torch.manual_seed(5)
        losses.append(model(**batch(device=DEVICE)).loss)
    torch.testing.assert_close(*losses, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.manual_seed(6)
    assert abs(plain(**batch(device=DEVICE)).loss - losses[0]) > abs(losses[1] - losses[0])
    assert_fast(fast)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_run_again_as_they_did(reentrant):
    """On a GPU they run again in another thread, that of autograd."""
    plain, fast = pair(llama(lora_dropout=0.5))
    autolora.tune(fast, tokens=TOKENS, effort="quick")
    for model in (plain, fast):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for seed in range(3):
        found = []
        for model in (plain, fast):
            torch.manual_seed(seed)
            model.zero_grad()
            model(**batch(device=DEVICE)).loss.backward()
            found.append([p.grad for p in model.parameters() if p.requires_grad])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_quantised_weights():
    plain, fast = pair(quantised("nf4", BF16))
    assert_same_step(fast, plain, 5e-2)
    assert_fast(fast)
    autolora.tune(fast, tokens=TOKENS, effort="quick")
    assert_same_step(fast, plain, 5e-2)


@pytest.mark.parametrize("executor", ["loop", "turned", "grouped", "bmm"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_experts(dtype, executor):
    from small_mixture import LOWRANK, experts_along, mixture

    plain, fast = pair(mixture("qwen3_moe", dtype, "grouped_mm", r=8))
    along = experts_along(f"{LOWRANK}/x={executor}")
    pin(fast, lambda p: along(p) if isinstance(p, Experts) else reference_graph(p))
    assert_same_step(fast, plain, TOLERANCE[dtype])
    with autolora.record(fast) as problems:
        fast(**batch(device=DEVICE)).loss.backward()
    assert autolora.tune(problems, effort="quick").records


@pytest.mark.skipif(not TRACEABLE, reason="this torch compiles PEFT's path")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model(mode):
    """The second mode captures CUDA graphs, whose outputs the next call overwrites."""
    plain, fast = pair(llama())
    assert autolora.tune(fast, tokens=TOKENS, effort="quick", compiled=mode).records
    for model in (plain, fast):
        model.compile(mode=mode)
    for _ in range(3):
        assert_same_step(fast, plain, 1e-3)
