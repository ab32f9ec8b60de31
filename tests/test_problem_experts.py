"""The problem of a mixture's experts: its key, its words, and what it refuses."""

from dataclasses import replace

import pytest

from autolora.problem import EAGER, Experts, Problem
from autolora.problem.kinds import problem_from_json

MIXTURE = Experts(512, 768, 1024, 32, 4, 8, "bfloat16", "cpu", bias=True, adapter_dtype="float32")


def test_it_is_read_as_it_is_written():
    for problem in (MIXTURE, replace(MIXTURE, load="skewed", layout="conv1d", gradients=("A",))):
        assert problem_from_json(problem.to_json()) == problem
        assert problem.to_json()["kind"] == "experts"


def test_rows_count_a_token_for_each_of_its_experts():
    assert MIXTURE.rows == 4096
    assert MIXTURE.part == Problem(512, 768, 4096, 8, "bfloat16", "cpu", bias=True)
    assert MIXTURE.at(2).rows == 8


def test_it_has_no_compiled_mode():
    assert MIXTURE.modes == (EAGER,)
    assert MIXTURE.in_mode("compiled") == MIXTURE


def test_its_words():
    assert MIXTURE.call_text == "32 experts 512 → 768 +b, top 4, 1024 tokens, dX, dA, dB"
    assert replace(MIXTURE, load="skewed").shape_text == "32 experts 512 → 768 +b, top 4, skewed"
    assert MIXTURE.traits == "bfloat16/float32, grouped_mm"
    assert MIXTURE.section_text == (
        "LoRA on experts, rank 8, bfloat16, adapters float32, grouped_mm"
    )
    assert MIXTURE.layer_sizes == {(512, 768)}
    assert replace(MIXTURE, layout="conv1d").traits.endswith("grouped_mm, conv1d")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("experts", 0, "experts must be a whole number of at least 1"),
        ("top_k", 2.0, "top_k must be a whole number"),
        ("implementation", "magic", "one of eager, grouped_mm, batched_mm"),
        ("load", "even", "one of uniform, skewed"),
        ("layout", "nf4", "one of linear, conv1d"),
        ("bias", 1, "bias must be true or false"),
        ("gradients", ("X", "X"), "gradients must be distinct"),
        ("gradients", ("M",), "gradients must be distinct"),
    ],
)
def test_values_that_are_not_allowed(field, value, words):
    with pytest.raises(ValueError, match=words):
        replace(MIXTURE, **{field: value})
