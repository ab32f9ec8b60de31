"""What tuning cost and saves, in words."""

import pytest

from autolora.cache.records.payback import Payback, seconds


@pytest.mark.parametrize(
    ("cost", "saved", "steps", "text"),
    [
        (
            31.0,
            0.042,
            739,
            "Tuning took 31.0 s; it saves 42.0 s in 1,000 steps and has paid after 739",
        ),
        (0.5, 1e-6, 500_000, "it saves 0.001 s in 1,000 steps and has paid after 500,000"),
        (600, 2, 300, "Tuning took 600 s; it saves 2,000 s in 1,000 steps"),
        (2.0, 0.0, None, "Tuning took 2.0 s and saves nothing"),
        (2.0, -0.1, None, "saves nothing: PEFT's graphs are the fastest here"),
    ],
)
def test_payback(cost, saved, steps, text):
    payback = Payback(cost, saved)
    assert payback.steps == steps
    assert text in str(payback)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0314, "0.031 s"), (4.25, "4.2 s"), (128.4, "128 s"), (1234.5, "1,234 s")]
)
def test_seconds(value, text):
    assert seconds(value) == text
