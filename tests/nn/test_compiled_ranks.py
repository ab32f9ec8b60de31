"""Compiled blocks of accelerated models under DDP and FSDP2: PEFT's numbers of one process."""

import pytest
import torch
from made_up_ranks import run_as_ranks

from autolora.graphs.operators import TRACEABLE

pytestmark = pytest.mark.skipif(not TRACEABLE, reason="this torch compiles PEFT's path")

# Each rank trains on a batch of its own; PEFT alone, in one process, on both.
PROGRAM = """
import copy, json
import torch
from peft_models import llama
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
import autolora
from autolora.nn.choosing import pin
from autolora.graphs.space import valid_graphs

distributed.init_process_group("gloo")
from sharded_models import both, mine, trained

def some_graph(problem):
    graphs = [graph for graph in valid_graphs(problem).values() if not graph.is_reference]
    return graphs[len(graphs) // 2]

def compiled_copy(plain):
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    pin(fast, some_graph)
    blocks = fast.base_model.model.model.layers
    for number, block in enumerate(blocks):
        blocks[number] = torch.compile(block, backend="aot_eager", fullgraph=True)
    return fast, blocks

def run(fast):
    layers = autolora.explain(fast).layers
    assert len({layer.name for layer in layers}) == 14
    return sorted({layer.graph for layer in layers if layer.problem.mode == "compiled"})

plain = llama()
fast, _ = compiled_copy(plain)
by_ddp = trained(fast, mine, nn.parallel.DistributedDataParallel(fast))
seen = run(fast)
torch._dynamo.reset()
fast, blocks = compiled_copy(plain)
for block in blocks:
    fully_shard(block)
fully_shard(fast)
by_fsdp = trained(fast, mine)
alone = trained(plain, both)
distributed.barrier()
print(json.dumps({"ddp": by_ddp, "fsdp": by_fsdp, "alone": alone, "seen": [seen, run(fast)]}))
distributed.destroy_process_group()
"""


def test_ddp_and_fsdp2_around_compiled_blocks(tmp_path):
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    for found, _ in run_as_ranks(PROGRAM, [variables] * 2):
        for way in ("ddp", "fsdp"):
            for mine, theirs in zip(found[way], found["alone"], strict=True):
                torch.testing.assert_close(
                    torch.tensor(mine), torch.tensor(theirs), rtol=1e-3, atol=1e-4
                )
        for graphs in found["seen"]:
            assert graphs
            assert "reference" not in graphs
