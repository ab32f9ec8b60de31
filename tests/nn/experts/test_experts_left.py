"""Calls of accelerated experts that run as PEFT runs them, exactly, and say why."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper
from peft_models import assert_same_step, batch
from small_mixture import GRAPHS, Holder, experts_along, mixture
from torch import nn

import autolora
from autolora.errors import AutoloraError
from autolora.graphs.experts import operators
from autolora.graphs.experts.routing import Routing
from autolora.graphs.kinds import reference_graph
from autolora.nn.choosing import pin
from autolora.nn.layer_state import layer_states
from autolora.problem import Experts


def accelerated(plain, name=GRAPHS["loop"]):
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    along = experts_along(name)
    pin(fast, lambda p: along(p) if isinstance(p, Experts) else reference_graph(p))
    return fast


def reasons(model):
    return {reason for _, reason in autolora.explain(model).left}


def outer_and_inner(model):
    outer = next(m for m in model.modules() if isinstance(m, ParamWrapper))
    return outer, outer.base_layer


def on_graphs(model):
    choices = [choice for _, state in layer_states(model) for choice in state.choices.values()]
    return sum(c.calls for c in choices if c.executable and isinstance(c.problem, Experts))


def module_of_experts(weights=("gate_up_proj", "down_proj"), config=None, activation=None, **sizes):
    """One module of experts by PEFT, in float64."""
    torch.manual_seed(0)
    if config is None:
        fields = {"hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 4, **sizes}
        config = transformers.Qwen3MoeConfig(**fields)
    config._experts_implementation = "eager"
    kind = {
        "qwen3_moe": transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts,
        "gpt_oss": transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts,
    }[config.model_type]
    experts = kind(config).double()
    if activation is not None:
        experts.act_fn = activation.double()
    targets = [f"experts.{name}" for name in weights]
    lora = peft.LoraConfig(r=2, target_modules=[], target_parameters=targets)
    model = peft.get_peft_model(Holder(experts), lora, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def call(model, ids, x_needs=True):
    """Output and gradients of a call."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(len(ids), 32, dtype=torch.float64, generator=draw).requires_grad_(x_needs)
    weights = torch.rand(ids.shape, dtype=torch.float64, generator=draw)
    model.zero_grad()
    Y = model(x, ids, weights)
    Y.sin().sum().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"Y": Y.detach(), "x": x.grad, **trained}


def assert_same_call(fast, plain, ids, **options):
    mine, theirs = call(fast, ids, **options), call(plain, ids, **options)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (mine[name] is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(mine[name], expected, rtol=1e-9, atol=1e-11)


def test_hooks_of_every_kind_on_the_experts_and_on_an_inner_wrapper():
    plain = mixture()
    for name in (
        "forward_pre_hook",
        "forward_hook",
        "full_backward_pre_hook",
        "full_backward_hook",
    ):
        for depth in (1, 2):
            fast = accelerated(plain)
            part = outer_and_inner(fast)[1]
            part = part if depth == 1 else part.base_layer
            seen = []
            getattr(part, f"register_{name}")(lambda *_, seen=seen: seen.append(1))
            assert_same_step(fast, plain, 1e-9)
            assert len(seen) == 1, (name, depth)
            assert "hooks on its parts" in reasons(fast)


def test_an_inner_wrapper_with_a_forward_of_its_own():
    plain = mixture()
    for model in (plain, fast := copy.deepcopy(plain)):
        inner = outer_and_inner(model)[1]
        own = inner.forward
        inner.forward = lambda *given, own=own: 2 * own(*given)
    report = autolora.accelerate(fast)
    assert [reason for _, reason in report.left] == ["its forward was replaced"]
    assert_same_step(fast, plain, 1e-9)
    assert "a replaced forward on its parts" in reasons(fast)


def test_an_inner_adapter_that_is_left_keeps_the_outer_one_on_pefts_path():
    plain = mixture()
    inner = outer_and_inner(plain)[1]
    with torch.no_grad():
        inner.lora_B["default"].weight[0, 0] = torch.inf
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert "not finite" in report.left[0][1]
    with torch.no_grad():
        mine, theirs = fast(**batch()).logits, plain(**batch()).logits
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert "the adapter of another of its weights is left as it is" in reasons(fast)


def test_a_trained_activation():
    plain = module_of_experts(["down_proj"], activation=nn.PReLU())
    fast = accelerated(plain)
    for model in (plain, fast):
        for module in model.modules():
            if isinstance(module, nn.PReLU):
                module.weight.requires_grad_()
    ids = torch.tensor([[0, 1], [2, 3], [1, 3]])
    assert_same_call(fast, plain, ids, x_needs=False)
    assert "the base layer is trained too" in reasons(fast)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_a_single_expert(kind):
    config = None
    if kind == "gpt_oss":  # whose gate_up_proj is square
        config = transformers.GptOssConfig(
            hidden_size=32, intermediate_size=16, num_local_experts=1
        )
    plain = module_of_experts(["gate_up_proj"], config, num_experts=1)
    fast = copy.deepcopy(plain)
    assert [reason for _, reason in autolora.accelerate(fast).left] == ["a single expert"]
    assert_same_call(fast, plain, torch.zeros((5, 1), dtype=torch.long))


@pytest.mark.parametrize(
    "ids",
    [[[3]] * 7, [[0, 0]] * 5, [[2, 1]], [[1, 1], [1, 3], [1, 0], [1, 2]]],
    ids=["one expert", "twice the same", "one token", "one in every token"],
)
def test_unusual_routing(ids):
    plain = module_of_experts()
    for graph in GRAPHS.values():
        fast = accelerated(plain, graph)
        assert_same_call(fast, plain, torch.tensor(ids))
        assert on_graphs(fast) == 2


def test_ids_of_no_expert_are_pefts():
    plain = module_of_experts()
    fast = accelerated(plain)
    assert_same_call(fast, plain, torch.tensor([[0, 4], [4, 4], [1, 2]]))
    assert reasons(fast) == {"rows of no expert"}


@pytest.mark.parametrize("busy", [1, 3, 20])
def test_rows_are_padded_within_bounds(busy):
    ids = torch.zeros((40, 2), dtype=torch.long)
    ids[:, 0] = torch.arange(40) % busy
    ids[:, 1] = torch.arange(40) % 31 + 1
    routing, _ = Routing.sorted_by(ids.flatten(), 32)
    assert routing.room <= 2 * len(routing.ids)
    assert sorted(routing.places.tolist()) == sorted(set(routing.places.tolist()))
    plain = module_of_experts(num_experts=32)
    fast = accelerated(plain, GRAPHS["merged"])
    assert_same_call(fast, plain, ids)
    assert on_graphs(fast) == 2


def test_a_torch_without_grouped_products(monkeypatch):
    def missing(*_, **__):
        raise NotImplementedError("Could not run 'aten::_grouped_mm'")

    monkeypatch.setattr(operators, "_FUNCTION", missing)
    operators.has_grouped_mm.cache_clear()
    try:
        plain = module_of_experts()
        fast = accelerated(plain, GRAPHS["mixed"])
        assert_same_call(fast, plain, torch.tensor([[0, 1], [2, 3], [1, 3]]))
        assert on_graphs(fast) == 2
    finally:
        operators.has_grouped_mm.cache_clear()


def test_a_configuration_that_does_not_say_how_many_experts_a_token_has():
    plain = module_of_experts()
    fast = accelerated(plain)
    experts = outer_and_inner(fast)[1].base_layer
    experts.config = SimpleNamespace(_experts_implementation="eager")
    why = "how many experts a token has is not known before a step"
    assert {reason for _, reason in autolora.explain(fast, tokens=8).left} == {why}
    with pytest.raises(AutoloraError, match=why):
        autolora.tune(fast, tokens=8)
    call(fast, torch.tensor([[0, 1], [2, 3]]))
    assert autolora.explain(fast, tokens=8).left == []


def test_what_a_step_would_refuse_is_not_tuned_ahead():
    fast = mixture(dtype=torch.float32)
    autolora.accelerate(fast)
    with torch.autocast("cpu", torch.bfloat16):
        left = {reason for _, reason in autolora.explain(fast, tokens=18).left}
    assert left == {"experts in torch.float32 under autocast"}
