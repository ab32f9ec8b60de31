"""Results beside the cache: benchmarks, and the layers of models."""

import json
from pathlib import Path

import pytest
from records import make_problem

from autolora.errors import AutoloraError
from autolora.problem import Siblings
from autolora.report.results import read_results

MEASURED = sorted((Path(__file__).parents[2] / "tools/results").glob("*/*.json"))


@pytest.fixture
def read(tmp_path):
    def read(document):
        path = tmp_path / "results.json"
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return read_results(path)

    return read


def test_the_cases_of_a_benchmark(read):
    case = {"regime": "float32", "ms": {"peft": 2.0, "floor": 1}, "over": {"peft": 1.5}, "n": [1]}
    found = read({"command": "python x", "versions": {"torch": "2.13.0"}, "rows": [case]})
    assert found.facts == {"command": "python x", "versions": "torch 2.13.0"}
    assert found.rows == [{"regime": "float32", "over peft": 1.5}]
    assert found.times == [{"peft": 2.0, "floor": 1.0}]


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_the_tools_have_written(path):
    found = read_results(path)
    assert found.rows
    assert found.facts["command"].startswith("python tools/")
    assert all(ms > 0 for times in found.times for ms in times.values())


@pytest.mark.parametrize(
    ("results", "rows"),
    [
        ({"start_s": 0.1, "regimes": [{"a": 1}, {"a": 2}]},
         [{"start_s": 0.1}, {"of": "regimes", "a": 1}, {"of": "regimes", "a": 2}]),
        ({"run": {"x": True}}, [{"run x": True}]),
        ([[{"a": "b"}]], [{"a": "b"}]),
        ([], []),
        ("text", []),
    ],
)  # fmt: skip
def test_results_of_any_shape(read, results, rows):
    assert read({"rows": results}).rows == rows


def test_times_that_are_none_are_left_out(read):
    times = b'{"a": Infinity, "b": NaN, "c": 0, "d": -1, "e": "x", "f": 2}'
    assert read(b'{"rows": [{"ms": ' + times + b"}]}").times == [{"f": 2.0}]


def layer(name, problem, **others):
    return {"name": name, "problem": problem.to_json(), **others}


def test_a_layer_counts_with_the_problem_that_it_was_called_with_most(read):
    often, seldom, forward = make_problem(64), make_problem(8), make_problem(64, gradients=())
    found = read({
        "usage": "4 of 4",
        "layers": [
            layer("a", often, calls=9), layer("a", seldom, calls=1), layer("b", often, calls=2),
            layer("c", forward, calls=7),
        ],
    })  # fmt: skip
    assert found.layers == {often: 2}
    assert found.usage == "4 of 4"


def test_siblings_count_once_for_all_of_them(read):
    both = Siblings(64, (64, 8), 16, (2, 2), "float32", "cpu")
    found = read({"layers": [layer(name, both) for name in ("0.q", "0.k", "1.q", "1.k")]})
    assert found.layers == {both: 2}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "Expecting value"),
        (b"[]", "neither 'rows'"),
        (b'{"a": 1}', "neither 'rows'"),
        (b"[" * 100_000, "recursion"),
        (b'{"layers": [1]}', "must have a problem"),
        (b'{"layers": [{"problem": {"kind": "\\u001b[2J"}}]}', "unknown kind of problem"),
        (b'{"rows": [{"ms": {"peft": 1' + b"0" * 400 + b"}}]}", "too large"),
        (b"\xff\xfe\xfd", "decode"),
        (None, "No such file"),
    ],
)  # fmt: skip
def test_what_is_no_result(tmp_path, data, cause):
    path = tmp_path / "results.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(AutoloraError, match=cause) as raised:
        read_results(path)
    assert str(raised.value).isprintable()
    assert str(path) in str(raised.value)
