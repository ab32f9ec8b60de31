"""Numbers as text."""

import doctest

import pytest

from autolora import units


def test_examples_in_the_code():
    assert doctest.testmod(units).failed == 0


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (999.9, "1.00 µs"),
        (12_345, "12.3 µs"),
        (999_600, "1.00 ms"),
        (123_456_789, "123 ms"),
        (1.5e9, "1.50 s"),
    ],
)
def test_durations(nanoseconds, expected):
    assert units.duration(nanoseconds) == expected
