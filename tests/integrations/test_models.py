"""Models of PEFT are accelerated as they are made, whatever makes them."""

import gc
import sys
import weakref
from collections import Counter

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from trainers import llama

import autolora
from autolora.integrations import first_steps
from autolora.integrations.first_steps import FirstSteps
from autolora.integrations.models import ScriptModels
from autolora.integrations.usage import Usage, usage_of
from autolora.nn.layer_state import layer_states
from autolora.nn.peft import Accelerated, lora_layers
from autolora.nn.strict import are_misses_expected
from autolora.tuning import tuner

LORA = peft.LoraConfig(target_modules="all-linear", r=4)


def accelerated(model):
    return [isinstance(layer, Accelerated) for _, layer in lora_layers(model)]


def saved(folder):
    peft.get_peft_model(llama(adapted=False), LORA).save_pretrained(folder)
    return str(folder)


def injected(tmp_path):
    return peft.inject_adapter_in_model(LORA, llama(adapted=False))


def of_transformers(tmp_path):
    model = llama(adapted=False)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


def loaded(tmp_path):
    return peft.PeftModel.from_pretrained(llama(adapted=False), saved(tmp_path / "adapter"))


def loaded_into_transformers(tmp_path):
    model = llama(adapted=False)
    model.load_adapter(saved(tmp_path / "adapter"))
    return model


def mixed(tmp_path):
    return peft.get_peft_model(llama(adapted=False), LORA, mixed=True)


def of_task(tmp_path):
    return peft.get_peft_model(llama(adapted=False), peft.LoraConfig(task_type="CAUSAL_LM", r=2))


@pytest.mark.parametrize(
    "make", [injected, of_transformers, loaded, loaded_into_transformers, mixed, of_task]
)
def test_every_way_of_making_a_model(make, tmp_path):
    original = BaseTuner.inject_adapter
    models = ScriptModels()
    with models.accelerated():
        model = make(tmp_path)
    assert accelerated(model)
    assert all(accelerated(model))
    assert BaseTuner.inject_adapter is original
    assert not any(accelerated(make(tmp_path)))
    assert not any(type(finder).__module__.startswith("autolora") for finder in sys.meta_path)


def test_the_settings_reach_the_layers():
    models = ScriptModels(compute_dtype="bfloat16", objective="memory", max_saved_bytes=2**20)
    with models.accelerated():
        model = llama()
    for _, state in layer_states(model):
        assert state.policy.compute_dtype is torch.bfloat16
        assert (state.policy.wanted.kind, state.policy.wanted.max_saved_bytes) == ("memory", 2**20)


def test_another_adapter_leaves_what_was_counted():
    models = ScriptModels()
    with models.accelerated():
        model = llama()
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
        model.add_adapter("second", LORA)
        model.set_adapter("second")
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
    (text,) = models.summary()
    assert text.startswith("14 LoRA layers of 1 model accelerated; 0 of 28 calls in training")


def test_what_is_left_to_peft_is_counted_with_its_reason():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return self.out(self.words(x))

    models = ScriptModels()
    with models.accelerated():
        model = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["words", "out"]))
    assert "left to PEFT: 1 × a layer.Embedding layer" in models.summary()
    with models.accelerated(), model.disable_adapter():
        model(torch.arange(4)).sum()
    assert "1 ran PEFT's path (" in models.summary()[0]


def test_other_adapters_are_left_alone():
    models = ScriptModels()
    with models.accelerated():
        config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        peft.get_peft_model(llama(adapted=False), config)
    assert models.summary() == [
        "not accelerated: 1 × this LlamaForCausalLM holds no PEFT LoRA layer; make one with "
        "peft.get_peft_model(model, peft.LoraConfig(...)), or use autolora.add_lora"
    ]


def test_models_that_are_gone_are_counted_but_not_kept():
    models = ScriptModels()
    with models.accelerated():
        model = llama()
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
        layer = weakref.ref(next(layer for _, layer in lora_layers(model)))
        del model
        gc.collect()
    assert layer() is None
    assert models.summary()[0].startswith("14 LoRA layers of 1 model accelerated; 0 of 14 calls")


def test_steps_of_other_optimizers_do_not_count():
    told = []
    first = FirstSteps(budget=3600, steps=1, told=told.append)
    model = llama()
    autolora.accelerate(model)
    first.watch(model)
    first.step()  # nothing has run yet
    model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
    first.step()
    first.step()  # of something else
    assert told == []
    model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
    first.step()
    assert len(told) == 1
    assert told[0].startswith("autolora: Tuning took")
    assert first.usage.calls == {"miss": 28}


def train(model, first, steps):
    for _ in range(steps):
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
        first.step()


def followed(first, **options):
    model = llama()
    autolora.accelerate(model, **options)
    first.watch(model)
    return model


def test_models_that_train_one_after_the_other_are_each_tuned():
    told = []
    first = FirstSteps(budget=3600, steps=1, told=told.append)
    one, two = followed(first), followed(first, objective="accuracy")
    train(one, first, 4)
    assert autolora.explain(one).counts == {"exact": 14}
    late = followed(first, compute_dtype=torch.float64)
    train(two, first, 4)
    train(late, first, 4)
    for model in (two, late):
        assert autolora.explain(model).counts == {"exact": 14}
    assert first.usage.calls.total() == 3 * 4 * 14
    assert first.usage.layers == 42
    assert not first.waits
    assert all(line.startswith("autolora: Tuning took") for line in told)


def test_a_model_that_does_not_run_any_more_is_not_kept(monkeypatch):
    monkeypatch.setattr(first_steps, "_PATIENCE", 2)
    first = FirstSteps(budget=3600, steps=1)
    model = followed(first)
    train(model, first, 1)  # and its recording begins
    gone = weakref.ref(model)
    del model
    for _ in range(2):
        first.step()
    gc.collect()
    assert gone() is None
    other = followed(first)
    train(other, first, 2)
    assert not first.waits


def test_a_pause_begins_the_recording_again():
    first = FirstSteps(budget=3600, steps=2, told=lambda line: None)
    model = followed(first)
    train(model, first, 2)
    assert first.waits
    first.pause()
    assert not are_misses_expected()
    first.watch(model)
    train(model, first, 4)
    assert not first.waits
    assert len(first.paybacks) == 1


def test_what_a_script_asks_for_by_itself_holds():
    models = ScriptModels(compute_dtype="bfloat16")
    with models.accelerated():
        model = peft.PeftModel(llama(adapted=False), LORA, "first")
        autolora.accelerate(model, compute_dtype=torch.float64)
        autolora.freeze(model)
        model.add_adapter("second", LORA)
    for _, state in layer_states(model):
        assert state.policy.compute_dtype is torch.float64
        assert state.policy.snapshots is not None


def test_calls_are_counted_across_whatever_drops_choices():
    models = ScriptModels()
    with models.accelerated():
        model = llama()
        for change in (
            lambda: autolora.tune(model, tokens=8, effort="quick"),
            lambda: autolora.accelerate(model, objective="memory"),
            lambda: autolora.freeze(model),
        ):
            model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
            change()
            models.take(model.base_model.model)  # as PEFT gives it
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
    assert "14 LoRA layers of 1 model" in models.summary()[0]
    assert " of 56 calls in training ran measured graphs" in models.summary()[0]


def test_an_interrupt_while_it_tunes_ends_the_training(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "measure_problem", interrupted)
    first = FirstSteps(budget=3600, steps=1, told=lambda line: None)
    model = followed(first)
    with pytest.raises(KeyboardInterrupt):
        train(model, first, 2)
    assert not are_misses_expected()


def test_tuning_leaves_the_random_numbers_of_the_run():
    model = llama()
    autolora.accelerate(model)
    first = FirstSteps(budget=3600, steps=1, told=lambda line: None)
    first.watch(model)
    state = torch.get_rng_state()
    for _ in range(2):
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.sum().backward()
        first.step()
    assert first.paybacks
    assert torch.equal(torch.get_rng_state(), state)


def test_usage_adds_up():
    assert str(usage_of([])) == "no layer has run in training yet"
    eager = Usage(2, Counter({"exact": 3, "miss": 1}), saved_ns=2e9)
    whole = eager + Usage(2, Counter({"exact": 4}), Counter({"merged": 2}), saved_ns=-5e9)
    assert (whole.layers, whole.measured, whole.missed) == (2, 7, 1)
    assert whole.logged == {"autolora/measured_share": 0.7, "autolora/saved_seconds": -3.0}
    assert str(whole) == (
        "7 of 10 calls in training ran measured graphs, 3.0 s slower than PEFT's by their records; "
        "1 ran graphs chosen unmeasured; 2 ran PEFT's path (merged)"
    )
    compiled = whole + Usage(2, compiled=Counter({"exact": 3, "miss": 1}))
    assert compiled.missed == 2
    assert compiled.logged == {"autolora/measured_share": 0.75}
    assert str(compiled).endswith(
        "3 of 4 problems compiled have measured graphs (calls of compiled code are not counted)"
    )
