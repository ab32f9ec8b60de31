"""The types of command-line arguments."""

import pytest

from autolora.cli import arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all-linear", "all-linear"),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("self_attn.q_proj", ["self_attn.q_proj"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_target_modules(text, expected):
    assert arguments.modules(text) == expected


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("90d", 2160), ("4W", 672), ("1.5d", 36), ("99999w", 16799832)]
)
def test_ages(text, hours):
    assert arguments.age(text) == hours * 3600
