"""The mask of dropout, and the random numbers that are left after it, against ``F.dropout``."""

import pytest
import torch

from autolora.graphs import dropout
from autolora.graphs.dropout import dropout_mask


@pytest.mark.parametrize("shape", [(5, 3), (64, 64), (200, 300), (7, 33_001)])
@pytest.mark.parametrize("p", [0.05, 0.1, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mask_is_bit_for_bit_the_one_of_torch(shape, p, dtype):
    ones = torch.ones(shape, dtype=dtype)
    torch.manual_seed(11)
    expected = torch.nn.functional.dropout(ones, p) != 0
    state = torch.get_rng_state()
    torch.manual_seed(11)
    mask = dropout_mask(ones, p, dtype)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.bool(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_bernoulli_draws_where_integers_differ(monkeypatch):
    monkeypatch.setattr(dropout, "_integers_match", lambda: False)
    monkeypatch.setattr(dropout, "_draw_integers", None)
    ones = torch.ones(200, 300)
    torch.manual_seed(11)
    expected = torch.nn.functional.dropout(ones, 0.1) != 0
    torch.manual_seed(11)
    assert torch.equal(dropout_mask(ones, 0.1, torch.float32).bool(), expected)
