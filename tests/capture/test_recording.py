"""What is recorded of real training steps is what the layers are asked for."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import autolora
from autolora.capture.capture import model_problems
from autolora.capture.recording import Recording
from autolora.errors import AutoloraError
from autolora.objective import Objective
from autolora.problem import Problem

peft = pytest.importorskip("peft")
from peft_models import REGIMES, autocast_to, gradients, llama  # noqa: E402 - needs peft


def asked(model):
    """The number of calls with each problem, as accelerated layers count them."""
    found = Counter()
    for layer in autolora.explain(model).layers:
        found[layer.problem] += layer.calls
    return found


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "lora", [{}, {"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
def test_a_recording_is_what_accelerated_layers_are_asked_for(regime, lora):
    dtype, adapter32, autocast = REGIMES[regime]
    model, other = (llama(dtype, adapter_dtype32=adapter32, **lora) for _ in range(2))
    autolora.accelerate(other)
    for each in (model, other):
        each.train()
        with autolora.record(each) as problems:
            gradients(each, autocast)
        if each is other:
            assert problems.calls == asked(other)
        else:
            plain = problems.calls
    assert plain == problems.calls
    assert plain.total() == 14
    assert (problems.left, problems.untrained) == ([], 0)


@pytest.mark.parametrize("fast", [False, True], ids=["PEFT", "accelerated"])
def test_recording_changes_nothing(fast):
    model = llama(lora_dropout=0.2).train()
    if fast:
        autolora.accelerate(model)
    states = [(module, {**vars(module)}) for module in model.modules()]

    def step():
        torch.default_generator.manual_seed(1)
        return gradients(model)

    loss, grads = step()
    with autolora.record(model) as problems:
        same_loss, same_grads = step()
    assert len(problems) > 0
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(grad, same_grads[name]) for name, grad in grads.items())
    assert all({**vars(module)} == state for module, state in states)
    assert not any(module._forward_hooks for module in model.modules())
    known = problems.calls.copy()
    step()
    assert problems.calls == known


def small(**options):
    return autolora.add_lora(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), rank=2, **options)


def test_our_layers():
    model = small(dropout=0.5).train()
    with autolora.record(model) as problems:
        for rows in (3, 3, 5):
            model(torch.zeros(rows, 8)).sum().backward()
    assert problems.calls == asked(model)
    first = Problem(8, 8, 3, 2, "float32", "cpu", bias=True, dropout=True, gradients=("A", "B"))
    assert problems.uses[first] == 2
    assert len(problems) == 4
    assert list(problems) == list(problems.uses)
    assert problems.device == torch.device("cpu")


def test_an_autocast_that_starts_inside():
    model = small()
    with autolora.record(model) as problems, autocast_to(torch.bfloat16):
        model(torch.zeros(3, 8))
    assert {problem.dtype for problem in problems} == {"bfloat16"}
    assert problems.calls == asked(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_calls_twice(reentrant):
    model = small()
    x = torch.zeros(3, 8, requires_grad=True)
    with autolora.record(model) as problems:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert {problem.gradients for problem in problems} == {("X", "A", "B")}
    assert problems.calls.total() == (2 if reentrant else 4)  # the first pass has no gradients
    assert problems.untrained == (2 if reentrant else 0)


def test_evaluation_is_not_recorded():
    model = small()
    with autolora.record(model) as problems:
        with torch.no_grad():
            model(torch.zeros(3, 8))
        model.requires_grad_(False)
        model(torch.zeros(3, 8))
    assert (len(problems), problems.untrained) == (0, 4)
    with pytest.raises(AutoloraError, match=r"no LoRA layer ran in training .*4 calls needed no"):
        autolora.tune(problems)


def test_calls_that_pose_no_problem_are_left_with_a_reason():
    model = small(dropout=0.5).train()
    with autolora.record(model) as problems:
        for _ in range(2):
            model[0](torch.zeros(8))
            model[0](torch.zeros(8, 3).t())
        with pytest.raises(RuntimeError):
            model[1](torch.zeros(2, 8).double())
        model[1](torch.zeros(2, 8, requires_grad=True))
    assert problems.left == [
        ("0", "input of one axis"),
        ("0", "dropout of an input that is not contiguous"),
        ("1", "input is torch.float64, base weight torch.float32"),
    ]
    assert [problem.gradients for problem in problems] == [("X", "A", "B")]
    assert "left: 1 × input of one axis (0)" in str(problems)


def test_layers_of_peft_that_take_their_own_path_are_left():
    model = llama().eval()
    ids = torch.zeros(1, 3, dtype=torch.long)
    with autolora.record(model) as problems:
        model(input_ids=ids, adapter_names=["default"])
        with model.disable_adapter():
            model(input_ids=ids)
    reasons = Counter(reason for _, reason in problems.left)
    assert reasons == {
        "its adapters are disabled": 14,
        "its forward was given adapter_names": 14,
    }
    assert len(problems) == 0
    with pytest.raises(AutoloraError, match="its forward was given adapter_names"):
        autolora.tune(problems)


def test_layers_that_no_graphs_exist_for_are_left():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 8), nn.Linear(8, 9)

        def forward(self, ids):
            return self.out(self.embed(ids))

    config = peft.LoraConfig(r=2, target_modules=["embed", "out"])
    model = peft.get_peft_model(Embedded(), config)
    with autolora.record(model) as problems:
        model(torch.zeros(2, 3, dtype=torch.long))
    assert [problem.tokens for problem in problems] == [6]
    assert problems.left == [("base_model.model.embed", "a layer.Embedding layer")]


def test_quantised_layers():
    pytest.importorskip("bitsandbytes")
    from autolora.timing.quantise import quantised

    base = quantised(torch.randn(32, 64, dtype=torch.bfloat16), None, "nf4")
    model = autolora.add_lora(nn.Sequential(base), rank=2)
    x = torch.zeros(3, 64, requires_grad=True)  # which the layer casts
    with autolora.record(model) as problems:
        model(x).sum().backward()
    assert problems.calls == asked(model)
    assert [(problem.dtype, problem.layout) for problem in problems] == [("bfloat16", "nf4")]


def test_many_token_counts_become_powers_of_two():
    model = small()
    with autolora.record(model) as problems:
        for rows in range(3, 21):
            model(torch.zeros(rows, 8))
    assert len(problems.calls) == 36
    assert {problem.tokens for problem in problems} == {3, 4, 8, 16, 20}
    assert len(problems) == 10
    assert sum(problems.uses.values()) == problems.calls.total() == 36
    assert str(problems) == (
        "autolora: 10 problems in 36 calls of LoRA layers\n"
        "  8→8 rank 2 float32: tokens 3 (×1), 4 (×2), 8 (×6), 16 (×6), 20 (×3)\n"
        "  8→4 rank 2 float32: tokens 3 (×1), 4 (×2), 8 (×6), 16 (×6), 20 (×3)"
    )


def test_what_was_seen_before_an_error_is_kept():
    model, seen = small(), []

    def train():
        with autolora.record(model) as problems:
            seen.append(problems)
            model(torch.zeros(3, 8))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    (problems,) = seen
    assert len(problems) == 2
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_lora_layers():
    with pytest.raises(AutoloraError, match=r"this Linear has no LoRA layers to record; make some"):
        autolora.record(nn.Linear(3, 3)).__enter__()


def test_nothing_recorded():
    with autolora.record(small()) as problems:
        pass
    assert str(problems) == "autolora: 0 problems in 0 calls of LoRA layers"
    with pytest.raises(AutoloraError, match="no LoRA layer ran in training inside the with-block"):
        autolora.tune(problems)


def test_a_recording_is_tuned_and_its_layers_use_it(path):
    model = small(objective="memory")
    with autolora.record(model) as problems:
        model(torch.zeros(3, 8)).sum().backward()
    assert {layer.reason for layer in autolora.explain(model).layers} == {"miss"}
    assert problems.objective == [Objective("memory")]
    with pytest.raises(AutoloraError, match="tokens go with a model"):
        autolora.tune(problems, tokens=3)
    result = autolora.tune(problems, effort="quick")
    assert {record.problem for record in result.records} == set(problems)
    assert all("memory" in record.objectives for record in result.records)
    assert path.exists()
    model(torch.zeros(3, 8)).sum().backward()
    assert {layer.reason for layer in autolora.explain(model).layers} == {"exact"}
    assert len(autolora.tune(problems, effort="quick").skipped) == 2
    (asked_anew,) = autolora.tune(
        Recording(model, Counter([next(iter(problems))])), effort="quick", objective="accuracy"
    ).records
    assert "accuracy" in asked_anew.objectives


def test_a_recording_agrees_with_the_assumption_about_plain_models():
    model = llama()
    with autolora.record(model) as problems:
        gradients(model)
    assert set(problems) <= set(model_problems(model, [18]).problems)
