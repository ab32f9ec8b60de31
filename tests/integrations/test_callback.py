"""AutoloraCallback in the Trainer of transformers, and in TRL's."""

import importlib
import logging
import sys

import pytest
import torch
from trainers import llama, losses, trainer, trl_trainer

import autolora
from autolora.errors import AutoloraError
from autolora.integrations import AutoloraCallback, first_steps
from autolora.nn.layer_state import layer_states


def said(caplog):
    return " ".join(record.getMessage() for record in caplog.records if record.name == "autolora")


def reasons(model):
    return set(autolora.explain(model).counts)


def shallow():
    """A model with one block, since each is traced."""
    model = llama()
    del model.base_model.model.model.layers[1:]
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The losses of PEFT."""
    made = trainer(llama(), tmp_path_factory.mktemp("plain"), [])
    made.train()
    return losses(made)


def test_the_first_steps_are_tuned_for_and_the_losses_are_pefts(plain, tmp_path, caplog):
    made = trainer(llama(), tmp_path, [AutoloraCallback(tune=True, budget=3600)])
    made.train()
    assert losses(made) == pytest.approx(plain, rel=1e-5)
    assert reasons(made.model) == {"exact"}
    shares = [
        entry["autolora/measured_share"] for entry in made.state.log_history if "loss" in entry
    ]
    assert shares[:3] == [0, 0, 0]
    assert 0 < shares[-1] < 1
    assert "autolora/saved_seconds" in made.state.log_history[-2]
    text = said(caplog)
    assert "14 LoRA layers accelerated, 0 left to PEFT" in text
    assert text.count("Tuning took") == 1
    assert text.count("calls in training ran measured graphs") == 1
    assert "no timings" not in text


def test_without_tuning_it_accelerates_only(plain, tmp_path, caplog):
    made = trainer(llama(), tmp_path, [AutoloraCallback(objective="memory")])
    made.train()
    assert losses(made) == pytest.approx(plain, rel=1e-5)
    assert reasons(made.model) == {"miss"}
    assert {state.policy.wanted.kind for _, state in layer_states(made.model)} == {"memory"}
    assert "Tuning took" not in said(caplog)


def test_training_resumes_from_a_checkpoint(plain, tmp_path):
    for resume in (False, True):
        made = trainer(
            llama(),
            tmp_path,
            [AutoloraCallback(tune=True, budget=3600, steps=2)],
            save_strategy="steps",
            save_steps=4,
        )
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4") if resume else None)
        assert losses(made) == pytest.approx(plain, rel=1e-5)


def test_evaluation_and_generation_in_between_do_not_count(tmp_path):
    class Generates(AutoloraCallback):
        def on_step_end(self, args, state, control, *, model, **more):
            with torch.no_grad():
                model.generate(torch.full((1, 4), 5), max_new_tokens=2, do_sample=False)
            super().on_step_end(args, state, control, model=model, **more)

    callback = Generates(tune=True, budget=3600)
    made = trainer(llama(), tmp_path, [callback], eval_strategy="steps", eval_steps=2)
    made.train()
    assert callback.first.usage.calls.total() == 8 * 14
    seen = {layer.problem.tokens for layer in autolora.explain(made.model).layers}
    assert 48 in seen
    assert callback.first.missed == 0


def test_layers_that_are_accelerated_already_keep_their_settings(tmp_path):
    model = llama()
    autolora.accelerate(model, compute_dtype=torch.float64)
    made = trainer(model, tmp_path, [AutoloraCallback(compute_dtype=torch.bfloat16)])
    made.train()
    kinds = {state.policy.compute_dtype for _, state in layer_states(model)}
    assert kinds == {torch.float64}


def test_native_layers_are_tuned_too(tmp_path):
    model = autolora.add_lora(llama(adapted=False), rank=4)
    made = trainer(model, tmp_path, [AutoloraCallback(tune=True, budget=3600)])
    made.train()
    assert reasons(model) == {"exact"}


def test_a_model_without_adapters_trains_as_ever(tmp_path, caplog):
    made = trainer(llama(adapted=False), tmp_path, [AutoloraCallback(tune=True)])
    made.train()
    assert len(losses(made)) == 8
    assert "nothing is accelerated: this LlamaForCausalLM holds no PEFT LoRA layer" in said(caplog)


def test_a_compiled_model_is_tuned_compiled(tmp_path, monkeypatch):
    asked = []
    plain = trainer(shallow(), tmp_path, [])
    plain.train()

    def tune(recording, **options):
        asked.append((len(recording), options["compiled"]))
        return autolora.tune(recording, **{**options, "compiled": False})

    monkeypatch.setattr(first_steps, "tune", tune)
    made = trainer(
        shallow(),
        tmp_path,
        [AutoloraCallback(tune=True, budget=3600)],
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    made.train()
    assert [compiled for _, compiled in asked] == [True]
    assert losses(made) == pytest.approx(losses(plain), rel=1e-5)


def test_what_fails_while_it_tunes_does_not_end_the_training(plain, tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no such device")

    monkeypatch.setattr(first_steps, "tune", broken)
    made = trainer(llama(), tmp_path, [AutoloraCallback(tune=True)])
    made.train()
    assert losses(made) == pytest.approx(plain, rel=1e-5)
    assert "the run is not tuned" in said(caplog)


def test_a_spent_budget_says_what_is_left(tmp_path, caplog):
    made = trainer(llama(), tmp_path, [AutoloraCallback(tune=True, budget=1e-3)])
    made.train()
    assert "problems are still to be tuned: the budget of 0.001 s is spent" in said(caplog)


@pytest.mark.parametrize("kind", ["sft", "packed", "dpo", "grpo"])
def test_trainers_of_trl(kind, tmp_path):
    pytest.importorskip("trl")
    made = trl_trainer(kind, tmp_path / "plain", [])
    made.train()
    tuned = trl_trainer(kind, tmp_path / "tuned", [AutoloraCallback(tune=True, budget=3600)])
    tuned.train()
    assert losses(tuned) == pytest.approx(losses(made), rel=1e-4, abs=1e-6)
    assert "exact" in reasons(tuned.model)
    assert len(set(losses(made))) > 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 0}, "budget must be a positive number of seconds, not 0"),
        ({"budget": float("inf")}, "budget must be a positive number of seconds, not inf"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, not 1.5"),
        ({"objective": "speed"}, "objective must be one of"),
        ({"max_saved_bytes": -1}, "max_saved_bytes must be a whole number"),
    ],
)
def test_wrong_settings_are_refused_at_once(options, text):
    with pytest.raises(AutoloraError, match=text):
        AutoloraCallback(tune=True, **options)


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "autolora.integrations.callback")
    with pytest.raises(AutoloraError, match="transformers, which is not installed: pip install"):
        importlib.import_module("autolora.integrations.callback")


@pytest.fixture(autouse=True)
def _quiet_transformers():
    logging.getLogger("transformers").setLevel(logging.ERROR)
