"""DeepSpeed ZeRO-3 gathers the weights of each part of a layer for the part's own call."""

import peft
import pytest
import torch
from made_up_ranks import run_as_ranks
from torch import nn

import autolora

APART = "weights that DeepSpeed gathers part by part"


def emptied(weight):
    """What ZeRO-3 makes of a parameter between its calls."""
    weight.ds_id, weight.ds_shape = 0, weight.shape
    weight.data = weight.new_empty(0)


def layer():
    config = peft.LoraConfig(r=4, target_modules=["0"])
    return peft.get_peft_model(nn.Sequential(nn.Linear(24, 16)), config)


def left(model):
    (problem,) = autolora.explain(model, tokens=8).left
    with pytest.raises(autolora.AutoloraError, match=f"can be tuned; {problem[0]}: {problem[1]}"):
        autolora.tune(model, tokens=8)
    return problem[1]


def test_hooks_that_gather_weights_are_named():
    model = layer()
    base = model.base_model.model[0].base_layer
    base.register_forward_pre_hook(lambda *_: None)
    assert left(model) == "hooks on its parts"
    emptied(base.weight)
    assert left(model) == APART


def test_weights_that_are_not_there():
    model = layer()
    emptied(model.base_model.model[0].lora_A["default"].weight)
    assert left(model) == "weights that are not there between its calls"


PROGRAM = """
import copy, json, os
os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from torch import distributed
import deepspeed
import autolora
from peft_models import fast_calls, llama

deepspeed.init_distributed("gloo")
from sharded_models import *

plain = llama()
model = copy.deepcopy(plain)
autolora.accelerate(model)
trainable = [p for p in model.parameters() if p.requires_grad]
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.SGD(trainable, lr=0.1),
    config={
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    },
)
told = [autolora.explain(model, tokens=18).left]
with autolora.record(model) as recording:
    for step in range(2):
        engine.backward(engine(**mine(step)).loss)
        engine.step()
told += [recording.left, autolora.explain(model, tokens=18).left]
report = autolora.accelerate(model)
with deepspeed.zero.GatheredParameters(trainable):
    parameters = [whole(p) for p in trainable]
alone = trained(plain, both)
distributed.barrier()
print(json.dumps({"told": told, "notes": report.notes, "fast": fast_calls(model)[0],
                  "parameters": parameters, "alone": alone}))
distributed.destroy_process_group()
"""


def test_zero_3_itself(tmp_path):
    pytest.importorskip("deepspeed")
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    for found, _ in run_as_ranks(PROGRAM, [variables] * 2):
        for problems in (*found["told"], found["notes"]):
            assert len(problems) == 14
            assert {why for _, why in problems} == {APART}
        assert found["fast"] == 0
        for mine, theirs in zip(found["parameters"], found["alone"], strict=True):
            torch.testing.assert_close(
                torch.tensor(mine), torch.tensor(theirs), rtol=1e-3, atol=1e-4
            )
