"""Accelerated mixtures of experts: PEFT's numbers, in every way that people train them."""

import copy

import peft
import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from peft_models import BF16, assert_same_step, batch, choices_of, fast_calls
from safetensors.torch import load_file
from small_mixture import GRAPHS, experts_along, mixture
from torch import nn

import autolora
from autolora.graphs.kinds import reference_graph
from autolora.nn.choosing import pin
from autolora.problem import Experts

REGIMES = {  # dtype, implementation, adapters in float32, autocast, tolerance
    "float64-eager": (torch.float64, "eager", False, None, 1e-9),
    "float64-batched": (torch.float64, "batched_mm", False, None, 1e-9),
    "float32-grouped": (torch.float32, "grouped_mm", False, None, 1e-4),
    "float32-grouped-autocast": (torch.float32, "grouped_mm", False, BF16, 5e-2),
    "bfloat16-grouped": (BF16, "grouped_mm", False, None, 8e-2),
    "bfloat16-adapters32": (BF16, "grouped_mm", True, None, 8e-2),
    "bfloat16-adapters32-autocast": (BF16, "eager", True, BF16, 8e-2),
}


def choose(name):
    """Pins experts to a graph and all other layers to PEFT's."""
    along = experts_along(name)

    def chooser(problem):
        return along(problem) if isinstance(problem, Experts) else reference_graph(problem)

    return chooser


def accelerated(plain, name=GRAPHS["loop"]):
    """An accelerated copy along one graph."""
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    assert not report.left, report
    pin(fast, choose(name))
    return fast


def wrappers(model):
    return [module for module in model.modules() if isinstance(module, ParamWrapper)]


def reasons(model):
    return {reason for _, reason in autolora.explain(model).left}


def experts_calls(model):
    """How many calls of experts' weights ran along a graph."""
    choices = [c for c in choices_of(model) if isinstance(c.problem, Experts)]
    return sum(c.calls for c in choices if c.executable is not None)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_loss_and_gradients_equal_pefts(kind, graph):
    plain = mixture(kind)
    for name, parameter in plain.named_parameters():
        if "router" in name or "mlp.gate" in name:
            parameter.requires_grad_()  # whose gradient is to be PEFT's as well
    fast = accelerated(plain, GRAPHS[graph])
    assert_same_step(fast, plain, 1e-9)
    assert experts_calls(fast) == 4


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime(regime):
    dtype, implementation, adapters32, autocast, tolerance = REGIMES[regime]
    plain = mixture("qwen3_moe", dtype, implementation, adapter_dtype32=adapters32)
    fast = accelerated(plain, GRAPHS["mixed"])
    assert_same_step(fast, plain, tolerance, autocast)
    assert experts_calls(fast) == 4


@pytest.mark.parametrize("weights", [("gate_up_proj",), ("down_proj",)], ids="".join)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_adapters_on_one_of_the_weights(implementation, weights):
    plain = mixture("gpt_oss", implementation=implementation, weights=weights)
    fast = accelerated(plain)
    assert_same_step(fast, plain, 1e-9)
    assert experts_calls(fast) == 2


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_frozen_factors(frozen):
    plain = mixture()
    for name, parameter in plain.named_parameters():
        if frozen in name and "experts" in name:
            parameter.requires_grad_(False)
    for graph in GRAPHS.values():
        fast = accelerated(plain, graph)
        assert_same_step(fast, plain, 1e-9)
        assert experts_calls(fast) == 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    plain = mixture()
    for model in (plain, fast := accelerated(plain)):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(fast, plain, 1e-9)
    assert experts_calls(fast) >= 4


def test_evaluation_and_generation():
    plain = mixture(dtype=torch.float32, implementation="grouped_mm").eval()
    fast = accelerated(plain).eval()
    with torch.no_grad():
        expected = plain(**batch()).logits
        torch.testing.assert_close(fast(**batch()).logits, expected, rtol=1e-4, atol=1e-5)
    assert experts_calls(fast) == 4
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ids = batch()["input_ids"]
    assert torch.equal(fast.generate(ids, **options), plain.generate(ids, **options))


def test_one_graph_and_pefts_for_the_other_weight():
    plain = mixture()
    for adapted, other in (("down", "gate_up"), ("gate_up", "down")):
        fast = accelerated(plain)
        along = experts_along(GRAPHS["loop"])
        size = {"down": 16, "gate_up": 32}[adapted]

        def one(problem, size=size, along=along):
            of_one = isinstance(problem, Experts) and problem.in_features == size
            return along(problem) if of_one else reference_graph(problem)

        pin(fast, one)
        assert_same_step(fast, plain, 1e-9)
        assert experts_calls(fast) == 2, other


def test_the_reference_graph_is_pefts_own_path():
    plain = mixture()
    fast = accelerated(plain)
    pin(fast, reference_graph)
    expected = plain(**batch())
    assert torch.equal(fast(**batch()).logits, expected.logits)
    assert experts_calls(fast) == 0
    assert {e.graph for e in autolora.explain(fast).layers} == {"reference"}


def test_adapters_disabled_merged_switched_added_and_deleted():
    plain = mixture()
    fast = accelerated(plain)
    for model in (plain, fast):
        torch.manual_seed(1)
        model.add_adapter("other", model.peft_config["default"])
        for name, parameter in model.named_parameters():
            if "lora_B.other" in name:
                nn.init.normal_(parameter, std=0.1)
        model.set_adapter("other")
    assert_same_step(fast, plain, 1e-9)
    with plain.disable_adapter(), fast.disable_adapter(), torch.no_grad():
        assert torch.equal(fast(**batch()).logits, plain(**batch()).logits)
    assert "its adapters are disabled" in reasons(fast)
    for model in (plain, fast):
        model.delete_adapter("other")
        model.set_adapter("default")
    assert_same_step(fast, plain, 1e-9)
    for model in (plain, fast):
        model.merge_adapter()
    with torch.no_grad():
        assert torch.equal(fast(**batch()).logits, plain(**batch()).logits)
    for model in (plain, fast):
        model.unmerge_adapter()
    before = experts_calls(fast)
    assert_same_step(fast, plain, 1e-9)
    assert experts_calls(fast) == before + 4
    theirs, mine = plain.merge_and_unload(), fast.merge_and_unload()
    for name, one in theirs.state_dict().items():
        assert torch.equal(one, mine.state_dict()[name]), name


def test_what_runs_as_pefts_runs_it_says_why():
    plain = mixture()
    fast = accelerated(plain)
    inner = next(w.base_layer for w in wrappers(fast) if isinstance(w.base_layer, ParamWrapper))
    seen = []
    handle = inner.register_forward_hook(lambda *_: seen.append(1))
    assert_same_step(fast, plain, 1e-9)
    assert seen
    assert "hooks on its parts" in reasons(fast)
    handle.remove()
    experts = inner.base_layer
    experts.gate_up_proj.requires_grad_()
    fast(**batch()).loss.backward()
    assert experts.gate_up_proj.grad is not None
    assert "the base layer is trained too" in reasons(fast)


def test_float64_by_grouped_products_fails_as_pefts_does():
    fast = accelerated(mixture(implementation="grouped_mm"))
    with pytest.raises(RuntimeError, match="Double"):
        fast(**batch())
    assert "torch has no grouped products in float64" in reasons(fast)


def test_other_implementations_and_modules_are_left():
    plain = mixture()
    plain.base_model.model.set_experts_implementation("eager")
    for module in plain.modules():
        if hasattr(module, "_is_expert_parallel"):
            module._is_expert_parallel = True
    report = autolora.accelerate(plain)
    assert {reason for _, reason in report.left} == {"experts spread over several ranks"}

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            return x @ self.weight[0]

    model = nn.ModuleDict({"stack": Stack()})
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["stack.weight"])
    report = autolora.accelerate(peft.get_peft_model(model, config))
    assert [reason for _, reason in report.left] == ["a parameter of a Stack"]


def test_a_linear_layers_weight_is_a_lora_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 6, dtype=torch.float64)

        def forward(self, x):
            return self.first(x)

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["first.weight"])
    plain = peft.get_peft_model(Net(), config, autocast_adapter_dtype=False)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    fast = copy.deepcopy(plain)
    assert len(autolora.accelerate(fast).taken) == 1
    x = torch.randn(5, 8, dtype=torch.float64)
    found = []
    for model in (plain, fast):
        Y = model(x)
        Y.sin().sum().backward()
        found.append([Y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert fast_calls(fast) == (1, 0)


def test_compiled_models_run_pefts_path():
    plain = mixture(dtype=torch.float32)
    fast = accelerated(plain)
    blocks = [model.base_model.model.model.layers[0].mlp for model in (fast, plain)]
    compiled = torch.compile(blocks[0], backend="eager")
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(compiled(x), blocks[1](x))
    assert experts_calls(fast) == 0
    assert "compiled: there are no graphs for compiled experts" in reasons(fast)


def test_gradients_of_gradients():
    plain = mixture()
    plain.base_model.model.set_attn_implementation("eager")  # torch has no others' derivatives
    fast = accelerated(plain)

    def squared_gradients(model):
        weights = [p for n, p in model.named_parameters() if "experts" in n and "lora" in n]
        grads = torch.autograd.grad(model(**batch()).loss, weights, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), weights)

    for mine, theirs in zip(squared_gradients(fast), squared_gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


def test_adapter_files_after_equal_steps(tmp_path):
    plain = mixture()
    for name, model in (("plain", plain), ("fast", accelerated(plain))):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for step in range(3):
            optimizer.zero_grad()
            model(**batch(step)).loss.backward()
            optimizer.step()
        model.float().save_pretrained(tmp_path / name)
    ours, theirs = (tmp_path / each / "adapter_model.safetensors" for each in ("fast", "plain"))
    assert load_file(ours).keys() == load_file(theirs).keys()
    assert ours.read_bytes() == theirs.read_bytes()
