"""Checking winners: on a made-up clock where it decides, on the real one to see that it runs."""

import random
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import OLDER, REJECTED, make_problem, make_record, records

from autolora import AutoloraError, Problem, TimingCache
from autolora.cache.records.record import better
from autolora.environment import Environment
from autolora.graphs.space import valid_graphs
from autolora.objective import Objective
from autolora.timing.data import Data
from autolora.timing.measurement import measure_problem
from autolora.tuning import check as room
from autolora.tuning.check import Check, check_records, fix_records, spread_sample

CPU = torch.device("cpu")
HERE = Environment.of(CPU)
SMALL = Problem(24, 16, 32, 4, "float32", "cpu")
REFERENCE, WON, RIVAL, *OTHERS = list(valid_graphs(SMALL))[:12]


def record_of(times=None, problem=SMALL, **changes):
    times = {REFERENCE: 2000, WON: 1000, RIVAL: 1050} if times is None else times
    return make_record(times=times, problem=problem, environment=HERE, **changes)


@pytest.fixture
def clock(monkeypatch):
    """Nanoseconds of each graph, 1500 unless set; and every run in order, timed or not."""
    clock.times, clock.runs = {}, []

    def step(self, graph):
        return lambda: clock.runs.append(graph.name) or clock.times.get(graph.name, 1500.0)

    monkeypatch.setattr(Data, "step", step)
    return clock


def checked(*records, **options):
    options = {"most": 99, "measure": lambda run: run(), **options}
    return check_records(records, device=CPU, **options)


# --- what is found -----------------------------------------------------------------------------


def test_a_winner_that_still_wins_has_no_drift(clock):
    clock.times = {WON: 100.0, RIVAL: 100.0}
    result = checked(record := record_of())
    assert result.done == [Check(record, WON)]
    assert result.drifted == []


def test_a_winner_that_has_fallen_behind_has(clock):
    clock.times = {WON: 110.0, RIVAL: 100.0}
    result = checked(record := record_of())
    (check,) = result.done
    assert (check.winner, check.noise) == (RIVAL, 0.0)
    assert check.drift == pytest.approx(0.10)
    assert result.drifted == [record]


def test_a_little_behind_is_within_the_tolerance(clock):
    clock.times = {WON: 103.0, RIVAL: 100.0}
    result = checked(record_of())
    (check,) = result.done
    assert (check.winner, check.drift) == (RIVAL, pytest.approx(0.03))
    assert result.drifted == []


def test_the_reference_may_win_however_slow_it_was(clock):
    clock.times = {WON: 130.0, RIVAL: 120.0, REFERENCE: 100.0}
    (check,) = checked(record_of({REFERENCE: 9000, WON: 1000, RIVAL: 1050})).done
    assert (check.winner, check.drift) == (REFERENCE, pytest.approx(0.30))


def test_the_noise_of_a_drift_is_known(clock):
    """Where a call takes up to four times as long as it should."""
    rng = random.Random(0)

    def measure(run):
        time = run()
        return time * rng.uniform(1, 4) if time == 200.0 else time

    clock.times = {WON: 200.0, RIVAL: 100.0}
    (check,) = checked(record_of(), measure=measure).done
    assert check.winner == RIVAL
    assert check.noise > 0.05


def test_a_winner_that_drops_out_while_others_are_compared_has_its_drift(clock):
    """Of an unstable machine, on which the confirmation lasts, one call in ten is slow."""
    rng = random.Random(0)
    clock.times = {WON: 130.0, RIVAL: 100.0, REFERENCE: 100.4}

    def measure(run):
        return run() * rng.uniform(1, 1.01) * rng.choice((1.3, *[1] * 9))

    (check,) = checked(record_of({REFERENCE: 1040, WON: 1000, RIVAL: 1050}), measure=measure).done
    assert check.winner in (RIVAL, REFERENCE)
    assert check.drift == pytest.approx(0.30, abs=0.02)


@pytest.mark.parametrize(
    ("drift", "noise", "drifted"),
    [(0.05, 0.0, False), (0.06, 0.0, True), (0.06, 0.02, False), (0.08, 0.02, True)],
)
def test_only_what_is_surely_beyond_the_tolerance_has_drifted(drift, noise, drifted):
    assert Check(record_of(), RIVAL, drift, noise).drifted == drifted


# --- who races ---------------------------------------------------------------------------------


def test_the_closest_rivals_race_that_are_accepted_and_valid(clock):
    close = {name: 1090 - number for number, name in enumerate(OTHERS[:7])}
    rejected, slow, untimed = OTHERS[7], OTHERS[8], RIVAL
    times = {
        REFERENCE: 2000,
        WON: 1000,
        rejected: 900,
        slow: 1101,
        untimed: None,
        "no/such=graph": 1001,
        **close,
    }
    checked(record_of(times, verdicts={rejected: REJECTED}))
    assert set(clock.runs) == {REFERENCE, WON, *OTHERS[1:7]}  # OTHERS[0] is the slowest of seven


def test_each_graph_runs_before_it_is_timed(clock):
    cold = []

    def measure(run):
        cold.append(len(set(clock.runs)))
        return run()

    checked(record_of(), measure=measure)
    assert set(cold) == {3}


def test_the_reference_alone_has_nobody_to_lose_to(clock):
    (check,) = checked(record_of({REFERENCE: 1000})).done
    assert (check.winner, check.drift, check.drifted) == (REFERENCE, 0.0, False)


def test_a_winner_that_is_no_valid_graph_is_unusable_and_nothing_runs(clock):
    result = checked(record := record_of({REFERENCE: 2000, "no/such=graph": 1000}))
    assert result.done == [Check(record, None)]
    assert result.drifted == [record]
    assert clock.runs == []


# --- which records -----------------------------------------------------------------------------


def test_records_of_other_environments_are_only_counted(clock):
    here = [record_of(problem=replace(SMALL, tokens=tokens)) for tokens in (8, 16, 32)]
    there = [make_record(64), make_record(64, environment=OLDER)]
    result = checked(*here, *there, most=2)
    assert (len(result.done), result.undrawn, result.elsewhere) == (2, 1, 2)
    assert {check.record.problem.tokens for check in result.done} < {8, 16, 32}
    result = checked(*there)
    assert (result.done, result.undrawn, result.elsewhere) == ([], 0, 2)


@given(
    st.lists(records(), max_size=12, unique_by=lambda r: (r.problem, r.environment)),
    st.integers(1, 15),
    st.integers(0, 3),
)
def test_a_sample_holds_what_is_wanted_each_once(drawn, most, seed):
    sample = spread_sample(drawn, most, random.Random(seed))
    keys = {(record.problem, record.environment) for record in sample}
    assert len(keys) == len(sample) == min(most, len(drawn))
    assert keys <= {(record.problem, record.environment) for record in drawn}
    assert sample == spread_sample(list(reversed(drawn)), most, random.Random(seed))


def test_a_sample_is_spread_over_the_problems():
    widths = [64, 128, 256, 512]
    many = [
        make_record(problem=make_problem(tokens, in_features=width))
        for width in widths
        for tokens in (8, 16, 32, 64, 128)
    ]
    seen = set()
    for seed in range(20):
        sample = spread_sample(many, 4, random.Random(seed))
        assert sorted(record.problem.in_features for record in sample) == widths
        seen.update(record.problem for record in sample)
    assert len(seen) > 10  # another seed draws others


# --- what cannot be measured, and ends that come early -----------------------------------------

SEVERAL = [record_of(problem=replace(SMALL, tokens=tokens)) for tokens in (8, 16, 32)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AutoloraError("needs bitsandbytes"), "needs bitsandbytes"),
        (torch.OutOfMemoryError("too large"), "out of memory"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_record_that_cannot_be_measured_does_not_stop_the_others(
    clock, monkeypatch, error, reason
):
    make = Data.random

    def random_data(problem, device, **options):
        if problem.tokens == 16:
            raise error
        return make(problem, device, **options)

    monkeypatch.setattr(Data, "random", random_data)
    result = checked(*SEVERAL)
    assert result.failed == [(SEVERAL[1], reason)]
    assert {check.record.problem.tokens for check in result.done} == {8, 32}
    assert result.drifted == []


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(Data, "step", lambda self, graph: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checked(record_of())


def test_ctrl_c_keeps_what_was_found(clock):
    def interrupt(progress):
        if progress.done == 1 and progress.stage == "race":
            raise KeyboardInterrupt

    result = checked(*SEVERAL, on_progress=interrupt)
    assert result.interrupted
    assert (len(result.done), len(result.left)) == (1, 2)
    found = [check.record for check in result.done] + result.left
    assert sorted(found, key=lambda record: record.problem.tokens) == SEVERAL


def test_a_spent_budget_leaves_the_rest(clock):
    result = checked(*SEVERAL, budget=1, clock=count().__next__)
    assert (result.done, len(result.left), result.interrupted) == ([], 3, False)


def test_progress_is_told(clock):
    seen = []
    checked(*SEVERAL, on_progress=seen.append)
    assert [(p.done, p.total, p.stage) for p in seen] == [
        (done + (stage == "done"), 3, stage) for done in range(3) for stage in ("race", "done")
    ]
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0


# --- fixing ------------------------------------------------------------------------------------


def test_a_record_is_measured_as_hard_as_before_and_replaced(path, monkeypatch):
    asked = []

    def measure(problem, device, environment, **options):
        asked.append(options)
        return record_of({REFERENCE: 2000, RIVAL: 900}, problem, effort=options["effort"])

    monkeypatch.setattr(room, "measure_problem", measure)
    first = record_of(effort="thorough", objectives=("memory", "time"))
    second = record_of(problem=replace(SMALL, tokens=8), effort="estimate")
    cache = TimingCache([first, second], path)
    cache.save()
    result = fix_records([first, second], cache, device=CPU)
    assert [options["effort"] for options in asked] == ["thorough", "quick"]
    assert asked[0]["objective"] == (Objective("memory"), Objective("time"))
    assert [record.winner for record in result.done] == [RIVAL, RIVAL]
    assert better(first, result.done[0]) == first  # a join would have kept it
    assert {record.winner for record in TimingCache.load(path).records} == {RIVAL}


def test_fixing_goes_on_past_what_fails_and_keeps_what_is_done(path, monkeypatch):
    def measure(problem, *_, **__):
        if problem.tokens == 8:
            raise AutoloraError("needs bitsandbytes")
        if problem.tokens == 32:
            raise KeyboardInterrupt
        return record_of({REFERENCE: 2000, RIVAL: 900}, problem)

    monkeypatch.setattr(room, "measure_problem", measure)
    cache = TimingCache(SEVERAL, path)
    cache.save()
    result = fix_records(SEVERAL, cache, device=CPU)
    assert result.failed == [(SEVERAL[0], "needs bitsandbytes")]
    assert (len(result.done), result.left, result.interrupted) == (1, [SEVERAL[2]], True)
    winners = {record.problem.tokens: record.winner for record in TimingCache.load(path).records}
    assert winners == {8: WON, 16: RIVAL, 32: WON}


def test_a_file_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "measure_problem", lambda *_, **__: record_of())
    result = fix_records([record_of()], TimingCache(path=tmp_path), device=CPU)  # a folder
    ((_, reason),) = result.failed
    assert reason.startswith("cannot write the timing cache")


# --- on the real clock -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": True},
        {"variant": "dora", "gradients": ("X", "A", "B", "M")},
        {"gradients": ()},
        {"dtype": "bfloat16", "adapter_dtype": "float32", "compute_dtype": "float32"},
    ],
    ids=str,
)
def test_what_was_tuned_can_be_checked_and_fixed(changes, path):
    record = measure_problem(replace(SMALL, **changes), CPU, HERE, effort="quick")
    cache = TimingCache([record], path)
    (check,) = check_records([record], device=CPU, most=1).done
    assert check.record == record
    assert (check.drift > 0) == (check.winner != record.winner)
    state = torch.get_rng_state()
    with torch.inference_mode():
        (new,) = fix_records([record], cache, device=CPU).done
        check_records([new], device=CPU, most=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (new.problem, new.effort) == (record.problem, "quick")
    assert TimingCache.load(path).records == [new]
