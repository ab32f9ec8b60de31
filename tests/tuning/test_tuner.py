"""The tuner, on a made-up clock where it decides, on the real one where it only has to run."""

import logging
import random
from dataclasses import replace

import pytest
import torch
from workbench import measure_layers_with

import autolora
from autolora import AutoloraError, Problem, TimingCache
from autolora.cache.lookup.choice import choose
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.candidate import Verdict
from autolora.environment import Environment
from autolora.graphs.space import find_graph, onednn_products, reference_graph, valid_graphs
from autolora.graphs.unmeasured import flops_graph
from autolora.nn.layer_state import choose_anew
from autolora.objective import Objective
from autolora.timing import accuracy, measurement, selection
from autolora.timing.accuracy import verdict
from autolora.timing.data import Data
from autolora.timing.device import device_for
from autolora.timing.measurement import measure_problem
from autolora.timing.race import Result
from autolora.timing.screen import Prediction, distinct, screen
from autolora.tuning import tuner
from autolora.tuning.tuner import tune_problems

CPU = torch.device("cpu")
SMALL = Problem(24, 16, 32, 4, "float32", "cpu")


def measured(problem=SMALL, **options):
    return measure_problem(problem, CPU, Environment.of(CPU), **options)


@pytest.mark.usefixtures("real_clock")
def test_a_record_holds_its_evidence():
    record = measured()
    assert record.problem == SMALL
    assert record.reference == "reference"
    assert record.flops_choice == flops_graph(SMALL).name
    names = {candidate.graph for candidate in record.candidates}
    assert {record.winner, record.reference, record.flops_choice} <= names
    assert record.floor_ns > 0
    for candidate in record.candidates:
        assert find_graph(candidate.graph, SMALL) is not None
        assert candidate.verdict.ok or candidate.graph != record.winner
        assert set(candidate.verdict.errors) == {"Y", "dX", "dA", "dB"}
    assert record.conditions["processors"] >= 1


@pytest.mark.parametrize("gradients", [(), ("A", "B"), ("X", "B")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_problem_can_be_measured(gradients, dtype):
    problem = replace(SMALL, gradients=gradients, dtype=dtype, bias=True, adapter_dtype="float32")
    record = measured(problem, effort="quick")
    assert record.effort == "quick"
    assert set(record.candidates[0].verdict.errors) == {"Y", *(f"d{g}" for g in gradients)}


def test_the_graph_that_the_clock_favours_wins(monkeypatch):
    """Every composed graph takes a made-up time, the reference and the floor theirs."""
    favoured = "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h/t=Z"

    def step(self, graph):
        return lambda: 50.0 if graph.name == favoured else 100.0 + len(graph.name)

    monkeypatch.setattr(Data, "step", step)
    monkeypatch.setattr(Data, "floor", lambda self: lambda: 30.0)
    monkeypatch.setattr(
        "autolora.timing.screen.screen",
        lambda graphs, *_: [_prediction(g) for g in graphs if "merged" in g.name],
    )
    monkeypatch.setattr(selection, "distinct", lambda _: [_prediction(find_graph(favoured, SMALL))])
    record = measured(measure=lambda run: run())
    assert record.winner == favoured
    assert record.speedup == pytest.approx(109 / 50, rel=0.01)
    assert record.overhead_removed == pytest.approx((109 - 50) / (109 - 30), rel=0.02)


def _prediction(graph, nanoseconds=0.0):
    return Prediction(graph, 1e6 + nanoseconds)


def test_a_graph_of_bad_accuracy_cannot_win_and_is_kept_with_its_figures(monkeypatch):
    def judge(graph, problem, device):
        ok = graph.name in ("reference", flops_graph(problem).name)
        return Verdict(ok, {"Y": (1.0, 1.0)}, (1.0, 1.0), "" if ok else "error of Y 1.0 > 0.1")

    measure_layers_with(monkeypatch, verdict=judge)
    record = measured()
    assert record.winner in ("reference", flops_graph(SMALL).name)
    rejected = [c for c in record.candidates if not c.verdict.ok]
    assert rejected
    assert all(c.median_ns is None for c in rejected)


def test_the_screen_predicts_the_sum_of_the_steps_and_picks_the_library():
    data = Data.random(SMALL, CPU)
    graphs = valid_graphs(SMALL).values()
    clock = iter(lambda: 100.0, None)
    predictions = screen(graphs, data, lambda run: (run(), next(clock))[1], random.Random(0))
    assert len(predictions) == len(valid_graphs(SMALL)) - 1
    times = [prediction.nanoseconds for prediction in predictions]
    assert times == sorted(times)
    for prediction in predictions:
        assert prediction.nanoseconds == 100.0 * len(prediction.graph.steps(SMALL))
        assert prediction.graph.onednn == frozenset()  # equal times are no reason to change


def test_the_screen_takes_the_faster_library(monkeypatch):
    from autolora.timing import screen as room

    def times(distinct, *_):
        return {key: 1.0 if "onednn" in key[0] else 5.0 for key in distinct}

    monkeypatch.setattr(room, "_time", times)
    data = Data.random(SMALL, CPU)
    for prediction in screen(valid_graphs(SMALL).values(), data, None, None):
        assert prediction.graph.onednn == onednn_products(prediction.graph, SMALL)


def test_the_screen_offers_one_library_everywhere_beside_the_faster_ones(monkeypatch):
    from autolora.timing import screen as room

    def times(distinct, *_):
        return {key: 1.0 if "onednn" in key[0] and rng.random() < 0.5 else 5.0 for key in distinct}

    problem, rng = SMALL, random.Random(0)
    monkeypatch.setattr(room, "_time", times)
    predictions = screen(valid_graphs(problem).values(), Data.random(problem, CPU), None, None)
    everywhere = [prediction for prediction in predictions if prediction.everywhere]
    assert everywhere
    for prediction in everywhere:
        assert prediction.graph.onednn == onednn_products(prediction.graph, problem)
    faster = [prediction for prediction in predictions if not prediction.everywhere]
    assert len(faster) == len(valid_graphs(problem)) - 1
    assert any(prediction.graph.onednn for prediction in faster)
    kept = list(distinct(predictions))
    assert any(prediction.everywhere for prediction in kept)


def test_graphs_that_differ_in_orientations_alone_are_few():
    data = Data.random(SMALL, CPU)
    predictions = screen(
        valid_graphs(SMALL).values(), data, lambda run: (run(), 1.0)[1], random.Random(0)
    )
    kept = list(distinct(predictions))
    assert 8 <= len(kept) < len(predictions)
    structures = [
        replace(prediction.graph, transposed=frozenset(), onednn=frozenset()) for prediction in kept
    ]
    assert max(structures.count(s) for s in structures) <= 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_verdicts_accept_what_is_as_accurate_as_the_reference(dtype):
    problem = replace(SMALL, dtype=dtype, adapter_dtype=dtype, compute_dtype=dtype)
    for graph in list(valid_graphs(problem).values())[::97]:
        judged = verdict(graph, problem, CPU)
        assert judged.ok, (graph.name, judged)


def test_verdicts_reject_what_loses_accuracy(monkeypatch):
    """A graph whose Y is rounded to bfloat16 on the way, beside a reference that is not."""
    problem = replace(SMALL, in_features=64, out_features=64)
    careless = flops_graph(problem)
    assert verdict(careless, problem, CPU).ok
    original = Data.forward

    def forward(self, graph):
        exact = original(self, graph)
        return exact if graph != careless else lambda: exact().bfloat16().float()

    monkeypatch.setattr(Data, "forward", forward)
    accuracy._figures.cache_clear()
    judged = verdict(careless, problem, CPU)
    accuracy._figures.cache_clear()
    assert not judged.ok
    assert judged.reason.startswith("error of Y")


def test_the_gain_of_small_adapters_in_bfloat16_is_measured():
    problem = replace(
        SMALL, tokens=128, in_features=256, out_features=256, dtype="bfloat16",
        adapter_dtype="bfloat16", compute_dtype="bfloat16", gradients=(),
    )  # fmt: skip
    reference = verdict(valid_graphs(problem)["reference"], problem, CPU)
    one_product = verdict(valid_graphs(problem)["one_product"], problem, CPU)
    assert reference.gain[0] == pytest.approx(1, abs=0.05)
    assert abs(reference.gain[1] - 1) > 0.1  # addition in bfloat16 swallows a small adapter
    assert one_product.gain[1] == pytest.approx(1, abs=0.05)


def test_records_are_published_as_they_are_made_and_not_made_again(tmp_path):
    path = tmp_path / "cache.json"
    problems = [SMALL, replace(SMALL, tokens=8), SMALL]
    seen = []

    def look(progress):
        if progress.stage == "done":
            seen.append(len(TimingCache.load(path).records))

    result = tune_problems(problems, effort="quick", cache=path, on_progress=look)
    assert seen == [1, 2]
    assert [record.problem for record in result.records] == problems[:2]
    again = tune_problems(problems, effort="quick", cache=path)
    assert (again.records, len(again.skipped)) == ([], 2)
    harder = tune_problems(problems[:1], cache=path)
    assert [record.effort for record in harder.records] == ["normal"]
    assert tune_problems(problems[:1], effort="quick", cache=path).records == []
    assert len(tune_problems(problems[:1], cache=path, force=True).records) == 1


def lean_graphs(monkeypatch):
    """A clock on which graphs that keep much are fast, and those with one product slow."""

    def step(self, graph):
        kept = graph.saved_bytes(self.problem) / reference_graph(self.problem).saved_bytes(
            self.problem
        )
        slow = [graph.forward, graph.dx].count("one_product")
        return lambda: 100.0 - 10 * kept + slow if graph.forward != "reference" else 120.0

    monkeypatch.setattr(Data, "step", step)
    monkeypatch.setattr(Data, "floor", lambda self: lambda: 30.0)
    monkeypatch.setattr(measurement, "measure_for", lambda device: lambda run: run() or 1.0)
    monkeypatch.setattr(
        "autolora.timing.screen.screen",
        lambda graphs, data, *_: sorted(
            (_prediction(g, -g.saved_bytes(data.problem)) for g in graphs if not g.transposed),
            key=lambda prediction: (prediction.nanoseconds, prediction.graph.name),
        ),
    )


@pytest.mark.parametrize(
    ("objective", "kinds"),
    [
        (Objective(), ("time",)),
        (Objective("memory"), ("memory", "time")),
        (Objective("time", 10**6), ("memory", "time")),
        (Objective("accuracy"), ("accuracy", "time")),
        ((Objective("memory"), Objective("accuracy")), ("accuracy", "memory", "time")),
    ],
)
def test_a_record_serves_the_objectives_it_was_measured_for(monkeypatch, objective, kinds):
    lean_graphs(monkeypatch)
    record = measured(objective=objective)
    assert record.objectives == kinds
    winner = record.candidate(record.winner)
    assert winner.saved_bytes == max(g.saved_bytes(SMALL) for g in valid_graphs(SMALL).values())
    if "memory" in kinds:
        leanest = min(graph.saved_bytes(SMALL) for graph in valid_graphs(SMALL).values())
        lean = record.candidate(choose(record, Objective("memory")).name)
        assert (lean.saved_bytes, lean.rounds) == (leanest, winner.rounds)
        within = choose(record, Objective("time", winner.saved_bytes - 1)).name
        assert record.candidate(within).saved_bytes < winner.saved_bytes
    for candidate in record.candidates:
        assert candidate.saved_bytes == find_graph(candidate.graph, SMALL).saved_bytes(SMALL)


def test_a_known_record_is_measured_anew_for_another_objective(monkeypatch, tmp_path):
    lean_graphs(monkeypatch)
    path = tmp_path / "cache.json"

    def tune(effort, *objectives, **options):
        result = tune_problems([SMALL], effort=effort, cache=path, objective=objectives, **options)
        (known,) = TimingCache.load(path).records
        return bool(result.records), known.effort, "".join(kind[0] for kind in known.objectives)

    time, memory, accuracy = Objective(), Objective("memory"), Objective("accuracy")
    assert tune("normal", time) == (True, "normal", "t")
    assert tune("normal", time) == (False, "normal", "t")
    assert tune("quick", memory) == (True, "normal", "mt")  # as hard as what it must replace
    assert tune("quick", time) == (False, "normal", "mt")
    assert tune("normal", memory, Objective("time", 99)) == (False, "normal", "mt")
    assert tune("normal", accuracy) == (True, "normal", "amt")  # nothing is unlearnt
    assert tune("quick", accuracy, memory, time) == (False, "normal", "amt")
    assert tune("quick", time, force=True) == (True, "normal", "amt")


def test_a_model_is_tuned_for_the_objective_of_its_layers(monkeypatch):
    lean_graphs(monkeypatch)
    net = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Linear(16, 16))
    model = autolora.add_lora(net, rank=4, target_modules=["0"], objective="memory")
    (first, *_) = autolora.tune(model, tokens=8, effort="quick").records
    assert first.objectives == ("memory", "time")
    choose_anew([model[0]._autolora], objective=None)
    assert autolora.tune(model, tokens=8, effort="quick").records == []
    monkeypatch.setenv("AUTOLORA_OBJECTIVE", "accuracy")
    (first, *_) = autolora.tune(model, tokens=8, effort="quick").records
    assert first.objectives == ("accuracy", "memory", "time")
    problem = replace(SMALL, tokens=4)
    (asked,) = autolora.tune(problem, effort="quick", objective="memory").records
    assert asked.objectives == ("memory", "time")
    (asked,) = autolora.tune(problem, effort="quick").records
    assert asked.objectives == ("accuracy", "memory", "time")
    with pytest.raises(AutoloraError, match="objective must be one of time, memory, accuracy"):
        autolora.tune(model, tokens=8, objective="speed")
    with pytest.raises(AutoloraError, match="max_saved_bytes must be"):
        autolora.tune(problem, max_saved_bytes=0)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    path = tmp_path / "cache.json"
    problems = [replace(SMALL, tokens=tokens) for tokens in (8, 16, 32)]

    def interrupt(progress):
        if progress.done == 1 and progress.stage == "race":
            raise KeyboardInterrupt

    result = tune_problems(problems, effort="quick", cache=path, on_progress=interrupt)
    assert result.interrupted
    assert [record.problem for record in result.records] == problems[:1]
    assert result.unfinished == problems[1:]
    assert [record.problem for record in TimingCache.load(path).records] == problems[:1]


def test_a_spent_budget_leaves_the_rest(tmp_path):
    problems = [replace(SMALL, tokens=tokens) for tokens in (16, 8)]
    result = tune_problems(problems, effort="quick", budget=1e-9, cache=tmp_path / "cache.json")
    assert (result.records, result.unfinished) == ([], problems)


def test_with_a_budget_what_most_hangs_on_comes_first(tmp_path, monkeypatch):
    efforts = []

    def measure(problem, *_, effort, **__):
        efforts.append((problem.tokens, effort))
        return measured(problem, effort="quick")

    monkeypatch.setattr(tuner, "measure_problem", measure)
    monkeypatch.setattr(tuner, "flops_per_ns", lambda *_: 0.01)
    small, middle, large = (replace(SMALL, tokens=tokens) for tokens in (8, 64, 512))
    tune_problems([small, large, middle], cache=tmp_path / "one.json", budget=3600)
    assert efforts == [(512, "normal"), (64, "normal"), (8, "normal")]
    efforts.clear()
    weights = {small: 1000}
    tune_problems([large, small], cache=tmp_path / "two.json", budget=3600, weights=weights)
    assert [tokens for tokens, _ in efforts] == [8, 512]


def test_an_estimate_times_nothing_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tuner, "measure_problem", lambda *_, **__: pytest.fail("measured"))
    path = tmp_path / "cache.json"
    lean = Objective("memory")
    result = tune_problems([SMALL, SMALL], effort="estimate", cache=path, objective=lean)
    (estimate,) = result.estimates
    assert find_graph(estimate.graph, SMALL).flops(SMALL) == estimate.flops
    assert estimate.saved_bytes <= estimate.reference_saved_bytes
    assert estimate.how == "chosen by FLOPs of those that keep least"
    assert not path.exists()


def test_what_was_clearly_beaten_is_not_timed_again(monkeypatch):
    """Of a known record only what may be first takes part; the rest keeps its distance."""
    lean_graphs(monkeypatch)
    timed = []

    def measure(run):
        time = run() or 1.0
        timed.append(time)
        return time

    known = measured(effort="quick", measure=measure)
    slow = next(c for c in known.candidates if c.graph not in (known.winner, known.reference))
    slow = replace(slow, median_ns=2 * known.median_ns)
    candidates = [slow if c.graph == slow.graph else c for c in known.candidates]
    known = replace(known, flops_choice=known.reference, candidates=tuple(candidates))
    asked = []
    measure_layers_with(
        monkeypatch,
        verdict=lambda graph, *_: asked.append(graph.name) or Verdict(True, {}, (1, 1)),
    )
    again = measured(measure=lambda run: 10 * (run() or 1.0), known=known)
    assert not {c.graph for c in known.candidates} & set(asked)  # verdicts are taken over
    kept = again.candidate(slow.graph)
    assert kept.rounds == slow.rounds
    scale = again.reference_ns / known.reference_ns
    assert kept.median_ns == pytest.approx(slow.median_ns * scale, rel=0.01)
    noisy = replace(known, conditions={"noisy": True})
    again = measured(measure=lambda run: 10 * (run() or 1.0), known=noisy)
    assert again.candidate(slow.graph).median_ns < 1.5 * again.median_ns


def test_too_much_noise_is_recorded_and_lowers_the_effort(tmp_path):
    rng = random.Random(0)

    def noise(run):
        run()
        return 1e6 * rng.choice((1, 2, 5)) * rng.uniform(1, 3)

    record = measured(effort="quick", measure=noise)
    assert record.conditions["noisy"] is True
    assert record.conditions["noise"] > 0.01
    assert record.effort == "estimate"
    assert record.winner == record.reference or record.speedup > 1
    path = tmp_path / "cache.json"
    TimingCache([record], path).save()
    (again,) = tune_problems([SMALL], effort="quick", cache=path).records
    assert (again.effort, again.conditions["noisy"]) == ("quick", False)
    assert tune_problems([SMALL], effort="quick", cache=path).records == []


def test_a_busy_neighbour_is_noise_even_where_the_clock_is_steady(monkeypatch):
    monkeypatch.setattr(measurement.conditions, "disturbed", lambda found, device: True)
    record = measured()
    assert (record.effort, record.conditions["noisy"]) == ("quick", True)


def test_the_times_of_a_record_are_of_the_same_rounds():
    """One that drops out before the machine slows down does not seem faster than the winner."""
    result = Result(
        winner="a",
        heats={"a": [100.0] * 3 + [200.0] * 10, "b": [110.0] * 3, "floor": []},
        confirmed={"a": [200.0] * 10, "floor": [100.0] * 10},
    )
    assert measurement._median(result, "a") == 200
    assert measurement._median(result, "b") == 220
    assert measurement._median(result, "floor") == 100
    assert measurement._median(result, "c") is None


@pytest.mark.parametrize("victim", ["a candidate", "the choice by FLOPs", "the verdict", "PEFT's"])
def test_a_graph_that_does_not_fit_the_memory_is_rejected(monkeypatch, victim):
    original, freed = Data.step, []

    def step(self, graph):
        fits = {
            "a candidate": graph.forward == "reference" or graph == flops_graph(SMALL),
            "the choice by FLOPs": graph != flops_graph(SMALL),
            "the verdict": True,
            "PEFT's": graph.forward != "reference",
        }[victim]
        return original(self, graph) if fits else full

    def judge(graph, *_):
        return full() if victim == "the verdict" and "merged" in graph.name else verdict(graph, *_)

    monkeypatch.setattr(Data, "step", step)
    monkeypatch.setattr(measurement, "released", freed.append)
    measure_layers_with(monkeypatch, verdict=judge)
    if victim == "PEFT's":
        with pytest.raises(torch.OutOfMemoryError):
            measured()
        return
    record = measured()
    rejected = [c for c in record.candidates if not c.verdict.ok]
    assert rejected
    assert freed == [CPU] * [c.verdict.reason for c in rejected].count("out of memory") != []
    assert all(c.median_ns is None for c in rejected)
    assert record.winner not in {c.graph for c in rejected}
    assert (record.flops_choice == flops_graph(SMALL).name) == (victim == "a candidate")


class Crossing:
    """A machine on which one graph wins for few tokens, and another for many."""

    few = "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h/t=Z"
    many = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"

    def __init__(self, monkeypatch):
        monkeypatch.setattr(Data, "step", lambda data, graph: lambda: self.time(data, graph))
        monkeypatch.setattr(Data, "floor", lambda data: lambda: 1.0)
        monkeypatch.setattr(measurement, "measure_for", lambda device: lambda run: 1e4 * run())
        monkeypatch.setattr(
            "autolora.timing.screen.screen",
            lambda graphs, data, *_: [
                _prediction(find_graph(name, data.problem)) for name in (self.few, self.many)
            ],
        )

    def time(self, data, graph):
        tokens = data.problem.tokens
        times = {self.few: 3 * (tokens / 100) ** 1.2, self.many: 3 * (tokens / 100) ** 0.8}
        return times.get(graph.name, 10 * (tokens / 100))


def test_between_two_counts_more_are_measured_where_the_winner_changes(monkeypatch, tmp_path):
    machine, path = Crossing(monkeypatch), tmp_path / "cache.json"
    problems = [SMALL.at(tokens) for tokens in (10, 1000)]
    tune_problems(problems, cache=path)
    assert len(TimingCache.load(path).records) == 2
    result = tune_problems(problems, cache=path, between=True)
    assert [record.problem.tokens for record in result.records] == [100]  # where they cross
    lookup = Lookup([path])
    for tokens in (11, 50, 90, 110, 500):
        answer = lookup.find(SMALL.at(tokens), Environment.of(CPU), lambda name: True)
        assert answer.graph == (machine.few if tokens < 100 else machine.many)
        assert answer.reason == "interpolated"
    assert tune_problems(problems, cache=path, between=True).records == []


def test_a_ladder_goes_on_where_it_was_left(monkeypatch, tmp_path):
    """Counts that were added before are no end of it, and one that cannot be measured is none."""
    machine, path = Crossing(monkeypatch), tmp_path / "cache.json"
    problems = [SMALL.at(tokens) for tokens in (10, 1000)]
    tune_problems([*problems, SMALL.at(100)], cache=path)
    result = tune_problems(problems, cache=path, between=True)
    assert (result.records, len(result.skipped)) == ([], 3)
    original = machine.time
    machine.time = lambda data, graph: (
        full() if data.problem.tokens == 99 else original(data, graph)
    )
    monkeypatch.setattr(Data, "step", lambda data, graph: lambda: machine.time(data, graph))
    result = tune_problems([SMALL.at(9), SMALL.at(1089)], cache=path, between=True)
    assert result.failed == [(SMALL.at(99), "out of memory")]


def full():
    raise torch.OutOfMemoryError("too large")


def test_a_record_holds_the_winners_of_its_neighbours(monkeypatch, tmp_path):
    machine, path = Crossing(monkeypatch), tmp_path / "cache.json"
    tune_problems([SMALL.at(10)], cache=path)
    only = [find_graph(machine.many, SMALL)]
    measure_layers_with(monkeypatch, predict=lambda *_: [_prediction(graph) for graph in only])
    (record,) = tune_problems([SMALL.at(1000)], cache=path).records
    assert record.candidate(machine.few).median_ns > record.median_ns


def test_out_of_memory_is_no_end(tmp_path, monkeypatch):
    def measure(problem, *_, **__):
        if problem.tokens == 8:
            raise torch.OutOfMemoryError("too large")
        return measured(problem, effort="quick")

    monkeypatch.setattr(tuner, "measure_problem", measure)
    problems = [replace(SMALL, tokens=tokens) for tokens in (8, 16)]
    result = tune_problems(problems, cache=tmp_path / "cache.json")
    assert result.failed == [(problems[0], "out of memory")]
    assert [record.problem for record in result.records] == problems[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "hard"}, "effort must be one of estimate, quick, normal, thorough, not 'hard'"),
        ({"budget": 0}, "budget must be a positive number of seconds, not 0"),
        ({"budget": float("nan")}, "budget must be a positive number"),
        ({"device": "cuda"}, "is for cpu, not for cuda"),
    ],
)
def test_bad_arguments_are_named(options, message, tmp_path):
    with pytest.raises(AutoloraError, match=message):
        tune_problems([SMALL], cache=tmp_path / "cache.json", **options)


def test_an_unwritable_cache_is_found_out_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tuner, "measure_problem", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        tune_problems([SMALL], cache=tmp_path)  # a folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(AutoloraError, match="no device cuda; this machine has 0 CUDA devices"):
        device_for(replace(SMALL, device="cuda"))


def test_a_device_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    problem = replace(SMALL, device="cuda")
    assert [device_for(problem, each).index for each in (None, "cuda", "cuda:1")] == [2, 2, 1]


def test_nothing_that_verdicts_share_is_kept_after_tuning():
    autolora.tune(SMALL, effort="quick")
    assert accuracy._oracle.cache_info().currsize == 0


def test_tuning_a_model_makes_its_layers_use_the_timings(caplog):
    model = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(24, 16)), rank=4)
    x = torch.randn(32, 24)
    with caplog.at_level(logging.WARNING, "autolora"):
        model(x)
    assert [choice.reason for choice in model[0]._autolora.choices.values()] == ["miss"]
    assert "autolora.tune(model, tokens=32)" in caplog.text
    result = autolora.tune(model, tokens=32, effort="quick")
    assert {record.problem.gradients for record in result.records} == {("A", "B"), ("X", "A", "B")}
    model(x)
    (choice,) = model[0]._autolora.choices.values()
    assert choice.reason == "exact"


def test_tuning_under_autocast_is_for_autocast():
    model = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(24, 16)), rank=4)
    x = torch.randn(32, 24)
    with torch.autocast("cpu", torch.bfloat16):
        result = autolora.tune(model, tokens=32, effort="quick")
        y = model(x)
    assert y.dtype == torch.bfloat16
    for record in result.records:
        problem = record.problem
        assert (problem.dtype, problem.adapter_dtype, problem.compute_dtype) == (
            "bfloat16",
            "float32",
            "bfloat16",
        )
    assert [choice.reason for choice in model[0]._autolora.choices.values()] == ["exact"]


@pytest.mark.parametrize("tokens", [None, 0, [], [8, -1], 1.5, "8:", "eight"])
def test_tokens_must_be_counts(tokens):
    model = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(24, 16)), rank=4)
    with pytest.raises(AutoloraError, match="tokens must be"):
        autolora.tune(model, tokens=tokens)


def test_tuning_leaves_the_random_numbers_and_the_modes_of_torch_alone():
    state = torch.get_rng_state()
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            (record,) = autolora.tune(replace(SMALL, tokens=8), effort="quick").records or [None]
            assert record is None or record.problem.gradients
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_lora_layers_is_told_so():
    with pytest.raises(AutoloraError, match="Linear has no LoRA layer that can be tuned"):
        autolora.tune(torch.nn.Linear(3, 3), tokens=8)
    hooked = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(3, 3)), rank=1)
    hooked[0].lora_A.register_forward_hook(lambda *_: None)
    with pytest.raises(AutoloraError, match="0: hooks on its parts"):
        autolora.tune(hooked, tokens=8)


def test_a_model_on_the_meta_device_is_told_what_to_do():
    model = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(24, 16)), rank=4).to("meta")
    with pytest.raises(AutoloraError, match="the model is on meta; move it to the cpu or cuda"):
        autolora.tune(model, tokens=8)
    assert model(torch.ones(8, 24, device="meta")).shape == (8, 16)


def test_a_range_of_tokens_is_tuned_where_winners_change():
    model = autolora.add_lora(torch.nn.Sequential(torch.nn.Linear(24, 16)), rank=4)
    result = autolora.tune(model, tokens="8:40", effort="quick")
    assert {record.problem.tokens for record in result.records} >= {8, 16, 32, 40}
    model(torch.randn(23, 24))
    (choice,) = model[0]._autolora.choices.values()
    assert choice.reason == "interpolated"


def test_problems_bring_their_own_tokens():
    with pytest.raises(AutoloraError, match="a problem has its own"):
        autolora.tune(SMALL, tokens=8)
    assert autolora.tune(SMALL, effort="quick").records[0].problem == SMALL


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_problem_on_cuda(dtype):
    problem = Problem(256, 512, 1024, 8, dtype, "cuda")
    device = device_for(problem)
    record = measure_problem(problem, device, Environment.of(device))
    assert record.environment.device == "cuda"
    assert find_graph(record.winner, problem) is not None
    assert record.speedup >= 1
