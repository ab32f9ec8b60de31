import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import (
    CPU,
    H100,
    MERGED,
    OLDER,
    REFERENCE,
    REJECTED,
    SAVED,
    XEON,
    make_candidate,
    make_problem,
    make_record,
)

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Answer, Lookup
from autolora.cache.records.candidate import Verdict
from autolora.objective import KINDS, Objective

NEWER = replace(CPU, torch="2.14.0+cpu")
ALL = frozenset({REFERENCE, SAVED, MERGED, "other"})


def every(name):
    return name in ALL


def all_but(*names):
    return lambda name: name in ALL - set(names)


@pytest.fixture
def lookup(tmp_path):
    """Makes a lookup whose layers hold the lists of records given."""

    def make(*layers):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))  # each lookup has its own files
        paths = [folder / f"{number}.json" for number in range(len(layers))]
        for path, held in zip(paths, layers, strict=True):
            TimingCache(held, path).save()
        folder.mkdir(exist_ok=True)
        return Lookup(paths)

    return make


# --- exact -------------------------------------------------------------------------------------


def test_the_same_problem_and_environment_is_exact(lookup):
    record = make_record(1024)
    answer = lookup([make_record(512), record, make_record(2048)]).find(
        make_problem(1024), CPU, every
    )
    assert answer == Answer(SAVED, "exact", record, "")


@pytest.mark.parametrize(
    ("valid", "verdicts", "graph"),
    [
        (every, {}, SAVED),
        (all_but(SAVED), {}, MERGED),
        (all_but(SAVED), {MERGED: REJECTED}, REFERENCE),
        (all_but(SAVED), {MERGED: None}, MERGED),
        (all_but(SAVED, MERGED), {REFERENCE: REJECTED}, REFERENCE),
        (all_but(SAVED, MERGED, REFERENCE), {}, None),
        (all_but(*ALL), {}, None),
    ],
)
def test_a_winner_that_is_not_valid_gives_way_to_the_next(lookup, valid, verdicts, graph):
    times = {REFERENCE: 2000, SAVED: 1000, MERGED: 1500, "untimed": None}
    candidates = tuple(
        make_candidate(name, time, **({"verdict": verdicts[name]} if name in verdicts else {}))
        for name, time in times.items()
    )
    answer = lookup([make_record(candidates=candidates, winner=SAVED)]).find(
        make_problem(), CPU, valid
    )
    assert answer.graph == graph
    assert answer.reason == ("exact" if graph else "miss")


def test_a_record_without_a_valid_graph_does_not_hide_a_later_layer(lookup):
    useless = make_record(times={REFERENCE: 3, SAVED: 1}, effort="thorough")
    found = lookup([useless], [make_record()]).find(make_problem(), CPU, all_but(SAVED, REFERENCE))
    assert (found.graph, found.reason) == (MERGED, "exact")


# --- interpolated ------------------------------------------------------------------------------


def test_between_two_counts_times_are_interpolated_in_their_logarithms(lookup):
    low = make_record(1000, {REFERENCE: 4000, SAVED: 1000, MERGED: 3000})
    high = make_record(4000, {REFERENCE: 9000, SAVED: 8000, MERGED: 4000})
    find = lookup([low, high]).find
    # at 2000, half way: SAVED takes √(1000·8000) = 2828, MERGED √(3000·4000) = 3464
    answer = find(make_problem(2000), CPU, every)
    assert (answer.graph, answer.reason) == (SAVED, "interpolated")
    assert answer.detail == "between 1000 and 4000 tokens"
    assert find(make_problem(1100), CPU, every).record == low
    answer = find(make_problem(3600), CPU, every)
    assert (answer.graph, answer.record) == (MERGED, high)
    assert find(make_problem(2000), CPU, all_but(SAVED)).graph == MERGED


def test_the_two_nearest_counts_are_taken(lookup):
    held = [make_record(tokens) for tokens in (1, 100, 1000, 10_000)]
    answer = lookup(held).find(make_problem(500), CPU, every)
    assert answer.detail == "between 100 and 1000 tokens"


def test_a_rejected_graph_is_not_interpolated(lookup):
    low = make_record(1000, verdicts={SAVED: REJECTED})
    answer = lookup([low, make_record(4000)]).find(make_problem(1500), CPU, every)
    assert (answer.graph, answer.reason) == (MERGED, "interpolated")


def test_a_graph_of_the_nearer_record_alone_keeps_its_distance_to_the_reference(lookup):
    low = make_record(1000, {REFERENCE: 2000, SAVED: 1000})
    high = make_record(4000, {REFERENCE: 8000, MERGED: 5000})
    find = lookup([low, high]).find
    assert find(make_problem(1100), CPU, every).graph == SAVED
    assert find(make_problem(3900), CPU, every).graph == MERGED
    assert find(make_problem(1100), CPU, all_but(SAVED)).graph == REFERENCE


def test_the_winner_rules_beside_its_count_whatever_the_medians_say(lookup):
    # MERGED dropped out of the first race with a median that was luck
    low = make_record(1000, {REFERENCE: 2000, SAVED: 1000, MERGED: 400}, winner=SAVED)
    high = make_record(4000, {REFERENCE: 8000, SAVED: 4000, MERGED: 4400})
    find = lookup([low, high]).find
    for tokens in (1000, 1001, 1500, 2500, 3999, 4000):
        answer = find(make_problem(tokens), CPU, every)
        assert (answer.graph, answer.speedup) == (SAVED, pytest.approx(2.0))
    assert find(make_problem(1001), CPU, all_but(SAVED)).graph == MERGED
    assert find(make_problem(1001), CPU, all_but(SAVED)).speedup == pytest.approx(5.0, rel=1e-2)


def test_what_seems_faster_than_the_winner_keeps_its_order(lookup):
    times = {REFERENCE: 1000, SAVED: 800, MERGED: 700, "other": 750}
    saved = {REFERENCE: 4, SAVED: 1, MERGED: 1, "other": 1}
    candidates = tuple(
        replace(make_candidate(name, time), saved_bytes=saved[name]) for name, time in times.items()
    )
    held = [make_record(n, candidates=candidates, winner=REFERENCE) for n in (1000, 4000)]
    find = lookup(held).find
    assert find(make_problem(2000), CPU, every).graph == REFERENCE
    for valid, graph in [(every, MERGED), (all_but(MERGED), "other"), (all_but(SAVED), MERGED)]:
        assert find(make_problem(2000), CPU, valid, Objective("memory")).graph == graph


def test_a_graph_of_one_record_does_not_overtake_the_winner_for_want_of_figures(lookup):
    low = make_record(1000, {REFERENCE: 2000, SAVED: 1000, "other": 1010})
    high = make_record(4000, {REFERENCE: 8000, SAVED: 6000, MERGED: 5900})
    find = lookup([low, high]).find
    for tokens in (1001, 1500, 1990):  # SAVED falls behind the reference, as "other" may
        assert find(make_problem(tokens), CPU, every).graph == SAVED
        assert find(make_problem(tokens), CPU, all_but(SAVED)).graph == "other"


def test_a_graph_of_the_farther_record_alone_is_left_out(lookup):
    low = make_record(1000, {REFERENCE: 2000, SAVED: 1900})
    high = make_record(4000, {REFERENCE: 8000, SAVED: 7600, MERGED: 800})
    find = lookup([low, high]).find
    assert [find(make_problem(n), CPU, every).graph for n in (1999, 2001)] == [SAVED, MERGED]


def test_without_a_common_graph_the_nearest_answers(lookup):
    low = make_record(1000, {REFERENCE: 2000, SAVED: 1000})
    high = make_record(4000, {REFERENCE: 8000, MERGED: 5000})
    answer = lookup([low, high]).find(make_problem(1100), CPU, all_but(REFERENCE))
    assert (answer.graph, answer.reason) == (SAVED, "nearest")


@given(st.sets(st.integers(1, 10**6), min_size=2, max_size=5), st.integers(1, 10**6))
def test_an_interpolation_of_equal_records_is_their_winner(counts, tokens):
    lookup = Lookup([])
    lookup.layers.append(TimingCache(map(make_record, counts)))
    answer = lookup.find(make_problem(tokens), CPU, every)
    inside = min(counts) <= tokens <= max(counts)
    near = min(max(tokens / count, count / tokens) for count in counts) <= 2
    assert answer.graph == (SAVED if inside or near else None)
    assert (answer.reason == "exact") == (tokens in counts)
    assert (answer.reason == "interpolated") == (inside and tokens not in counts)


# --- objectives --------------------------------------------------------------------------------

EXACT = Verdict(True, {"Y": (1e-4, 1e-4)}, (1.0, 1.0))
ROUGH = Verdict(True, {"Y": (1e-3, 1e-3)}, (1.0, 0.5))
BOTH = ("memory", "time")


def figures(tokens, saved, exact, lean, reference=4000, **changes):
    """A record of a fast graph, an exact one and a lean one, which keep 4, 4 and 1 bytes a row."""
    times = {REFERENCE: reference, SAVED: saved, MERGED: exact, "other": lean}
    candidates = tuple(
        replace(
            make_candidate(name, time, verdict=EXACT if name == MERGED else ROUGH),
            saved_bytes=tokens * (1 if name == "other" else 4),
        )
        for name, time in times.items()
    )
    return make_record(tokens, candidates=candidates, **{"winner": SAVED, **changes})


@pytest.mark.parametrize(
    ("tokens", "environment", "reason"),
    [
        (1024, CPU, "exact"),
        (1500, CPU, "interpolated"),
        (3000, CPU, "nearest"),
        (1024, NEWER, "other-environment"),
    ],
)
def test_every_grade_honours_the_objective(lookup, tokens, environment, reason):
    kinds = ("accuracy", "memory", "time")
    held = [figures(n, 1000, 1100, 1200, objectives=kinds) for n in (1024, 2048)]
    for objective, graph, detail in [
        (Objective(), SAVED, ""),
        (Objective("accuracy"), MERGED, ""),
        (Objective("memory"), "other", ""),
        (Objective("time", 4 * tokens), SAVED, ""),
        (Objective("time", 4 * tokens - 1), "other", ""),
        (Objective("time", tokens - 1), "other", f"none keeps at most {tokens - 1} bytes; the"),
    ]:
        answer = lookup(held).find(make_problem(tokens), environment, every, objective)
        assert (answer.reason, answer.graph) == (reason, graph)
        assert detail in answer.detail
        assert ("none keeps" in answer.detail) == bool(detail)
        assert "not tuned" not in answer.detail


def test_times_are_interpolated_for_what_fits(lookup):
    low = figures(1000, 1000, 3000, 2000, objectives=BOTH)
    high = figures(4000, 9000, 3000, 8000, objectives=BOTH, winner=MERGED)
    find = lookup([low, high]).find
    # at 2000 SAVED takes 3000, MERGED 3000, the lean one 4000; near one end it is that end's order
    for tokens, limit, graph in [
        (1100, None, SAVED),
        (3900, None, MERGED),
        (1100, 4400, SAVED),
        (1100, 4399, "other"),
        (3900, 3900, "other"),
    ]:
        answer = find(make_problem(tokens), CPU, every, Objective("time", limit))
        assert (answer.graph, answer.reason) == (graph, "interpolated")


def test_an_answer_says_what_its_record_was_not_tuned_for(lookup):
    find = lookup([figures(1024, 1000, 1100, 1200)]).find
    for objective, detail in [
        (Objective(), ""),
        (Objective("memory"), "not tuned for memory"),
        (Objective("accuracy", 10**6), "not tuned for accuracy and memory"),
        (Objective("time", 10**6), "not tuned for memory"),
    ]:
        assert find(make_problem(1024), CPU, every, objective).detail == detail
    near = find(make_problem(1000), CPU, every, Objective("memory"))
    assert near.detail == "measured at 1024 tokens; not tuned for memory"


def test_the_winner_answers_for_time_even_if_its_median_is_not_the_least(lookup):
    record = figures(1024, 1000, 999, 1200)
    assert lookup([record]).find(make_problem(1024), CPU, every).graph == SAVED
    within = Objective("time", 4 * 1024)
    assert lookup([record]).find(make_problem(1024), CPU, every, within).graph == SAVED


def test_graphs_that_are_not_valid_serve_no_objective(lookup):
    record = figures(1024, 1000, 1100, 1200, objectives=BOTH)
    find = lookup([record]).find
    valid = all_but("other", MERGED)
    for kind in KINDS:
        assert find(make_problem(1024), CPU, valid, Objective(kind)).graph == SAVED
        assert find(make_problem(1024), CPU, all_but(*ALL), Objective(kind)).graph is None


# --- nearest -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(512, "nearest"), (511, "miss"), (2048, "nearest"), (2049, "miss"), (1, "miss")],
)
def test_beyond_all_counts_the_nearest_answers_within_twice(lookup, tokens, reason):
    answer = lookup([make_record(1024)]).find(make_problem(tokens), CPU, every)
    assert answer.reason == reason
    assert answer.graph == (SAVED if reason == "nearest" else None)
    if reason == "nearest":
        assert answer.detail == "measured at 1024 tokens"


# --- other environment -------------------------------------------------------------------------


def test_other_versions_on_the_same_device_answer_last(lookup):
    answer = lookup([make_record(environment=OLDER)]).find(make_problem(), CPU, every)
    assert (answer.graph, answer.reason) == (SAVED, "other-environment")
    assert answer.detail == "same device, another torch: differs in torch 2.12.0+cpu"
    near = lookup([make_record(1500, environment=OLDER)]).find(make_problem(), CPU, every)
    assert near.detail == f"{answer.detail}, measured at 1500 tokens"


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"units": 8}, "same device and torch minor: differs in units 8"),
        ({"torch": "2.13.1"}, "same device and torch minor: differs in torch 2.13.1"),
        (
            {"capability": "AVX2", "blas": "openblas"},
            "same device and torch minor: differs in capability AVX2, blas openblas",
        ),
        ({"torch": "2.1.3+cpu"}, "same device, another torch: differs in torch 2.1.3+cpu"),
        ({"torch": "2.130.0"}, "same device, another torch: differs in torch 2.130.0"),
        ({"torch": "main"}, "same device, another torch: differs in torch main"),
        ({"device_name": "AMD EPYC 9B15"}, None),
        ({"device_name": "AMD EPYC 9B15", "torch": "2.13.1"}, None),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value or ()),
)
def test_other_environments_are_graded_and_explained(lookup, changes, detail):
    find = lookup([make_record(environment=replace(CPU, **changes))]).find
    answer = find(make_problem(), CPU, every)
    if detail is None:
        assert answer.reason == "miss"
    else:
        assert (answer.reason, answer.detail) == ("other-environment", detail)
    assert find(make_problem(), CPU, every, strict=True).reason == "miss"


def test_without_other_environments_the_rest_answers_as_ever(lookup):
    find = lookup([make_record(1000), make_record(4000), make_record(8, environment=OLDER)]).find
    for tokens, reason in [(1000, "exact"), (2000, "interpolated"), (8000, "nearest"), (8, "miss")]:
        assert find(make_problem(tokens), CPU, every, strict=True).reason == reason


@pytest.mark.parametrize(
    ("record", "problem", "environment"),
    [
        (make_record(environment=XEON), make_problem(), CPU),
        (make_record(4000, environment=OLDER), make_problem(1000), CPU),
        (make_record(), make_problem(device="cuda"), H100),
        (make_record(), make_problem(rank=16), CPU),
        (make_record(), make_problem(gradients=("A", "B")), CPU),
        (make_record(), make_problem(bias=True), CPU),
        (make_record(), make_problem(compute_dtype="bfloat16"), CPU),
    ],
    ids=["other CPU", "far count", "other device", "rank", "gradients", "bias", "compute dtype"],
)
def test_another_machine_or_problem_is_a_miss(lookup, record, problem, environment):
    answer = lookup([record]).find(problem, environment, every)
    assert answer == Answer(None, "miss", None, "not measured")


OLDEST = replace(CPU, torch="2.11.0+cpu")
THREADS = replace(CPU, units=8)
THREADS_AND_MORE = replace(CPU, units=4, capability="AVX2")
# Each is preferred to the next, whatever order they stand in, in one file.
PREFERRED = [
    make_record(environment=THREADS, measured_at="2025-01-01T00:00:00Z"),
    make_record(environment=THREADS_AND_MORE, measured_at="2025-06-01T00:00:00Z"),
    make_record(1100, environment=THREADS, measured_at="2026-01-01T00:00:00Z"),
    make_record(1500, environment=THREADS_AND_MORE, measured_at="2026-01-01T00:00:00Z"),
    make_record(environment=OLDER, measured_at="2026-01-01T00:00:00Z"),
    make_record(environment=OLDEST, measured_at="2025-01-01T00:00:00Z"),
    make_record(environment=replace(OLDER, units=8), measured_at="2026-06-01T00:00:00Z"),
    make_record(1100, environment=OLDEST, measured_at="2026-07-01T00:00:00Z"),
]


@pytest.mark.parametrize("first", range(len(PREFERRED)))
def test_of_other_environments_the_kind_counts_then_tokens_then_fields_then_age(lookup, first):
    held = PREFERRED[first:]
    for records in (held, held[::-1]):
        assert lookup(records).find(make_problem(), CPU, every).record == held[0]


def test_a_better_kind_of_other_environment_comes_before_the_order_of_layers(lookup):
    threads, older = make_record(1500, environment=THREADS), make_record(environment=OLDER)
    near = make_record(1100, environment=THREADS)
    for layers, record in [
        ([[older], [threads]], threads),
        ([[older], [threads], [near]], threads),  # of one kind, the first layer answers
        ([[older], [make_record(1024, environment=OLDEST)]], older),
    ]:
        assert lookup(*layers).find(make_problem(), CPU, every).record == record


def test_of_other_environments_one_without_a_valid_graph_is_passed_over(lookup):
    useless = make_record(times={REFERENCE: 3, SAVED: 1}, environment=THREADS)
    older = make_record(environment=OLDER)
    answer = lookup([useless, older]).find(make_problem(), CPU, all_but(SAVED, REFERENCE))
    assert (answer.graph, answer.record) == (MERGED, older)


# --- layers ------------------------------------------------------------------------------------


def test_grades_come_before_layers_and_layers_before_all_else(lookup):
    exact, near, older = make_record(1024), make_record(1500), make_record(1024, environment=OLDER)
    between = [make_record(900), make_record(1200)]
    problem = make_problem(1024)
    for layers, reason, record in [
        ([[older], [near], between, [exact]], "exact", exact),
        ([[older], [near], between], "interpolated", between[0]),
        ([[older], [near]], "nearest", near),
        ([[], [older]], "other-environment", older),
        ([[exact], [make_record(1024, effort="thorough")]], "exact", exact),
    ]:
        answer = lookup(*layers).find(problem, CPU, every)
        assert (answer.reason, answer.record) == (reason, record)


def test_the_nearest_counts_are_those_of_all_layers_together(lookup):
    first = [make_record(tokens) for tokens in (500, 4000)]
    second = [make_record(tokens, effort="thorough") for tokens in (500, 1000, 5000)]
    find = lookup(first, second).find
    for tokens, reason, detail, record in [
        (2000, "interpolated", "between 1000 and 4000 tokens", first[1]),
        (1500, "interpolated", "between 1000 and 4000 tokens", second[1]),
        (600, "interpolated", "between 500 and 1000 tokens", first[0]),
        (4500, "interpolated", "between 4000 and 5000 tokens", second[2]),
        (400, "nearest", "measured at 500 tokens", first[0]),
        (9000, "nearest", "measured at 5000 tokens", second[2]),
        (1000, "exact", "", second[1]),
    ]:
        answer = find(make_problem(tokens), CPU, every)
        assert (answer.reason, answer.detail, answer.record) == (reason, detail, record)


def test_neighbours_without_a_valid_graph_are_passed_over(lookup):
    useless = [make_record(n, {REFERENCE: 3, SAVED: 1}, effort="thorough") for n in (1000, 1100)]
    find = lookup([*useless, make_record(4000)], [make_record(500), make_record(1000)]).find
    valid = all_but(SAVED, REFERENCE)
    for tokens, detail in [(1050, "1000 and 4000"), (1100, "1000 and 4000"), (999, "500 and 1000")]:
        answer = find(make_problem(tokens), CPU, valid)
        assert (answer.graph, answer.detail) == (MERGED, f"between {detail} tokens")


def test_answers_say_how_much_faster_than_the_reference_they_are(lookup):
    find = lookup([make_record(1000), make_record(4000)]).find
    for tokens, environment in [(1000, CPU), (2000, CPU), (8000, CPU), (1000, NEWER)]:
        answer = find(make_problem(tokens), environment, every)
        assert answer.speedup == pytest.approx(2.0)
    without = find(make_problem(2000), CPU, all_but(REFERENCE))
    assert (without.reason, without.speedup) == ("interpolated", None)
    assert find(make_problem(2000), CPU, all_but(SAVED)).speedup == pytest.approx(4 / 3)
    assert find(make_problem(100), CPU, every).speedup is None


def test_layers_are_read_once_and_only_when_asked(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    broken, good = tmp_path / "broken.json", tmp_path / "good.json"
    broken.write_text("{")
    lookup = Lookup([broken, tmp_path / "missing.json", good])
    assert caplog.records == []
    TimingCache([make_record()], good).save()
    for _ in range(3):
        assert lookup.find(make_problem(), CPU, every).reason == "exact"
    assert len(caplog.records) == 1


def test_no_paths_means_the_search_path(tmp_path, monkeypatch):
    TimingCache([make_record()], tmp_path / "mine.json").save()
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "mine.json"))
    assert Lookup().find(make_problem(), CPU, every).graph == SAVED


def test_no_records_are_a_miss(lookup):
    assert Lookup([]).find(make_problem(), CPU, every).reason == "miss"
    assert lookup([]).find(make_problem(), CPU, every).reason == "miss"


def test_spoilt_neighbours_are_passed_over(tmp_path):
    path = tmp_path / "timings.json"
    TimingCache([make_record(tokens) for tokens in (512, 900, 2048)], path).save()
    invalid = make_record(900).line.replace('"effort":"normal"', '"effort":"heroic"')
    path.write_text(path.read_text().replace(make_record(900).line, invalid))
    answer = Lookup([path]).find(make_problem(1024), CPU, every)
    assert answer.detail == "between 512 and 2048 tokens"


# --- closest -----------------------------------------------------------------------------------


def test_the_closest_record_differs_in_the_fewest_fields(lookup):
    wanted = make_problem(1024, rank=16)
    near = make_record(problem=make_problem(1024, rank=8))
    far = make_record(problem=make_problem(1024, rank=4))
    elsewhere = make_record(problem=make_problem(1024, rank=8), environment=OLDER)
    cuda = make_record(problem=make_problem(1024, rank=16, device="cuda"), environment=H100)
    assert lookup([far, elsewhere], [cuda, near]).closest(wanted, CPU) == (near, ("rank",))
    assert lookup([elsewhere, cuda]).closest(wanted, CPU) == (elsewhere, ("rank", "torch"))
    record, names = lookup([cuda]).closest(wanted, CPU)
    assert record == cuda
    assert names[:2] == ("device", "device_name")
    assert len(set(names)) == len(names)
    assert lookup([]).closest(wanted, CPU) is None
