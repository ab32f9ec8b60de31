"""A kind of problem that the package does not know goes all its ways: only this file knows it.

IA³ (arXiv 2205.05638) scales the outputs of a frozen linear layer by a vector: ``Y = (X Wᵀ)·v``.
The same result is ``X (v·W)ᵀ``; which is faster depends on the sizes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jsonschema
import pytest
import torch
from commands import Completed
from rank_clusters import ranks
from records import CPU, SAVED, make_candidate, make_record

from autolora import TimingCache, tune
from autolora.cache.lookup.crossovers import crossovers
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.candidate import Verdict
from autolora.cache.records.table import Key
from autolora.cli import main
from autolora.environment import Environment
from autolora.graphs.base import BaseGraph
from autolora.graphs.kinds import SPACES, GraphSpace, find_graph
from autolora.nn.choosing import ask
from autolora.nn.freezing.snapshot import read_message, read_snapshot, write_message
from autolora.nn.strict import miss_error
from autolora.objective import TIME
from autolora.problem import BaseProblem, Problem
from autolora.problem.base import require, require_sizes
from autolora.problem.kinds import KINDS, problem_from_json
from autolora.timing.kinds import WORKBENCHES, Workbench
from autolora.timing.screen import Prediction
from autolora.tuning.check import check_records

SCHEMA = Path(__file__).parents[1] / "cache_schema/v1.schema.json"
HERE = Environment.of("cpu")


@dataclass(frozen=True, slots=True)
class Scaled(BaseProblem):
    """``Y = (X Wᵀ)·v`` with a frozen W."""

    kind: ClassVar[str] = "scaled"

    out_features: int
    in_features: int
    tokens: int
    dtype: str
    device: str
    gradients: tuple[str, ...] = ("X", "v")

    def __post_init__(self):
        require_sizes(self)
        require("dtype", self.dtype, ("float32",))

    @property
    def layer_sizes(self):
        return frozenset({(self.in_features, self.out_features)})

    @property
    def shape_text(self):
        return f"{self.in_features} → {self.out_features} scaled"

    @property
    def section_text(self):
        return f"IA³, {self.dtype}"

    @property
    def traits(self):
        return self.dtype

    @property
    def tune_options(self):
        return "--ia3"


@dataclass(frozen=True, slots=True)
class Way(BaseGraph):
    """One of the two ways."""

    name: str

    def flops(self, problem):
        return 6 * problem.tokens * problem.in_features * problem.out_features

    def saved_bytes(self, problem):
        return 4 * problem.tokens * (problem.in_features + problem.out_features * self.is_reference)

    def saved_input_bytes(self, problem):
        return 4 * problem.tokens * problem.in_features


WAYS = {name: Way(name) for name in ("reference", "folded")}


class Tensors:
    def __init__(self, problem, device, seed):
        draw = torch.Generator().manual_seed(seed)
        m, i, o = problem.tokens, problem.in_features, problem.out_features
        self.X = torch.randn(m, i, generator=draw).requires_grad_()
        self.W = torch.randn(o, i, generator=draw)
        self.v = torch.randn(o, generator=draw).requires_grad_()
        self.problem, self.G = problem, torch.randn(m, o, generator=draw)

    def forward(self, graph):
        if graph.name == "reference":
            return (self.X @ self.W.t()) * self.v
        return self.X @ (self.v[:, None] * self.W).t()

    def step(self, graph):
        return lambda: self.forward(graph).backward(self.G)

    def floor(self):
        return lambda: (self.X @ self.W.t()).backward(self.G)

    def clear(self):
        self.X.grad = self.v.grad = None


def verdict(graph, problem, device):
    data = Tensors(problem, device, 1)
    Y = data.forward(graph).detach()
    exact = (data.X.detach().double() @ data.W.double().t()) * data.v.detach().double()
    error = float((Y.double() - exact).norm() / exact.norm())
    return Verdict(error < 1e-5, {"Y": (error, error)}, (1.0, 1.0), "" if error < 1e-5 else "wrong")


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """What a new kind adds to the three tables."""
    space = GraphSpace(
        find=lambda name, problem: WAYS.get(name),
        reference=lambda problem: WAYS["reference"],
        by_flops=lambda problem: WAYS["reference"],
        unmeasured=lambda problem, objective: (WAYS["reference"], "as PEFT runs it"),
        compile=lambda graph, problem: graph,
    )
    bench = Workbench(
        trial=Tensors,
        predict=lambda problem, *_: [Prediction(way, 1e6) for way in WAYS.values()],
        verdict=verdict,
    )
    monkeypatch.setitem(KINDS, "scaled", Scaled)
    monkeypatch.setitem(SPACES, "scaled", space)
    monkeypatch.setitem(WORKBENCHES, "scaled", bench)


@pytest.fixture
def autolora(capsys):
    def autolora(*words):
        return Completed(main(list(map(str, words))), *capsys.readouterr())

    return autolora


def problem(tokens=64, **changes):
    fields = {"out_features": 24, "in_features": 16, "dtype": "float32", "device": "cpu"}
    return Scaled(**{**fields, "tokens": tokens, **changes})


def record(tokens, folded_ns, **changes):
    """A record in which folding takes so long, and PEFT's way 2000 ns."""
    candidates = (make_candidate("folded", folded_ns), make_candidate("reference", 2000))
    winner = "folded" if folded_ns < 2000 else "reference"
    fields = {"flops_choice": "reference", "winner": winner, "candidates": candidates, **changes}
    return make_record(problem=problem(tokens), **fields)


def test_its_json_form_and_key():
    posed = problem()
    assert list(posed.to_json())[:4] == ["kind", "out_features", "in_features", "tokens"]
    assert problem_from_json(json.loads(json.dumps(posed.to_json()))) == posed
    with pytest.raises(ValueError, match=r"unknown kind of problem 'fourth'; known: .*, scaled"):
        problem_from_json({"kind": "fourth"})
    for mine in (record(64, 1000), make_record(64)):
        key = Key.of_line(mine.line)
        assert key == Key.of(mine.problem, mine.environment)
        assert key.problem == mine.problem


def test_it_stands_beside_other_records_in_a_file(path):
    mine = [record(64, 1000), record(256, 3000)]
    TimingCache([*mine, make_record(64)], path).save()
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    kept = TimingCache.load(path)
    assert sorted(r.problem.tokens for r in kept.records) == [64, 64, 256]
    assert kept.find(problem(64), CPU) == mine[0]
    assert list(kept.same_but_tokens(problem(1), CPU)) == [64, 256]
    kept.save()
    assert json.loads(path.read_text()) == document


def test_a_lookup_interpolates_and_has_crossovers(path):
    cache = TimingCache([record(64, 1000), record(256, 3000)], path)
    lookup = Lookup.of(cache)
    graph, answer = ask(lookup, problem(64), CPU, TIME)
    assert (graph, answer.reason, answer.speedup) == (WAYS["folded"], "exact", 2.0)
    assert ask(lookup, problem(100), CPU, TIME)[1].reason == "interpolated"
    assert ask(lookup, problem(64, in_features=17), CPU, TIME)[0] is None
    ranges = crossovers(cache, problem(), CPU)
    assert [each.graph for each in ranges] == ["folded", "reference"]
    error = str(miss_error(problem(64, in_features=17), CPU, TIME, lookup))
    assert "in_features (wanted 17, found 16)" in error
    assert "autolora tune MODEL --ia3 --device cpu --tokens 64" in error
    assert "kind (wanted layer, found scaled)" in str(
        miss_error(Problem(3, 4, 5, 2, "float32", "cpu"), CPU, TIME, lookup)
    )


def test_it_is_tuned_and_checked(path):
    result = tune([problem(64), problem(128)], cache=path, effort="quick")
    assert [r.problem.tokens for r in result.records] == [64, 128]
    found = TimingCache.load(path).find(problem(64), HERE)
    assert {c.graph for c in found.candidates} == set(WAYS)
    assert all(c.verdict.ok for c in found.candidates)
    assert found.winner == found.reference == "reference"  # on this clock all take equally long
    assert tune(problem(64), cache=path, effort="quick").skipped == [found]
    (estimate,) = tune(problem(64), effort="estimate").estimates
    assert (estimate.graph, estimate.how) == ("reference", "as PEFT runs it")
    times = iter(lambda: 1e6, None)
    checked = check_records(
        [found], device=torch.device("cpu"), most=1, measure=lambda run: (run(), next(times))[1]
    )
    assert [check.winner for check in checked.done] == ["reference"]


def test_every_command_shows_it(path, tmp_path, autolora):
    a, b, both = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "both.json"
    slow = make_record(64, {"reference": 2_000_000, SAVED: 1_000_000}, seconds=9.0)
    TimingCache([record(64, 1000, environment=HERE), slow], a).save()
    TimingCache([record(64, 1500, environment=HERE, effort="thorough")], b).save()
    assert autolora("cache", "validate", a, b).code == 0
    merged = autolora("cache", "merge", a, b, "-o", both)
    assert "16 → 24 scaled, 64 tokens, dX, dv, float32" in merged.out
    assert "effort thorough over normal" in merged.out
    assert len(TimingCache.load(both).records) == 2
    shown = autolora("show", "--cache", both, "--verbose")
    assert "IA³, float32" in shown.out
    assert "16 → 24 scaled" in shown.out
    assert "folded" in shown.out
    crossed = autolora("show", "--cache", both, "--crossovers")
    assert "16 → 24 scaled, gradients X v" in crossed.out
    found = autolora("show", "--cache", both, "--json").json["files"][0]["records"]
    assert [each["problem"].get("kind") for each in found] == ["scaled", None]
    different = autolora("cache", "diff", a, b)
    assert different.code == 1
    assert "1 different" in different.out
    assert autolora("cache", "prune", both, "--keep-environment", HERE.id).code == 0
    exported = autolora("cache", "export", both, "--environment", HERE.id).out
    assert [r["problem"]["kind"] for r in json.loads(exported)["records"]] == ["scaled"]


def test_it_is_frozen_and_sent_from_rank_to_rank(path):
    TimingCache([record(64, 1000)], path).save()
    snapshot = read_snapshot(frozenset({(16, 24)}), TIME, [path])
    assert [r.problem for r in snapshot.records] == [problem(64)]
    again, _ = read_message(write_message(snapshot, {"cpu": CPU}), "rank 0")
    assert again.records == snapshot.records
    assert not read_snapshot(frozenset({(24, 16)}), TIME, [path]).records

    first, second = ranks(2)
    for cluster in (first, second):
        cluster.set_device(torch.device("cpu"), CPU)
    second.send(problem(64), record(64, 1000))
    second.send(problem(128), None, "out of memory")
    arrived = first.receive()
    assert [(m.problem, m.reason) for m in arrived] == [
        (problem(64), ""),
        (problem(128), "out of memory"),
    ]


def test_a_reader_that_does_not_know_it_takes_the_other_records(path, monkeypatch, warnings):
    TimingCache([record(64, 1000), make_record(64)], path).save()
    monkeypatch.delitem(KINDS, "scaled")
    assert [r.problem.kind for r in TimingCache.load(path).records] == ["layer"]
    assert "unknown kind of problem 'scaled'; known: layer" in warnings()[0]
    assert find_graph("folded", make_record(64).problem) is None
