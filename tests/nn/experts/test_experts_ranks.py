"""Mixtures of experts under DDP and FSDP2: PEFT's numbers of one process."""

import pytest
import torch
from made_up_ranks import run_as_ranks

pytest.importorskip("transformers.integrations.moe")

# Each rank trains on a batch of its own; PEFT alone, in one process, on both.
PROGRAM = """
import copy, json
import torch
from small_mixture import GRAPHS, experts_along, mixture
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
import autolora
from autolora.capture.capture import model_problems
from autolora.graphs.kinds import reference_graph
from autolora.nn.choosing import pin
from autolora.nn.layer_state import layer_states
from autolora.problem import Experts

distributed.init_process_group("gloo")
from sharded_models import both, mine, trained
along = experts_along(GRAPHS["mixed"])

def some_graph(problem):
    return along(problem) if isinstance(problem, Experts) else reference_graph(problem)

def fast_copy(plain):
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    pin(fast, some_graph)
    return fast

def along_graphs(fast):
    choices = [choice for _, state in layer_states(fast) for choice in state.choices.values()]
    of_experts = [choice for choice in choices if isinstance(choice.problem, Experts)]
    return sum(choice.calls for choice in of_experts if choice.executable is not None)

plain = mixture()
fast = fast_copy(plain)
by_ddp = trained(fast, mine, nn.parallel.DistributedDataParallel(fast))
calls = [along_graphs(fast)]
by_fsdp, sharded = [], []
for dtype in (None, torch.float32):
    policy = MixedPrecisionPolicy(param_dtype=dtype, cast_forward_inputs=dtype is not None)
    fast = fast_copy(plain)
    for block in fast.base_model.model.model.layers:
        fully_shard(block, mp_policy=policy)
    fully_shard(fast, mp_policy=policy)
    foreseen = model_problems(fast, [18])
    with autolora.record(fast) as recording:
        by_fsdp.append(trained(fast, mine))
    calls.append(along_graphs(fast))
    sharded.append({
        "foreseen": list(map(repr, foreseen.problems)),
        "recorded": list(map(repr, recording.uses)),
        "left": foreseen.left + recording.left + autolora.explain(fast).left,
    })
alone = trained(plain, both)
distributed.barrier()
print(json.dumps({"ddp": by_ddp, "fsdp": by_fsdp[0], "narrow": by_fsdp[1], "alone": alone,
                  "calls": calls, "sharded": sharded}))
distributed.destroy_process_group()
"""


def test_ddp_and_fsdp2_train_as_pefts_model_alone(tmp_path):
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    for found, _ in run_as_ranks(PROGRAM, [variables] * 2):
        for way, within in (("ddp", 1e-6), ("fsdp", 1e-6), ("narrow", 1e-4)):
            for mine, theirs in zip(found[way], found["alone"], strict=True):
                torch.testing.assert_close(
                    torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=within
                )
        assert found["calls"] == [8, 8, 8]  # two weights of two blocks in two steps
        for told, dtype in zip(found["sharded"], ("float64", "float32"), strict=True):
            assert told["left"] == []
            assert set(told["recorded"]) <= set(told["foreseen"])
            assert any("Experts" in problem for problem in told["recorded"])
            assert all(f"dtype='{dtype}'" in problem for problem in told["foreseen"])
