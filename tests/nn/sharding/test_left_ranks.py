"""Models whose weights are split over two ranks in other ways: PEFT's path, and why."""

import torch
from made_up_ranks import run_as_ranks

APART = "a part that FSDP shards by itself"
SPLIT = (
    "weights that are split over ranks (DTensor), by tensor parallelism or by an FSDP unit around "
    "this module"
)
FLAT = "its base is flattened with trained parameters (FullyShardedDataParallel)"

# way → how a model is sharded, what wraps it, and why its layers take PEFT's path, "" if not
WAYS = {
    "each adapter": (
        "for layer in lora_layers(model): shard(layer.lora_A.default, layer.lora_B.default)\n"
        "shard(*blocks(model), model)",
        "model",
        APART,
    ),
    "each base": (
        "for layer in lora_layers(model): shard(layer.base_layer)\nshard(model)",
        "model",
        APART,
    ),
    "flattened": ("", "flat(model, auto_wrap_policy=by_block)", FLAT),
    "flattened, PEFT's policy": (
        "",
        "flat(model, auto_wrap_policy=fsdp_auto_wrap_policy(model))",
        APART,
    ),
    "tensor parallelism": (
        "for block in blocks(model): parallelize_module(block, WORLD, plan(block))",
        "model",
        SPLIT,
    ),
    "flattened adapters": ("", "flat(model, auto_wrap_policy=by_block, ignored_states=frozen)", ""),
    "tensor parallelism and fully_shard": (
        "for block in blocks(model): parallelize_module(block, MESH['tp'], plan(block))\n"
        "shard(*blocks(model), model, mesh=MESH['dp'])",
        "model",
        SPLIT,
    ),
}

PROGRAM = """
import copy, json, os
from contextlib import nullcontext
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from peft.utils.other import fsdp_auto_wrap_policy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
import autolora
from peft_models import fast_calls, llama

distributed.init_process_group("gloo")
from sharded_models import *

WORLD = init_device_mesh("cpu", (2,))
MESH = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
by_block = ModuleWrapPolicy({LlamaDecoderLayer})
os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "LlamaDecoderLayer"

def flat(model, **options):
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=device, **options)

def plan(block):
    columns, rows = (
        ColwiseParallel(output_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())
    )
    names = [name for name, each in block.named_modules() if name.endswith("base_layer")]
    return {name: rows if "down_proj" in name else columns for name in names}

def parameters_of(net):
    flat = isinstance(net, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(net) if flat else nullcontext():
        return [whole(p) for p in net.parameters() if p.requires_grad]

def tuned(model):
    try:
        return len(autolora.tune(model, tokens=18, effort="estimate").estimates)
    except autolora.AutoloraError as error:
        return str(error)

def figures(way):
    sharding, around, _ = WAYS[way]
    model = copy.deepcopy(plain)
    autolora.accelerate(model)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    given = {**globals(), "model": model, "frozen": frozen}
    exec(sharding, given)
    net = eval(around, given)
    before = placed(model)
    tuning = tuned(model)
    ahead = autolora.explain(model, tokens=18)
    untouched = placed(model) == before
    with autolora.record(model) as recording:
        trained(model, both if "tensor" in way else mine, net)
    ran = autolora.explain(model)
    return {
        "tuning": tuning,
        "untouched": untouched,
        "recorded": sorted({problem.in_features for problem in recording}),
        "left": [ahead.left, recording.left, ran.left],
        "calls": fast_calls(model),
        "parameters": parameters_of(net),
        "report": str(autolora.accelerate(model)),
    }

plain = llama()
found = {way: figures(way) for way in WAYS}
alone = trained(plain, both)

model = llama()
shard(*blocks(model), model)
attention = blocks(model)[0].self_attn
inside = autolora.explain(attention, tokens=18).left
if RANK == 1:  # in the part of one rank, of one adapter
    attention.q_proj.lora_B.default.weight.to_local().data.fill_(float("inf"))
infinite = autolora.accelerate(model).left

distributed.barrier()  # the one that keeps the store ends last
print(json.dumps({"found": found, "alone": alone, "inside": inside, "infinite": infinite}))
distributed.destroy_process_group()
"""


def test_layers_whose_weights_are_split_otherwise(tmp_path):
    source = f"WAYS = {WAYS}\n{PROGRAM}"
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ranks = [{**variables, "AUTOLORA_CACHE": str(tmp_path / f"{rank}.json")} for rank in (0, 1)]
    for rank, (told, _) in enumerate(run_as_ranks(source, ranks)):
        for way, (_, _, reason) in WAYS.items():
            check(way, told["found"][way], told["alone"], reason)
        assert {why for _, why in told["inside"]} == {SPLIT}
        # each rank looks at what it has, and none waits for another
        where = "base_model.model.model.layers.0.self_attn.q_proj"
        infinite = [[where, "its adapter default holds numbers that are not finite"]]
        assert told["infinite"] == (infinite if rank == 1 else [])


def check(way, found, alone, reason):
    assert found["untouched"], way
    fast, slow = found["calls"]
    for left in found["left"]:
        assert {why for _, why in left} == ({reason} if reason else set()), way
        assert len(left) == (14 if reason else 0), way
    if reason:
        assert reason in found["tuning"], way
        assert found["recorded"] == [], way
        assert fast == 0, way
        assert f"14 × {reason}" in found["report"], way
    else:
        assert found["tuning"] == 6, way
        assert found["recorded"] == [32, 48], way
        assert (fast, slow) == (28, 0), way
        assert "for now" not in found["report"], way
    for mine, theirs in zip(found["parameters"], alone, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-3, atol=1e-4)
