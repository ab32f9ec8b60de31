"""Layers that get one X run together where a record says so, and are PEFT's in every case."""

import contextlib
import copy
import gc
import itertools
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from records import make_record
from torch import nn
from torch.utils.checkpoint import checkpoint

import autolora
from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.environment import Environment
from autolora.graphs.siblings.function import SiblingCall
from autolora.nn.choosing import refresh
from autolora.nn.layer_state import layer_states
from autolora.nn.siblings import running
from autolora.nn.siblings.family import Group, families
from autolora.problem import PLAIN_GRADIENTS

peft = pytest.importorskip("peft")
from peft_models import BF16, REGIMES, TOLERANCE, assert_same_step, gradients, llama  # noqa: E402

OUTS = {"q": 16, "k": 8, "v": 8}
TOGETHER = "together={}/base_first/h=saved{}{}/dA=via_z/dB=via_h"


class Block(nn.Module):
    """Three layers and what a test does with them; ``other`` is a layer between two of them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, size, bias=size > 8) for size in OUTS.values())
        self.other = nn.Linear(24, 24)

    def forward(self, x, program):
        return program(self, x)


def plainly(block, x):
    return torch.cat([block.q(x), block.k(x), block.v(x)], -1)


def adapted(dtype=torch.float32, **lora):
    """A block with adapters by PEFT, of different ranks and scalings."""
    torch.default_generator.manual_seed(0)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": list(OUTS), **lora}
    lora = {"rank_pattern": {"k": 2}, "alpha_pattern": {"v": 3}, **lora}
    model = peft.get_peft_model(Block().to(dtype), peft.LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def tune_together(model, run, joined="h,dA,dX"):
    """Records that let every family run together that a step shows, with gradients of X or not."""
    with autolora.record(model) as problems:
        run(model)
    records = []
    for problem in {problem.at(1): problem for problem in problems.uses if problem.parts}.values():
        for needs in (PLAIN_GRADIENTS, ("A", "B")):
            some = ",".join(p for p in joined.split(",") if p != "dX" or "X" in needs)
            narrow = problem.dtype == "float32" and problem.compute_dtype == "bfloat16"
            dx = "/dX=lowrank" if "X" in needs else ""
            winner = TOGETHER.format(some, "/D=saved" * narrow, dx)
            for tokens in {problem.tokens, 5, 10, 32}:
                record = make_record(
                    problem=replace(problem, gradients=needs, tokens=tokens),
                    times={winner: 1000, "reference": 3000},
                    environment=Environment.of("cpu"),
                )
                records.append(record)
    TimingCache(records).save(search_path()[0])
    refresh(model)


def one_step(model):
    step(model, plainly, torch.randn(2, 5, 24, dtype=next(model.parameters()).dtype))


def calls(model):
    """How many calls of layers ran together, and how many alone."""
    choices = [c for _, state in layer_states(model) for c in state.choices.values()]
    groups = {id(c.group): c.group for c in choices if isinstance(c.group, Group)}
    joint = sum(sum(group.calls) for group in groups.values())
    return joint, sum(choice.calls for choice in choices)


def step(model, program, x, autocast=None):
    """The outputs and all gradients of one step."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        Y = model(x, program)
    Y.float().square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return Y.detach(), {**gradients, "x": x.grad}


def assert_same(plain, fast, program=plainly, steps=3, tolerance=1e-5, **options):
    for number in range(steps):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(number))
        x = x.to(next(plain.parameters()).dtype)
        (Y, mine), (expected, theirs) = (step(m, program, x, **options) for m in (fast, plain))
        torch.testing.assert_close(Y, expected, rtol=tolerance, atol=tolerance)
        assert {n for n, g in mine.items() if g is None} == {
            n for n, g in theirs.items() if g is None
        }
        for name, gradient in theirs.items():
            if gradient is not None:
                assert mine[name].dtype == gradient.dtype
                error = (mine[name].float() - gradient.float()).norm()
                assert error <= 10 * tolerance * gradient.float().norm(), name


def pair(dtype=torch.float32, joined="h,dA,dX"):
    """PEFT's block, and its accelerated copy whose three layers run together."""
    plain = adapted(dtype)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same(plain, fast, steps=1, tolerance=1e-5 if dtype == torch.float32 else 3e-2)
    tune_together(fast, one_step, joined)
    return plain, fast


# ---- found, and exact


@pytest.mark.parametrize("joined", ["h,dA,dX", "h", "dA,dX", "none"])
def test_three_layers_run_together_exactly(joined):
    plain, fast = pair(joined=joined)
    assert_same(plain, fast)
    assert calls(fast) == (9, 0)
    (name, *_) = {layer.graph.partition("/")[0] for layer in autolora.explain(fast).layers}
    assert name == f"together={joined}"


@pytest.mark.parametrize("regime", REGIMES)
def test_a_real_model_in_every_regime(regime):
    dtype, adapter32, autocast = REGIMES[regime]
    tolerance = 1e-4 if dtype == torch.float32 and autocast is None else TOLERANCE[BF16]
    plain = llama(dtype, adapter_dtype32=adapter32)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same_step(fast, plain, tolerance, autocast)
    assert [len(names) for names in families(fast)] == [3, 2] * 2
    tune_together(fast, lambda model: gradients(model, autocast))
    for _ in range(2):
        assert_same_step(fast, plain, tolerance, autocast)
    assert calls(fast) == (20, 8)


def test_native_layers():
    block = Block()
    twin = copy.deepcopy(block)
    for each in (block, twin):
        torch.default_generator.manual_seed(1)
        autolora.add_lora(each, rank=4, alpha=8, target_modules=list(OUTS), siblings=each is block)
        for layer in (each.q, each.k, each.v):
            nn.init.normal_(layer.lora_B.weight)
    assert_same(twin, block, steps=1)
    tune_together(block, one_step)
    assert_same(twin, block)
    assert calls(block) == (9, 0)
    assert calls(twin) == (0, 12)
    assert families(twin) == []


def test_native_layers_that_are_merged_or_disabled_leave_their_siblings():
    torch.default_generator.manual_seed(0)
    block = autolora.add_lora(Block(), rank=3, alpha=6, target_modules=list(OUTS))
    for name in OUTS:
        nn.init.normal_(block.get_submodule(name).lora_B.weight, std=0.5)
    one_step(block)
    tune_together(block, one_step)
    x = torch.randn(2, 5, 24)

    def compare(expected):
        for found, wanted in zip(step(block, plainly, x), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    expected = step(block, plainly, x)
    assert calls(block) == (3, 0)
    with autolora.disable(block):
        layers = (block.q, block.k, block.v)
        plain = torch.cat([layer.base_layer(x) for layer in layers], -1)
        assert torch.equal(plainly(block, x), plain)
    compare(expected)
    assert calls(block) == (6, 0)
    autolora.merge(block.k)
    merged = step(block, plainly, x)
    assert calls(block) == (6, 2)
    torch.testing.assert_close(merged[0], expected[0], rtol=1e-4, atol=1e-4)
    reasons = [layer.why for layer in autolora.explain(block).layers]
    assert any("a sibling: its adapter is merged" in reason for reason in reasons)
    autolora.unmerge(block)
    compare(expected)


def test_without_a_record_nothing_changes():
    plain = adapted()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same(plain, fast)
    assert calls(fast) == (0, 9)
    assert {layer.reason for layer in autolora.explain(fast).layers} == {"miss"}


def test_an_inference_tensor_in_evaluation():
    plain = adapted()
    plain.requires_grad_(False)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    with torch.inference_mode():
        x = torch.randn(2, 5, 24)
    torch.testing.assert_close(fast(x, plainly), plain(x, plainly))  # it counts no versions


def test_siblings_can_be_turned_off():
    plain = adapted()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast, siblings=False)
    assert_same(plain, fast)
    assert families(fast) == []


def test_a_copy_of_a_model_finds_its_own_siblings():
    plain, fast = pair()
    twin = copy.deepcopy(fast)
    assert families(twin) == []
    assert_same(plain, twin)
    assert calls(twin) == (6, 3)  # alone in its first step
    assert calls(fast)[0] == 0


def test_no_siblings_but_of_the_same_tensor():
    def program(block, x):
        return torch.cat([block.q(x), block.k(x.clone()), block.v(x + 0)], -1)

    plain = adapted()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    assert_same(plain, fast, program)
    assert families(fast) == []


# ---- whatever differs, each layer runs alone, exactly


def skipped(block, x):
    return torch.cat([block.q(x), block.v(x)], -1)


def only_the_last(block, x):
    return block.v(x)


def twice(block, x):
    return torch.cat([block.q(x), block.k(x), block.v(x), block.k(x), block.q(x)], -1)


def another_order(block, x):
    return torch.cat([block.v(x), block.q(x), block.k(x)], -1)


def on_a_view(block, x):
    return torch.cat([block.q(x), block.k(x.view(5, 2, 24)).view(2, 5, -1), block.v(x)], -1)


def on_a_part(block, x):
    return torch.cat([block.q(x)[:1], block.k(x[:1]), block.v(x)[:1]], -1)


def after_a_change(block, x):
    x = x * 1
    Y = block.q(x.clone())
    k = block.k(x)
    with torch.no_grad():
        x = x.mul_(1)  # a new version of what k has seen, with the same numbers
    return torch.cat([Y, k.detach(), block.v(x)], -1)


def with_others_between(block, x):
    return torch.cat([block.q(x), block.other(x), block.k(x), block.v(x)], -1)


def partly_without_gradients(block, x):
    q = block.q(x)
    with torch.no_grad():
        k = block.k(x)
    return torch.cat([q, k, block.v(x)], -1)


def partly_in_autocast(block, x):
    q = block.q(x)
    with torch.autocast("cpu", torch.bfloat16):
        k = block.k(x).float()
    return torch.cat([q, k, block.v(x)], -1)


def partly_used(block, x):
    q, k, v = block.q(x), block.k(x), block.v(x)
    return q + k.mean() * 0 + v.mean()


def an_output_dropped(block, x):
    q, _, v = block.q(x), block.k(x), block.v(x)
    return torch.cat([q, v], -1)


def changed_output(block, x):
    q = block.q(x)
    q += 1
    return torch.cat([q, torch.relu_(block.k(x)), block.v(x)], -1)


def checkpointed(block, x):
    def part(x):
        return torch.cat([block.q(x), block.k(x)], -1)

    return torch.cat([checkpoint(part, x, use_reentrant=False), block.v(x)], -1)


def checkpointed_reentrant(block, x):
    def part(x):
        return torch.cat([block.q(x), block.k(x)], -1)

    return torch.cat([checkpoint(part, x, use_reentrant=True), block.v(x)], -1)


def wholly_checkpointed(block, x):
    return checkpoint(lambda x: plainly(block, x), x, use_reentrant=False)


def skipped_in_checkpoint(block, x):
    return checkpoint(lambda x: skipped(block, x), x, use_reentrant=False)


def in_another_thread(block, x):
    found = {}

    def call():
        found["k"] = block.k(x)

    q = block.q(x)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return torch.cat([q, found["k"], block.v(x)], -1)


PROGRAMS = [
    skipped,
    only_the_last,
    twice,
    another_order,
    on_a_view,
    on_a_part,
    after_a_change,
    with_others_between,
    partly_without_gradients,
    partly_in_autocast,
    partly_used,
    an_output_dropped,
    changed_output,
    checkpointed,
    checkpointed_reentrant,
    wholly_checkpointed,
    skipped_in_checkpoint,
    in_another_thread,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_ways_of_calling_are_exact(program):
    plain, fast = pair()
    tolerance = 1e-2 if program is partly_in_autocast else 1e-5
    assert_same(plain, fast, steps=2)
    assert_same(plain, fast, program, steps=5, tolerance=tolerance)
    assert_same(plain, fast, steps=2)


@pytest.mark.parametrize("program", [another_order, with_others_between, wholly_checkpointed])
def test_some_ways_still_run_together(program):
    plain, fast = pair()
    before = calls(fast)[0]
    assert_same(plain, fast, program)
    assert calls(fast)[0] - before >= 9


@pytest.mark.parametrize("program", [checkpointed, wholly_checkpointed, skipped_in_checkpoint])
def test_checkpointing_from_the_first_step(program):
    plain, fast = pair()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)  # records are there, but siblings are not known yet
    assert_same(plain, fast, program, steps=6)


def test_siblings_that_never_all_come_are_given_up_and_explain_says_so():
    plain, fast = pair()
    assert_same(plain, fast, skipped, steps=5)
    before = calls(fast)[0]
    assert_same(plain, fast, steps=2)
    assert calls(fast)[0] == before
    assert "its siblings did not all get its input" in str(autolora.explain(fast))


def disable(model):
    model.base_model.model.k.enable_adapters(False)


def merge(model):
    model.base_model.model.k.merge()


def switch(model):
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=list(OUTS)))
    model.set_adapter("second")


def delete(model):
    switch(model)
    model.delete_adapter("second")
    model.set_adapter("default")


def freeze_one(model):
    model.base_model.model.k.lora_A.default.weight.requires_grad_(False)


def rescale(model):
    model.base_model.model.v.scaling["default"] = 0.25


def hook_outputs(model):
    model.base_model.model.k.register_forward_hook(lambda module, args, Y: Y * 2)


def hook_inputs(model):
    model.base_model.model.k.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hook_backwards(model):
    layer = model.base_model.model.k
    layer.register_full_backward_hook(lambda module, given, found: (given[0] * 2,))


def hook_a_part(model):
    model.base_model.model.k.lora_A.default.register_forward_hook(lambda m, args, h: h * 2)


def change_a_weight(model):
    with torch.no_grad():
        model.base_model.model.k.lora_A.default.weight.mul_(2)
        model.base_model.model.v.base_layer.weight.add_(0.5)


def replace_a_weight(model):
    layer = model.base_model.model.k.lora_B.default
    layer.weight = nn.Parameter(layer.weight.detach() * 3)


CHANGES = [
    disable,
    merge,
    switch,
    delete,
    freeze_one,
    rescale,
    hook_outputs,
    hook_inputs,
    hook_backwards,
    hook_a_part,
    change_a_weight,
    replace_a_weight,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_one_sibling_are_exact(change):
    plain, fast = pair()
    assert_same(plain, fast, steps=1)
    for model in (plain, fast):
        torch.default_generator.manual_seed(3)
        change(model)
    assert_same(plain, fast)


@pytest.mark.parametrize(
    "lora",
    [
        {"lora_bias": True},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_dropout": 0.5},
    ],
    ids=str,
)
def test_other_adapters(lora):
    plain = adapted(**lora)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    for model in (plain, fast):
        model.eval()  # with other masks the two could not be compared
    assert_same(plain, fast, steps=1)
    tune_together(fast, one_step)
    assert_same(plain, fast)
    together = "use_rslora" in lora or "lora_dropout" in lora
    assert calls(fast) == ((9, 0) if together else (0, 9))


def test_layers_with_dropout_run_one_by_one_and_explain_says_so():
    plain, fast = pair()
    for model in (plain, fast):
        model.train()
        for layer in (model.base_model.model.q, model.base_model.model.v):
            layer.lora_dropout["default"] = nn.Dropout(0.5)
    for number in range(2):
        results = []
        for model in (plain, fast):
            torch.default_generator.manual_seed(number)
            results.append(step(model, plainly, torch.ones(2, 5, 24)))
        (Y, mine), (expected, theirs) = results
        torch.testing.assert_close(Y, expected)
        torch.testing.assert_close(mine, theirs)


def test_a_weight_changed_between_two_siblings():
    plain, fast = pair()

    def program(block, x):
        q = block.q(x)
        with torch.no_grad():
            block.k.lora_A.default.weight.mul_(1.5)
        return torch.cat([q, block.k(x), block.v(x)], -1)

    for number in range(2):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(number))
        torch.testing.assert_close(fast(x, program), plain(x, program))


def test_siblings_on_another_stream_run_one_by_one(monkeypatch):
    plain, fast = pair()
    streams = itertools.count()
    monkeypatch.setattr(running, "_stream", lambda x: next(streams))
    together, alone = calls(fast)
    assert_same(plain, fast, steps=1)
    assert calls(fast) == (together + 1, alone + 2)  # the first began a call, and no other joined


# ---- autograd


def test_a_second_backward_pass_and_gradients_of_some():
    plain, fast = pair()
    results = []
    for model in (plain, fast):
        x = torch.ones(1, 3, 24, requires_grad=True)
        block = model.base_model.model
        q, k, v = block.q(x), block.k(x), block.v(x)
        A, B = block.k.lora_A.default.weight, block.v.lora_B.default.weight
        found = [*torch.autograd.grad(k.sum(), [x, A], retain_graph=True)]
        found += torch.autograd.grad((q * v.sum()).sum(), [B], retain_graph=True)
        total = q.square().sum() + k.sum() + v.square().sum()
        for _ in range(2):
            found += torch.autograd.grad(total, [x, A, B], retain_graph=True)
        results.append(found)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_that_are_differentiated_again():
    plain, fast = pair()
    results = []
    for model in (plain, fast):
        x = torch.ones(1, 3, 24, requires_grad=True)
        Y = model(x, plainly)
        parameters = [p for p in model.parameters() if p.requires_grad]
        first = torch.autograd.grad(Y.square().sum(), [x, *parameters], create_graph=True)
        second = sum(gradient.square().sum() for gradient in first)
        results.append(torch.autograd.grad(second, [x, *parameters]))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_backward_passes_of_one_layer_after_the_other():
    """Layers on an input that needs no gradient have nothing in common."""
    plain, fast = pair()
    results = []
    for model in (plain, fast):
        block, x = model.base_model.model, torch.ones(2, 5, 24)
        model.zero_grad()
        for layer in (block.q, block.k, block.v):  # each before the next is called
            layer(x).square().sum().backward()
        for _ in range(3):
            outputs = [layer(x) for layer in (block.q, block.k, block.v)]
            for Y in outputs:
                Y.square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_backward_pass_inside_autocast_computes_as_outside():
    plain, fast = pair()
    x = torch.randn(2, 5, 24)
    results = []
    for model in (plain, fast):
        model.zero_grad()
        given = x.clone().requires_grad_()
        block = model.base_model.model
        outputs = [layer(given) for layer in (block.q, block.k, block.v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=model is fast):
            outputs[1].square().sum().backward()  # of one layer alone
        results.append((given.grad, block.k.lora_A.default.weight.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


class Loop(nn.Module):
    """A block that runs twice with the same weights."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(24, 24), nn.Linear(24, 24)

    def once(self, x):
        return torch.tanh(self.q(x) + self.k(x) * 0.5)

    def forward(self, x, checkpoints):
        def twice(x):
            return self.once(self.once(x))

        return checkpoint(twice, x, use_reentrant=False) if checkpoints else twice(x)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_block_that_runs_twice(checkpoints):
    models = []
    for together in (True, False):
        torch.default_generator.manual_seed(0)
        loop = autolora.add_lora(Loop(), rank=3, siblings=together)
        for layer in (loop.q, loop.k):
            nn.init.normal_(layer.lora_B.weight, std=0.3)
        models.append(loop)
    fast, plain = models

    def run(loop):
        loop.zero_grad()
        Y = loop(torch.ones(2, 5, 24), checkpoints)  # its first pass needs no gradient of X
        Y.square().sum().backward()
        return Y.detach(), *(p.grad for p in loop.parameters() if p.requires_grad)

    run(fast)
    tune_together(fast, run)
    for _ in range(2):
        for mine, theirs in zip(run(fast), run(plain), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert calls(fast)[0] > 4


def test_layers_that_got_several_inputs_at_first():
    plain = adapted()
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)

    def mixed(block, x):
        other = x * 2
        first = block.q(x), block.q(other)[:1]
        return torch.cat([first[0], block.k(x), block.v(other)], -1)

    assert_same(plain, fast, mixed, steps=2)
    tune_together(fast, lambda model: step(model, mixed, torch.ones(2, 5, 24)))
    tune_together(fast, one_step)
    assert_same(plain, fast, mixed)
    assert_same(plain, fast)
    assert_same(plain, fast, lambda block, x: block.k(x))


def test_a_sibling_that_was_restored_or_replaced():
    plain, fast = pair()
    autolora.restore(fast.base_model.model.k)
    assert_same(plain, fast)
    for model in (plain, fast):
        torch.default_generator.manual_seed(9)
        model.base_model.model.v = nn.Linear(24, 8)
    assert_same(plain, fast)


def test_a_sibling_whose_weights_are_elsewhere():
    _, fast = pair()
    block, x = fast.base_model.model, torch.randn(2, 5, 24)
    expected = block.q(x)
    weight = block.k.lora_A.default.weight
    weight.data = torch.empty(0)  # as an offloader or an older FSDP leaves it
    torch.testing.assert_close(block.q(x), expected)


def test_a_module_that_shares_the_state_of_another():
    plain, fast = pair()
    twin = copy.copy(fast.base_model.model.q)  # as DataParallel makes replicas
    twin._modules = dict(twin._modules)
    twin._modules["base_layer"] = nn.Linear(24, 16)
    x = torch.randn(2, 5, 24, requires_grad=True)
    before = calls(fast)[0]
    Y = twin(x)
    lora = plain.base_model.model.q
    lora.base_layer = twin._modules["base_layer"]
    torch.testing.assert_close(Y, lora(x))
    assert calls(fast)[0] == before


def with_norms(block, x):
    """As blocks do that normalise q and k, in a wider dtype: no output of a layer is kept."""
    q = nn.functional.layer_norm(block.q(x).to(torch.float64), (16,))
    k = nn.functional.layer_norm(block.k(x).to(torch.float64), (8,))
    return torch.cat([q, k, block.v(x).to(torch.float64)], -1).float()


def test_outputs_that_are_not_kept_do_not_part_siblings():
    plain, fast = pair()
    assert_same(plain, fast, with_norms, steps=5, tolerance=1e-3)
    assert calls(fast) == (15, 0)


def test_threads_that_share_a_model():
    plain, fast = pair()
    x = torch.randn(2, 5, 24)
    expected = plain(x, plainly)
    right = []

    def work():
        right.extend(
            torch.allclose(fast(x, plainly), expected, rtol=1e-4, atol=1e-5) for _ in range(30)
        )

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 90
    assert all(right)
    state = fast.base_model.model.q._autolora
    assert state.family.given_up == ""


def test_a_call_that_failed_can_be_repeated(monkeypatch):
    _, fast = pair()
    block, x = fast.base_model.model, torch.randn(2, 5, 24, requires_grad=True)
    q = block.q(x)
    real, failing = SiblingCall.forward, [True]

    def forward(self, number):
        if failing:
            failing.clear()
            raise RuntimeError("out of memory")
        return real(self, number)

    monkeypatch.setattr(SiblingCall, "forward", forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        block.k(x)
    (q.sum() + block.k(x).sum() + block.v(x).sum()).backward()
    assert calls(fast)[0] == 3


# ---- memory


def saved_bytes(model, x, program=plainly):
    """Bytes of the distinct storages kept for the backward pass, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, program).sum()
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_is_kept_than_peft_keeps(dtype):
    plain, fast = pair(dtype)
    x = torch.randn(4, 8, 24, dtype=dtype, requires_grad=True) * 1
    mine, theirs = saved_bytes(fast, x), saved_bytes(plain, x)
    assert calls(fast)[0] >= 3
    assert mine <= theirs
    problems = [e.problem for e in autolora.explain(fast).layers if e.problem.parts]
    x_bytes = x.numel() * x.element_size()
    h_bytes = sum(problems[0].ranks) * 32 * 4  # adapters are in float32
    assert mine == x_bytes + h_bytes


@pytest.mark.parametrize("program", [skipped, lambda block, x: block.q(x)])
def test_nothing_is_held_for_a_sibling_that_does_not_come(program):
    _, fast = pair()
    x = torch.randn(2, 5, 24, requires_grad=True) * 1
    gone = weakref.ref(x)
    Y = fast(x, program)
    del x
    assert gone() is not None  # kept for the backward pass
    Y.sum().backward()
    del Y
    gc.disable()
    try:
        assert gone() is None
    finally:
        gc.enable()
