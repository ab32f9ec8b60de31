import json
from dataclasses import replace

import pytest

from autolora.problem import Problem

PLAIN = Problem(512, 768, 1024, 8, "bfloat16", "cpu")


def test_empty_dtypes_mean_what_they_follow():
    assert (PLAIN.adapter_dtype, PLAIN.compute_dtype) == ("bfloat16", "bfloat16")
    mixed = Problem(512, 768, 1024, 8, "bfloat16", "cpu", adapter_dtype="float32")
    assert mixed.compute_dtype == "float32"


def test_gradients_are_put_in_order():
    unordered = replace(PLAIN, gradients=("B", "X"))
    assert unordered == replace(PLAIN, gradients=("X", "B"))
    assert hash(unordered) == hash(replace(PLAIN, gradients=("X", "B")))


def test_json_begins_with_the_six_that_matter_most():
    sizes_first = ["in_features", "out_features", "tokens", "rank", "dtype", "device"]
    assert list(PLAIN.to_json())[:6] == sizes_first


@pytest.mark.parametrize(
    "problem", [PLAIN, replace(PLAIN, gradients=()), replace(PLAIN, bias=True, dropout=True)]
)
def test_json_gives_the_problem_back(problem):
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_features": 0}, "in_features must be a whole number of at least 1, not 0"),
        ({"tokens": True}, "tokens must be a whole number"),
        ({"rank": 8.0}, "rank must be a whole number"),
        ({"rank": "8"}, "rank must be a whole number"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, float64"),
        ({"dtype": None}, "dtype must be one of"),
        ({"adapter_dtype": "fp32"}, "adapter_dtype must be one of"),
        ({"compute_dtype": ["float32"]}, "compute_dtype must be one of"),
        ({"device": "cuda:0"}, "device must be one of cpu, cuda"),
        ({"layout": "rows"}, "layout must be one of"),
        ({"bias": 1}, "bias must be true or false"),
        ({"dropout": 0.1}, "dropout must be true or false"),
        ({"gradients": ["W"]}, "gradients must be distinct and of X, A, B"),
        ({"gradients": ["A", "A"]}, "gradients must be distinct"),
        ({"gradients": "XAB"}, "gradients must be a list"),
        ({"gradients": [1]}, "gradients must be a list"),
        ({"alpha": 16}, "unknown problem field 'alpha'"),
    ],
)
def test_json_that_is_no_problem_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Problem.from_json({**PLAIN.to_json(), **changes})


def test_a_missing_field_is_named():
    fields = PLAIN.to_json()
    del fields["rank"]
    with pytest.raises(ValueError, match="problem field 'rank' is missing"):
        Problem.from_json(fields)


def test_at_changes_tokens_alone():
    assert PLAIN.at(2048) == replace(PLAIN, tokens=2048)
    assert PLAIN.at(1024) == PLAIN


def test_str_names_each_dtype_once():
    assert str(PLAIN) == "512→768 tokens 1024 rank 8 bfloat16 cpu XAB"
    assert "bfloat16/float32 cpu forward" in str(
        replace(PLAIN, adapter_dtype="float32", compute_dtype="float32", gradients=())
    )
