"""Siblings under DDP with unused parameters and under FSDP2: PEFT's numbers of one process."""

import torch
from made_up_ranks import run_as_ranks

# Each rank trains on a batch of its own; PEFT alone, in one process, on both.
PROGRAM = """
import copy, json
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
import autolora
from test_siblings import adapted, calls, one_step, plainly, skipped, tune_together

distributed.init_process_group("gloo")
rank = distributed.get_rank()

def batch(rank, step):
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(10 * rank + step))

def whole(tensor):
    found = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().flatten().tolist()

def trained(net, data, program, model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        net(data(step), program(step)).square().mean().backward()
        optimizer.step()
    return [whole(p) for p in trainable]

def mine(step):
    return batch(rank, step)

def both(step):
    return torch.cat([batch(0, step), batch(1, step)])

def always(step):
    return plainly

def sometimes(step):  # v is not called in every step, k never is
    return skipped if step % 2 else q_alone

def q_alone(block, x):
    return block.q(x)

def fast_copy(plain):
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    return fast

plain = adapted()
first = fast_copy(plain)
one_step(first)
tune_together(first, one_step)
found = {}
for name, program in (("all", always), ("some", sometimes)):
    model = fast_copy(plain)
    one_step(model)
    net = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    found[f"ddp {name}"] = trained(net, mine, program, model)
    alone = copy.deepcopy(plain)
    found[f"ddp {name} alone"] = trained(alone, both, program, alone)
    found[f"ddp {name} calls"] = calls(model)
model = fast_copy(plain)
one_step(model)
fully_shard(model)
found["fsdp"] = trained(model, mine, always, model)
found["fsdp alone"] = found["ddp all alone"]
found["fsdp calls"] = calls(model)
distributed.barrier()
print(json.dumps(found))
distributed.destroy_process_group()
"""


def test_siblings_on_two_ranks(tmp_path):
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ranks = [{**variables, "AUTOLORA_CACHE": str(tmp_path / f"{rank}.json")} for rank in (0, 1)]
    for found, _ in run_as_ranks(PROGRAM, ranks):
        for way in ("ddp all", "ddp some", "fsdp"):
            for mine, theirs in zip(found[way], found[f"{way} alone"], strict=True):
                torch.testing.assert_close(
                    torch.tensor(mine), torch.tensor(theirs), rtol=1e-3, atol=1e-4
                )
        assert found["ddp all calls"][0] == found["fsdp calls"][0] == 12
