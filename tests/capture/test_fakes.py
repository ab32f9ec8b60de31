"""Code that runs without the numbers of weights and inputs."""

import logging
import resource

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor

from autolora.capture.fakes import Fakes, running, shapes_only
from autolora.capture.weightless import without_weights


@pytest.fixture
def mode():
    mode = Fakes()
    with running(mode, seed=0):
        yield mode


@pytest.fixture
def x():
    """Unknown floats."""
    return torch.empty(6, 4, device="meta")


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.arange(6).view(2, 3).cumsum(0),
        lambda: torch.tensor([1, 2]) + torch.ones(2, dtype=torch.long),
        lambda: torch.arange(4.0).mul(1.5).long(),
        lambda: torch.linspace(0, 1, 5).ge(0.5),
        lambda: torch.tensor([0.2, 0.7]) > 0.5,
        lambda: torch.where(torch.tensor([1, 0, 1]) == 1)[0],
        lambda: torch.zeros(3, 4).scatter(1, torch.tensor([[1], [1], [2]]), 1).long().sum(0),
        lambda: torch.histc(torch.tensor([0, 1, 1]).float(), bins=2, min=0, max=1).int(),
        lambda: torch.bincount(torch.tensor([3, 3, 1])),
        lambda: torch.nn.functional.one_hot(torch.tensor([0, 2]), 3),
        lambda: torch.zeros(3, dtype=torch.long).index_fill_(0, torch.tensor([1]), 7),
        lambda: torch.full((2, 2), float("-inf")).triu(1) < 0,
    ],
)
def test_what_is_known_is_computed(mode, compute):
    with torch.utils._python_dispatch._disable_current_modes():
        expected = compute()
    found = compute()
    assert type(found) is torch.Tensor
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()
    assert not mode.drawn


def test_a_known_float_stays_known_until_it_is_written_to(mode, x):
    total = torch.zeros(3)
    total += torch.arange(3)
    assert (total > 1).tolist() == [False, False, True]
    assert torch.tensor(2.5).item() == 2.5
    assert not mode.drawn
    total += x[0, :3]
    assert len((total > 1).tolist()) == 3
    assert mode.drawn


@pytest.mark.parametrize(
    ("find", "places"),
    [
        (lambda x: x.topk(3, -1).indices, 4),
        (lambda x: torch.topk(x, 2, dim=0).indices, 6),
        (lambda x: x.sort(descending=True).indices, 4),
        (lambda x: x.argsort(0), 6),
        (lambda x: x.softmax(-1).multinomial(2), 4),
    ],
)
def test_an_order_of_unknown_floats_is_drawn(mode, x, find, places):
    found = find(x)
    assert mode.drawn
    rows = (found if places == 4 else found.T).tolist()
    assert all(len(set(row)) == len(row) and {*row} <= {*range(places)} for row in rows)
    assert len({tuple(row) for row in rows}) > 1
    assert mode.rows == 24 // places


@pytest.mark.parametrize(
    ("find", "shape", "places"),
    [
        (lambda x: x.argmax(), (), 24),
        (lambda x: x.argmax(-1), (6,), 4),
        (lambda x: x.max(0, keepdim=True).indices, (1, 4), 6),
        (lambda x: x.min(dim=1).indices, (6,), 4),
        (lambda x: x.softmax(-1).multinomial(9, replacement=True), (6, 9), 4),
    ],
)
def test_indices_of_unknown_floats_are_drawn(mode, x, find, shape, places):
    found = find(x)
    assert found.shape == shape
    assert 0 <= found.min() <= found.max() < places
    assert mode.drawn


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda x: (x == 0).any(), False),
        (lambda x: (x != 0).all(), True),
        (lambda x: torch.isnan(x).any(), False),
        (lambda x: torch.isfinite(x).all(), True),
        (lambda x: torch.isinf(x).any(), False),
        (lambda x: torch.equal(x, x + 1), False),
    ],
)
def test_comparisons_that_random_numbers_would_get_wrong(mode, x, ask, answer):
    assert bool(ask(x)) is answer
    assert not mode.drawn


def test_a_comparison_that_depends_on_data_is_drawn(mode, x):
    assert {bool(x.sum() > 0) for _ in range(50)} == {True, False}
    assert 0 <= x.sum().item() < 1
    assert x.relu().nonzero().shape[1] == 2
    assert mode.drawn


def test_masks_choose_from_unknown_floats(mode, x):
    mask = torch.arange(6) % 2 == 0
    assert x[mask].shape == (3, 4)
    assert x[mask, torch.tensor([0, 1, 1])].shape == (3,)
    assert x.masked_select(mask[:, None]).shape == (12,)
    x = x * 1
    x[mask] = 0
    assert isinstance(x, FakeTensor)


def test_every_device_is_the_cpu(mode, x):
    for made in (x + 1, x.to("meta"), torch.zeros(3, device="meta"), torch.ones(3).to("meta")):
        assert made.device.type == "cpu"


def test_integers_of_unknown_value_are_ones():
    ids = torch.empty(2, 3, dtype=torch.long, device="meta")
    with running(Fakes(), seed=0):
        assert (ids + 1).tolist() == [[2, 2, 2], [2, 2, 2]]


def test_large_tensors_take_no_memory(mode):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mask = torch.ones(200_000, 200_000, dtype=torch.bool).tril()
    bias = torch.zeros(200_000, 200_000).masked_fill(mask, float("-inf"))
    assert (bias @ torch.empty(200_000, 8)).shape == (200_000, 8)
    assert (torch.arange(200_000)[:, None] >= torch.arange(200_000)).shape == mask.shape
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_the_random_state_outside_does_not_change(x):
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    drawn = []
    for seed in (0, 0, 1):
        with running(Fakes(), seed):
            drawn.append(x.argmax(-1).tolist())
            torch.rand(7)
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.rand(5), expected)


def test_an_unknown_result_is_an_error_and_logs_nothing(mode, x, caplog):
    with pytest.raises(RuntimeError):
        x @ x
    with pytest.raises(Exception, match="unique"):
        x.unique()
    assert caplog.records == []
    assert logging.getLogger("torch._subclasses.fake_tensor").disabled


def test_shapes_only():
    with running(Fakes(), seed=0):
        made = {"ids": torch.tensor([3]), "x": torch.randn(2, 5).t()}
    found = shapes_only(made)
    assert found["ids"].tolist() == [3]
    assert (found["x"].device.type, found["x"].shape, found["x"].stride()) == (
        "meta",
        (5, 2),
        (1, 5),
    )


class Odd(nn.Module):
    """A model that changes itself while it runs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("nothing", None)
        self.one.bias.requires_grad_(False)

    def forward(self, x):
        self.seen = x
        self.two.to(torch.bfloat16)
        self.extra = nn.Linear(3, 3)
        self.table = self.table + 1
        self.register_buffer("late", x * 2)
        return self.norm(self.one(x)), self.two(x.bfloat16())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_without_weights_is_put_back_as_it_was(device):
    with torch.device(device):
        model = Odd().eval()
    before = [
        (module, {**vars(module)}, {**module._parameters}, {**module._buffers}, {**module._modules})
        for module in model.modules()
    ]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    mode = Fakes()
    with without_weights(model, mode):
        assert model.one.weight is model.two.weight
        assert isinstance(model.one.weight, nn.Parameter)
        assert isinstance(model.one.weight, FakeTensor)
        assert model.one.weight.requires_grad
        assert not model.one.bias.requires_grad
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        with running(mode, seed=0):
            model.train()
            whole, half = model(torch.zeros(5, 3))
            assert model.table.tolist() == ([1, 2, 3] if device == "cpu" else [2, 2, 2])
        assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
        assert (whole.shape, whole.requires_grad) == ((5, 3), True)
    for module, *kept in before:
        assert [vars(module), module._parameters, module._buffers, module._modules] == kept
    assert model.one.weight is model.two.weight
    assert model.state_dict().keys() == values.keys()
    if device == "cpu":
        for name, value in model.state_dict().items():
            assert torch.equal(value, values[name]), name  # batch norm has counted nothing


def test_a_model_is_put_back_after_an_error():
    model = nn.Linear(3, 3)
    weight = model.weight
    with pytest.raises(ZeroDivisionError), without_weights(model, Fakes()):
        raise ZeroDivisionError
    assert model.weight is weight
    assert "_apply" not in vars(model)
