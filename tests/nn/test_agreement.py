"""Ranks of a process group run rank 0's graphs: by a store in memory, and as real processes."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from made_up_ranks import run_as_ranks
from one_layer import TALL, record_of
from records import H100, REFERENCE
from torch import distributed

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.nn.freezing import agreement, freeze
from autolora.nn.freezing.agreement import RANK_0, agree
from autolora.nn.freezing.snapshot import Snapshot
from autolora.objective import TIME, Objective

HERE = Environment.of("cpu")
THREADS = replace(HERE, units=HERE.units + 7)
SIZES, OTHERS = frozenset({(24, 16)}), frozenset({(16, 24), (24, 24)})

# ---- two ranks in one process, with a store in memory


@pytest.fixture
def as_rank(monkeypatch):
    """Agrees as the rank given; all share one store."""
    store = distributed.HashStore()
    monkeypatch.setattr(agreement, "_store", lambda: store)
    monkeypatch.setattr(agreement, "LIMIT_SECONDS", 0.05)

    def agree_as(rank, plan, here=HERE, sizes=SIZES):
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        environments = [here] if isinstance(here, Environment) else here
        return agree(plan, {each.device: each for each in environments}, sizes)

    agree_as.store = store
    return agree_as


def plan_of(*winners, objective=TIME):
    """A plan of one file for each winner."""
    layers = [TimingCache([record_of(w)], Path(f"{n}.json")) for n, w in enumerate(winners)]
    return Snapshot(Lookup.of(*layers), objective)


def winners(plan):
    return [record.winner for record in plan.records]


def test_a_rank_in_the_same_environment_holds_the_plan_of_rank_0(as_rank, warnings):
    first = as_rank(0, plan_of(TALL, REFERENCE, objective=Objective("memory", 10**6)))
    second = as_rank(1, plan_of(REFERENCE))
    for snapshots in (first, second):
        assert snapshots.objective == Objective("memory", 10**6)
        for device in ("cpu", "cuda"):
            assert winners(snapshots.of(device)) == [TALL, REFERENCE]
            assert snapshots.of(device).origin == RANK_0
    assert warnings() == []


def test_a_rank_in_another_environment_keeps_its_own_and_says_so(as_rank, warnings):
    as_rank(0, plan_of(TALL, objective=Objective("memory")))
    snapshots = as_rank(3, plan_of(REFERENCE), replace(THREADS, torch="2.0.0"))
    assert (winners(snapshots.of("cpu")), snapshots.of("cpu").origin) == ([REFERENCE], "frozen")
    assert snapshots.objective == TIME
    (warning,) = warnings()
    assert warning == (
        "autolora: rank 3 keeps its own plan, since its environment is another one: units "
        f"({THREADS.units} here, {HERE.units} on rank 0), torch (2.0.0 here, {HERE.torch} on "
        "rank 0)"
    )


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "own", "said"),
    [
        ([HERE, H100], [HERE, H100], set(), []),
        ([HERE, H100], [THREADS, H100], {"cpu"}, ["units"]),
        ([HERE, H100], [HERE, replace(H100, units=7)], {"cuda"}, ["units (7 here, 132 on rank 0)"]),
        ([HERE], [HERE, H100], set(), []),
        ([HERE, H100], [HERE], set(), []),
        ([HERE, H100], [THREADS], {"cpu", "cuda"}, ["units"]),
        ([H100], [HERE], {"cpu", "cuda"}, ["device (cpu here, cuda on rank 0)"]),
    ],
)
def test_device_types_are_compared_one_by_one(as_rank, warnings, rank_0, rank_1, own, said):
    as_rank(0, plan_of(TALL), rank_0)
    snapshots = as_rank(1, plan_of(REFERENCE), rank_1)
    assert {device for device in ("cpu", "cuda") if winners(snapshots.of(device)) != [TALL]} == own
    assert len(warnings()) == len(said)
    assert all(words in warning for words, warning in zip(said, warnings(), strict=True))


def test_a_plan_may_be_larger_than_one_value_of_the_store(as_rank, monkeypatch):
    monkeypatch.setattr(agreement, "_PIECE", 100)
    sent = plan_of(TALL, REFERENCE)
    as_rank(0, sent)
    assert as_rank.store.num_keys() > 10
    assert as_rank(1, plan_of()).of("cpu").records == sent.records


def test_each_freezing_of_a_model_has_its_own_plan(as_rank):
    for winner in (TALL, REFERENCE):
        as_rank(0, plan_of(winner))
    for winner in (TALL, REFERENCE):
        assert winners(as_rank(1, plan_of()).of("cpu")) == [winner]
    assert winners(as_rank(2, plan_of()).of("cpu")) == [TALL]


def test_models_frozen_in_another_order_do_not_mix(as_rank):
    for sizes, winner in [(SIZES, TALL), (OTHERS, REFERENCE)]:
        as_rank(0, plan_of(winner), sizes=sizes)
    for sizes, winner in [(OTHERS, REFERENCE), (SIZES, TALL)]:
        assert winners(as_rank(1, plan_of(), sizes=sizes).of("cpu")) == [winner]


def nothing(as_rank, monkeypatch):
    pass


def others(as_rank, monkeypatch):
    monkeypatch.setattr(agreement, "LIMIT_SECONDS", 1e6)
    monkeypatch.setattr(agreement, "GRACE_SECONDS", 0.01)
    as_rank(0, plan_of(TALL), sizes=OTHERS)


def damaged(as_rank, monkeypatch):
    monkeypatch.setattr(agreement, "write_message", lambda *_: '{"objective":')
    as_rank(0, plan_of(TALL))


def cut_off(as_rank, monkeypatch):
    monkeypatch.setattr(agreement, "_PIECE", 100)
    as_rank(0, plan_of(TALL))
    as_rank.store.set_timeout(timedelta(seconds=0.01))
    as_rank.store.delete_key(f"{agreement.fingerprint(SIZES)}/1/2")


def broken(as_rank, monkeypatch):
    def fail():
        raise RuntimeError("Broken pipe\nException raised from sendBytes")

    monkeypatch.setattr(agreement, "_store", fail)


@pytest.mark.parametrize(
    ("happens", "cause"),
    [
        (nothing, "none came within 0.05 s"),
        (others, "rank 0 froze other layers"),
        (damaged, "Expecting value"),
        (cut_off, ""),
        (broken, "Broken pipe)"),
    ],
)
def test_whatever_happens_a_rank_goes_on_with_its_own_plan(
    as_rank, monkeypatch, warnings, happens, cause
):
    happens(as_rank, monkeypatch)
    snapshots = as_rank(1, plan_of(REFERENCE))
    assert (winners(snapshots.of("cpu")), snapshots.of("cpu").origin) == ([REFERENCE], "frozen")
    (warning,) = warnings()
    assert warning.startswith(f"autolora: rank 1 did not get rank 0's plan ({cause}")
    assert warning.endswith("and keeps its own")


def test_rank_0_goes_on_without_a_store(as_rank, monkeypatch, warnings):
    broken(as_rank, monkeypatch)
    assert winners(as_rank(0, plan_of(TALL)).of("cpu")) == [TALL]
    assert len(warnings()) == 1


# ---- which environments are compared

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 1)


class On:
    """A module with a parameter somewhere."""

    def __init__(self, device):
        self.device = device

    def parameters(self):
        return iter([self])


@pytest.mark.parametrize(
    ("devices", "nccl", "in_use", "compared"),
    [
        ([CPU], False, False, ["cpu"]),
        ([META], False, False, ["cpu"]),
        ([CPU], False, True, ["cpu", "cuda"]),
        ([CPU], True, False, ["cuda"]),
        ([META, CPU], True, True, ["cuda"]),
        ([CUDA, CUDA], False, True, ["cuda:1"]),
        ([CUDA], True, True, ["cuda:1"]),
        ([CPU, CUDA], True, True, ["cpu", "cuda:1"]),
    ],
)
def test_the_devices_that_count(monkeypatch, devices, nccl, in_use, compared):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    assert list(map(str, freeze._devices(map(On, devices), nccl=nccl))) == compared


# ---- real processes

START = """
import json, logging, os, sys
import peft, torch
from torch import distributed, nn
import autolora
from autolora.nn.freezing import agreement
distributed.init_process_group("gloo")
rank = distributed.get_rank()

def model(rows=16):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    return peft.get_peft_model(nn.Sequential(nn.Linear(24, rows)), config)

def batch(rank, step):
    return torch.randn(8, 24, generator=torch.Generator().manual_seed(10 * rank + step))

def ran(net):
    net(batch(rank, 0)).sum().backward()
    (layer,) = autolora.explain(net).layers
    return [layer.graph, layer.reason, layer.detail]

def tell(**figures):
    distributed.barrier()  # the one that keeps the store ends last
    print(json.dumps(figures))
    distributed.destroy_process_group()
"""

TRAIN = """
def step(net, losses):
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for number in range(2):
        optimiser.zero_grad()
        losses(net, number).backward()
        optimiser.step()
    return [p.flatten().tolist() for p in net.parameters() if p.requires_grad]

net = model()
report = autolora.accelerate(net)
together = step(
    nn.parallel.DistributedDataParallel(net), lambda net, n: net(batch(rank, n)).square().mean()
)
alone = step(  # PEFT by itself, in one process, on what both ranks saw
    model(), lambda net, n: net(torch.cat([batch(0, n), batch(1, n)])).square().mean()
)
held = ran(net)
from unittest.mock import patch
from autolora.timing import measurement
with patch.object(measurement, "measure_for", lambda device: lambda run: (run(), 1e6)[1]):
    distributed.barrier()
    if rank == 0:
        autolora.tune(net, tokens=12)
    distributed.barrier()
    if rank == 1:
        autolora.tune(net, tokens=12)
(tuned,) = autolora.explain(net, tokens=12).layers
if rank == 0:
    lonely = model(rows=8)
    autolora.accelerate(lonely)
tell(held=held, tuned=tuned.why, shown=str(report), together=together, alone=alone)
"""

DIFFER = """
net = model()
autolora.accelerate(net)
first = ran(net)
agreement.LIMIT_SECONDS = 0.2
if rank == 1:
    lonely = model(rows=8)
    autolora.accelerate(lonely)
tell(held=first)
"""


def run_ranks(code, tmp_path, threads, caches):
    """Runs a script as two ranks; what each told, and its stderr."""
    variables = []
    for rank in (0, 1):
        path = tmp_path / f"rank{rank}.json"
        TimingCache(caches[rank], path).save()
        variables.append({"OMP_NUM_THREADS": str(threads[rank]), "AUTOLORA_CACHE": str(path)})
    return run_as_ranks(START + code, variables)


def test_two_ranks_run_the_graphs_of_rank_0_and_train_as_one(tmp_path):
    here = replace(HERE, units=1)
    caches = [[record_of(winner, 8, here)] for winner in (TALL, REFERENCE)]
    (first, _), (second, said) = run_ranks(TRAIN, tmp_path, (1, 1), caches)
    assert first["held"] == second["held"] == [TALL, "exact", RANK_0]
    assert "1 LoRA layers frozen on rank 0's plan for time" in second["shown"]
    assert str(tmp_path / "rank0.json") in second["shown"]
    assert "keeps its own" not in said
    assert first["tuned"] == second["tuned"] == f"exact, {RANK_0}"
    assert first["together"] == second["together"]
    for mine, theirs in zip(first["together"], first["alone"], strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_a_rank_with_other_threads_keeps_its_own_graphs_and_nobody_waits_for_ever(tmp_path):
    both = [replace(HERE, units=units) for units in (1, 2)]
    caches = [[record_of(winner, 8, here) for here in both] for winner in (TALL, REFERENCE)]
    (first, quiet), (second, said) = run_ranks(DIFFER, tmp_path, (1, 2), caches)
    assert first["held"] == [TALL, "exact", RANK_0]
    assert second["held"] == [REFERENCE, "exact", "frozen"]
    words = "rank 1 keeps its own plan, since its environment is another one: units (2 here, 1 on"
    assert words in said
    assert "rank 1 did not get rank 0's plan (none came within 0.2 s) and keeps its own" in said
    assert "autolora: " not in quiet
