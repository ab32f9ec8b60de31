"""Models sharded by ``fully_shard`` are seen and tuned as in their forward pass, on two ranks."""

import torch
from made_up_ranks import run_as_ranks

# way → a model, how it is sharded, and whether it then computes in bfloat16
WAYS = {
    "blocks": ("llama()", "shard(*blocks(model), model)", False),
    "kept after forward": (
        "llama()",
        "shard(*blocks(model), model, reshard_after_forward=False)",
        False,
    ),
    "all at once, resharded": ("llama()", "shard(model, reshard_after_forward=True)", False),
    "mixed precision": ("llama()", "shard(*blocks(model), model, mp_policy=NARROW)", True),
    "mixed precision, kept after forward": (
        "llama()",
        "shard(*blocks(model), model, mp_policy=NARROW, reshard_after_forward=False)",
        True,
    ),
    "checkpointing": (
        "llama()",
        "model.enable_input_require_grads();"
        "model.gradient_checkpointing_enable({'use_reentrant': False});"
        "shard(*blocks(model), model, mp_policy=NARROW)",
        True,
    ),
    "adapters alone": ("llama()", "shard(*blocks(model), model, ignored_params=frozen)", False),
    "in one group": ("llama()", "shard(list(blocks(model)), model)", False),
    "offloaded": (
        "llama()",
        "shard(*blocks(model), model, offload_policy=CPUOffloadPolicy(pin_memory=False))",
        False,
    ),
    "each layer": ("llama()", "shard(*lora_layers(model), model)", False),
    "each layer, mixed precision": (
        "llama()",
        "shard(*lora_layers(model), model, mp_policy=NARROW)",
        True,
    ),
    "DoRA": ("llama(use_dora=True)", "shard(*blocks(model), model)", False),
    "NF4, stored as bfloat16": (
        "quantised('nf4', BF16, stored=BF16, adapter_dtype32=False)",
        "shard(*blocks(model), model)",
        True,
    ),
    "Conv1D": ("gpt2()", "shard(*blocks(model), model, mp_policy=NARROW)", True),
}
# accelerate() is called after fully_shard in every way; in these not before it as well
LATE = ("blocks", "mixed precision", "each layer")

PROGRAM = """
import copy, json
from unittest.mock import patch
import torch, transformers
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
import autolora
from autolora.capture.capture import model_problems
from autolora.nn.layer_state import layer_states
from autolora.timing import measurement
from peft_models import BF16, adapt, llama, quantised

distributed.init_process_group("gloo")
from sharded_models import *

NARROW = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=torch.float32)

def gpt2():
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    return adapt(model, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)

def figures(way, first):
    code, sharding, _ = WAYS[way]
    model = copy.deepcopy(models[code])
    if first:
        autolora.accelerate(model)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    exec(sharding, {**globals(), "model": model, "frozen": frozen})
    report = autolora.accelerate(model)
    before = placed(model)
    ahead = autolora.explain(model, tokens=18)
    tuned = [each.problem for each in autolora.tune(model, tokens=18, effort="estimate").estimates]
    problems = model_problems(model, [18]).problems  # those of siblings too
    untouched = placed(model) == before
    model.train()
    with autolora.record(model) as recording:
        parameters = trained(model, mine)
    ran = autolora.explain(model)
    restored = len(autolora.restore(model)), len(list(layer_states(model)))
    return {
        "report": str(report),
        "layers": len(lora_layers(model)),
        "ahead": [each.name for each in ahead.layers],
        "left": ahead.left + recording.left + ran.left,
        "untouched": untouched,
        "tuned": list(map(repr, tuned)),
        "problems": list(map(repr, problems)),
        "recorded": list(map(repr, recording.uses)),
        "ran": [[each.name, repr(each.problem)] for each in ran.layers],
        "restored": restored,
        "parameters": parameters,
        "restored parameters": trained(model, mine),  # of PEFT's own layers, still sharded
    }

models = {code: eval(code) for code, _, _ in WAYS.values()}
found = [(way, figures(way, first=True)) for way in WAYS]
found += [(way, figures(way, first=False)) for way in LATE]
alone = {code: [trained(plain, both), trained(plain, both)] for code, plain in models.items()}

model = llama()
shard(*blocks(model), model, mp_policy=NARROW)
autolora.accelerate(model)
with patch.object(measurement, "measure_for", lambda device: lambda run: (run(), 1e6)[1]):
    autolora.tune(model, tokens=18, effort="quick")
model(**mine(0)).loss.backward()
reasons = autolora.explain(model).counts

distributed.barrier()  # the one that keeps the store ends last
print(json.dumps({"found": found, "alone": alone, "reasons": reasons}))
distributed.destroy_process_group()
"""


def test_sharded_models_are_seen_as_they_compute(tmp_path):
    source = f"WAYS = {WAYS}\nLATE = {LATE}\n{PROGRAM}"
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ranks = [{**variables, "AUTOLORA_CACHE": str(tmp_path / f"{rank}.json")} for rank in (0, 1)]
    for told, said in run_as_ranks(source, ranks):
        assert "keeps its own" not in said
        for way, found in told["found"]:
            model, _, narrow = WAYS[way]
            check(way, found, told["alone"][model], narrow)
        assert told["reasons"] == {"exact": 14}  # what was tuned is what runs


def check(way, found, alone, narrow):
    number = found["layers"]
    assert f"autolora: {number} LoRA layers accelerated, 0 left to PEFT" in found["report"], way
    assert "for now" not in found["report"], way
    assert found["left"] == [], way
    assert found["untouched"], way
    assert found["restored"] == [number, 0], way
    # all that was asked of the layers was foreseen, in its dtypes
    assert len(found["ahead"]) == number, way
    assert {name for name, _ in found["ran"]} == set(found["ahead"]), way
    assert {problem for _, problem in found["ran"]} <= set(found["tuned"]), way
    assert set(found["recorded"]) <= set(found["problems"]), way
    assert all(("bfloat16" in problem) == narrow for problem in found["problems"]), way
    families = sum("Siblings" in problem for problem in found["problems"])
    expected = {"DoRA": 0, "Conv1D": 0, "checkpointing": 2}  # there all layers need dX
    assert families == expected.get(way, 3), way
    tolerance = 3e-2 if narrow else 1e-4
    assert_trained_alike(found["parameters"], alone[0], tolerance)
    assert_trained_alike(found["restored parameters"], alone[1], tolerance)


def assert_trained_alike(found, expected, tolerance):
    for mine, theirs in zip(found, expected, strict=True):
        error = (torch.tensor(mine) - torch.tensor(theirs)).norm()
        assert error <= tolerance * torch.tensor(theirs).norm()
