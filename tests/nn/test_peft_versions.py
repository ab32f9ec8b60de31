"""Other versions of PEFT: layers with unknown internals stay PEFT's, and training goes on."""

import json
import os
from pathlib import Path

import peft
import pytest
from forks import Fork
from peft.tuners.lora import dora
from peft_models import llama
from renamed_peft import train_renamed

import autolora
from autolora.nn import peft_internals
from autolora.nn.peft import why_left

VERSION = f"PEFT {peft.__version__}"
NO_DORA = f"{VERSION} has no DoraLinearVariant or DoraLinearLayer"
RENAMED = {  # name → why layers with LoRA and with DoRA are left; "" if they are accelerated
    **{
        name: 2 * (f"{VERSION} has no {name} in its layers",)
        for name in ("_disable_adapters", "lora_variant")
    },
    "DoraLinearVariant": ("", NO_DORA),
    "ENABLE_DORA_CACHING": ("", ""),
}


def test_a_peft_with_renamed_internals_trains_as_ever():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    forks = {name: Fork(train_renamed, name, environment=environment) for name in RENAMED}
    seen = {}
    for name, fork in forks.items():
        out, err = fork.communicate(timeout=240)
        assert fork.returncode == 0, err
        seen[name] = json.loads(out)
    for name, found in seen.items():
        for each, reason in zip(found, RENAMED[name], strict=True):
            assert each["notes"] == []
            if reason:
                assert (each["taken"], each["left"]) == (0, [reason]), name
                assert (each["calls"], each["difference"]) == ([0, 0], 0), name
            else:
                assert (each["taken"], each["left"], each["calls"]) == (14, [], [42, 0]), name
                assert each["difference"] < 1e-5, name


@pytest.mark.parametrize("name", peft_internals._ATTRIBUTES)
def test_an_attribute_of_another_type_leaves_the_layer_to_peft(name):
    model = llama()
    autolora.accelerate(model)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    kind = type(layer)
    layer._modules.pop(name, None)
    vars(layer)[name] = frozenset()
    assert why_left(layer) == f"{VERSION} has a {name} of type frozenset"
    assert len(autolora.accelerate(model).left) == 1
    assert type(layer) is kind.__mro__[2]  # and no longer accelerated


@pytest.mark.parametrize(
    ("attribute", "value"), [("disable_adapters", True), ("active_adapters", []), ("merged", True)]
)
def test_state_that_peft_keeps_elsewhere_leaves_the_layer_to_peft(monkeypatch, attribute, value):
    model = llama()
    monkeypatch.setattr(peft.tuners.lora.LoraLayer, attribute, property(lambda _: value))
    report = autolora.accelerate(model)
    assert report.taken == []
    assert {why for _, why in report.left} == {
        f"{VERSION} keeps its active and merged adapters elsewhere"
    }


def test_dora_with_a_cache_is_left_to_peft(monkeypatch):
    model = llama(use_dora=True)
    autolora.accelerate(model)
    monkeypatch.setattr(dora, "ENABLE_DORA_CACHING", True, raising=False)  # PEFT 0.17 has none
    report = autolora.accelerate(model)
    assert {why for _, why in report.notes} == {"the variant DoraLinearVariant"}


def test_private_names_of_peft_stand_in_one_module():
    package = Path(autolora.__file__).parent
    private = ("_disable_adapters", "_active_adapter", "merged_adapters", "lora_variant")
    private += ("cast_input_dtype_enabled", "lora_magnitude_vector", "ENABLE_DORA", "DoraLinear")
    users = {
        path.name
        for path in package.rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in private)
    }
    assert users == {"peft_internals.py"}
