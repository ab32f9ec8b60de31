"""The problem of layers with one X: its key, its parts, and what is none."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from records import CPU, make_record

from autolora import TimingCache
from autolora.cache.lookup.crossovers import crossovers
from autolora.cache.lookup.lookup import Lookup
from autolora.nn.choosing import ask
from autolora.objective import TIME
from autolora.problem import Problem, Siblings
from autolora.problem.kinds import problem_from_json
from autolora.tuning.tuner import tune_problems

SCHEMA = Path(__file__).parents[1] / "cache_schema/v1.schema.json"
JOINT = "together=h,dA,dX/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"
APART = "apart/base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"


def layers(**changes):
    fields = {"adapter_dtype": "float32", **changes}
    return [
        Problem(24, o, 64, r, "bfloat16", "cpu", bias=o == 16, **fields)
        for o, r in ((16, 4), (8, 2), (8, 4))
    ]


def test_its_parts_are_its_layers():
    found = Siblings.of(layers())
    assert found.parts == tuple(layers())
    assert found.at(8).parts == tuple(layer.at(8) for layer in layers())
    assert found.layer_sizes == {(24, 16), (24, 8)}
    assert list(found.sizes) == ["in_features", "tokens"]
    assert str(found) == "24 → 16+b, 8, 8 tokens 64 rank 4, 2, 4 bfloat16/float32 cpu XAB"
    assert found.title.startswith("24 → 16+b, 8, 8, 64 tokens, dX, dA, dB, rank 4, 2, 4")
    assert "rank 4, 2, 4" in found.section_text
    assert "--rank 4" in found.tune_options


def test_json_gives_it_back():
    found = Siblings.of(layers())
    value = json.loads(json.dumps(found.to_json()))
    assert list(value)[:3] == ["kind", "in_features", "out_features"]
    assert problem_from_json(value) == found
    with pytest.raises(ValueError, match="entry for each of 2 to 16 layers"):
        problem_from_json({**value, "ranks": [4, 2]})
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        problem_from_json({**value, "out_features": [16, 8, 0]})
    with pytest.raises(ValueError, match="true or false"):
        problem_from_json({**value, "biases": [1, 0, 0]})
    with pytest.raises(ValueError, match="X, A and B, or A and B"):
        problem_from_json({**value, "gradients": ["X"]})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dropout": True}, "draws its own mask"),
        ({"variant": "dora"}, "DoRA"),
        ({"adapter_bias": True}, "a bias in lora_B"),
        ({"gradients": ("X", "B")}, "a frozen lora_A or lora_B"),
        ({"gradients": ()}, "a frozen lora_A or lora_B"),
        ({"in_features": 25}, "another in_features"),
        ({"tokens": 65}, "another tokens"),
        ({"dtype": "float32"}, "another dtype"),
        ({"layout": "conv1d"}, "another layout"),
        ({"compute_dtype": "bfloat16"}, "another compute_dtype"),
        ({"gradients": ("A", "B")}, "another gradients"),
    ],
)
def test_what_differs_in_one_layer_keeps_them_apart(changes, why):
    first, second, third = layers()
    assert why in Siblings.of([first, second, replace(third, **changes)])
    assert Siblings.of([first]) == "1 layers"


def test_a_cache_file_holds_it_beside_single_layers(path):
    found = Siblings.of(layers())
    record = make_record(problem=found, times={JOINT: 1000, APART: 1500, "reference": 2000})
    TimingCache([record, make_record(64)], path).save()
    kept = TimingCache.load(path)
    assert kept.find(found, CPU) == record
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    (line,) = [each for each in document["records"] if each["problem"].get("kind") == "siblings"]
    assert line["problem"]["biases"] == [True, False, False]


def test_the_names_of_many_layers_fit_a_record():
    alone = "adapter_first/h=recomputed/D=recomputed/dX=one_product/dA=via_z/dB=via_h"
    libraries = "/t=h,Z,dA,dB/onednn=Y,h,Z,dX,dA,dB"
    names = [alone + libraries, alone] * 8
    found = Siblings.of([Problem(24, 8, 8, 2, "float32", "cpu") for _ in names])
    times = {f"together=none/{'+'.join(names)}": 1000, "reference": 2000}
    record = make_record(problem=found, times=times)
    assert len(record.winner) > 1000


def test_lookup_interpolates_and_has_crossovers(path):
    found = Siblings.of(layers())

    def record(tokens, joint):
        times = {JOINT: joint, APART: 1500, "reference": 2000}
        return make_record(problem=found.at(tokens), times=times)

    cache = TimingCache([record(64, 1000), record(256, 1900)], path)
    lookup = Lookup.of(cache)
    assert ask(lookup, found, CPU, TIME)[0].name == JOINT
    graph, answer = ask(lookup, found.at(100), CPU, TIME)
    assert (graph.name, answer.reason) == (JOINT, "interpolated")
    assert ask(lookup, found.at(256), CPU, TIME)[0].is_apart
    assert [each.graph for each in crossovers(cache, found, CPU)] == [JOINT, APART]


def test_tuning_it_measures_its_parts_first():
    problem = Siblings.of([Problem(24, o, 32, 2, "float32", "cpu") for o in (16, 8)])
    result = tune_problems([problem], effort="quick")
    assert [record.problem for record in result.records] == [*problem.parts, problem]
    record = result.records[-1]
    names = {candidate.graph for candidate in record.candidates}
    assert "reference" in names
    winners = [each.winner for each in result.records[:2]]
    apart = f"apart/{'+'.join(winners if len(set(winners)) > 1 else winners[:1])}"
    assert apart in names
    assert any(name.startswith("together=") for name in names)
    assert record.winner.partition("/")[0].partition("=")[0] in ("together", "apart", "reference")
    again = tune_problems([problem], effort="quick")
    assert (len(again.records), len(again.skipped)) == (0, 3)
