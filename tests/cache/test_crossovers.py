"""Which graph rules where: as Lookup answers, to the single token, and as it is shown."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import (
    CPU,
    FAST,
    H100,
    MERGED,
    OLDER,
    REFERENCE,
    REJECTED,
    SAVED,
    make_candidate,
    make_problem,
    make_record,
)

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.crossovers import Range, crossovers
from autolora.cache.lookup.lookup import Lookup
from autolora.cli import main
from autolora.cli.output.crossovers import range_table
from autolora.graphs.space import find_graph
from autolora.objective import KINDS, TIME, Objective
from autolora.report.families import families as families_of

PROBLEM = make_problem(1)


def ranges_of(*records, **options):
    return crossovers(TimingCache(records), PROBLEM, CPU, **options)


def spans(ranges):
    return [(each.first_tokens, each.last_tokens, each.graph) for each in ranges]


# ---- known answers


def test_the_winner_changes_where_the_lines_cross():
    low = make_record(10, {REFERENCE: 5000, SAVED: 1000, MERGED: 4000})
    high = make_record(100, {REFERENCE: 20000, SAVED: 16000, MERGED: 4000})
    # with x = log10(tokens / 10), SAVED takes 1000·16^x: MERGED's 4000 at x = 1/2, 31.6 tokens
    first, last = ranges_of(low, high)
    assert spans([first, last]) == [(10, 31, SAVED), (32, 100, MERGED)]
    assert (first.measured, last.measured) == ((10,), (100,))
    assert (first.first_speedup, last.last_speedup) == (5.0, 5.0)
    assert first.last_speedup == pytest.approx(2.530, abs=1e-3)  # 5·4^-x at 31 tokens


def test_neighbours_of_one_graph_are_one_range():
    (only,) = ranges_of(*(make_record(tokens) for tokens in (1, 2, 3, 50, 10**9)))
    assert only == Range(1, 10**9, SAVED, (1, 2, 3, 50, 10**9), 2.0, only.last_speedup)
    assert only.last_speedup == pytest.approx(2.0)
    assert spans(ranges_of(make_record(512))) == [(512, 512, SAVED)]
    assert ranges_of() == []
    assert (
        ranges_of(make_record(environment=OLDER), make_record(problem=make_problem(rank=9))) == []
    )


def test_where_no_graph_is_known_the_range_says_so():
    records = (
        make_record(100, {REFERENCE: 2, SAVED: 1}),
        make_record(900, {REFERENCE: 2, MERGED: 1}),
    )
    apart = ranges_of(*records, valid_at=lambda tokens: lambda name: name != REFERENCE)
    assert spans(apart) == [(100, 200, SAVED), (201, 449, None), (450, 900, MERGED)]
    assert (apart[1].first_speedup, apart[1].measured) == (None, ())
    assert spans(ranges_of(*records)) == [(100, 299, SAVED), (300, 900, MERGED)]  # 300² = 100·900


def test_ranges_honour_objective_and_validity():
    def record(tokens):
        return replace(
            make_record(tokens),
            objectives=("memory", "time"),
            candidates=tuple(
                replace(make_candidate(name, time), saved_bytes=each * tokens)
                for name, time, each in [(REFERENCE, 2000, 8), (SAVED, 1000, 8), (MERGED, 1500, 4)]
            ),
        )

    records = record(100), record(1000)
    assert spans(ranges_of(*records)) == [(100, 1000, SAVED)]
    assert spans(ranges_of(*records, objective=Objective("memory"))) == [(100, 1000, MERGED)]
    within = ranges_of(*records, objective=Objective("time", 4000))
    assert spans(within) == [(100, 500, SAVED), (501, 1000, MERGED)]
    large = ranges_of(*records, valid_at=lambda tokens: lambda name: name != SAVED or tokens > 640)
    assert spans(large) == [(100, 640, MERGED), (641, 1000, SAVED)]


# ---- as Lookup answers

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def families(draw):
    """Records of one problem whose times differ in every way, and which names are valid where."""
    counts = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4, unique=True))
    keeps = {name: draw(st.integers(0, 3)) for name in NAMES} | {REFERENCE: 3}
    records = []
    for place, tokens in enumerate(counts):
        present = [REFERENCE, *sorted(draw(st.sets(st.sampled_from(NAMES))))]
        candidates = [
            replace(
                make_candidate(
                    name,
                    # no two lines are parallel: rounding alone would choose between those
                    draw(st.integers(1, 500)) * 1009 + 31 * place + len(name) + 7 * number**2,
                    verdict=FAST if name == REFERENCE else draw(st.sampled_from(VERDICTS)),
                ),
                saved_bytes=keeps[name] * tokens,
            )
            for number, name in enumerate(present)
        ]
        able = [c.graph for c in candidates if c.verdict is None or c.verdict.ok]
        records.append(
            make_record(
                tokens,
                candidates=tuple(candidates),
                winner=draw(st.sampled_from(able)),
                objectives=draw(st.sampled_from([("time",), ("accuracy", "memory", "time")])),
            )
        )
    thresholds = st.tuples(st.integers(1, 300), st.booleans())
    valid = draw(st.dictionaries(st.sampled_from((*NAMES, REFERENCE)), thresholds, max_size=2))

    def valid_at(tokens):
        return lambda name: name not in valid or (tokens >= valid[name][0]) == valid[name][1]

    return records, valid_at


VERDICTS = (FAST, FAST, None, REJECTED)
OBJECTIVES = st.builds(Objective, st.sampled_from(KINDS), st.none() | st.integers(1, 600))


@settings(max_examples=200)
@given(families(), OBJECTIVES)
def test_each_token_count_has_the_answer_of_the_lookup(family, objective):
    records, valid_at = family
    cache = TimingCache(records)
    ranges = crossovers(cache, PROBLEM, CPU, objective, valid_at)
    lookup = Lookup.of(cache)
    counts = sorted(record.problem.tokens for record in records)
    told = [(tokens, r) for r in ranges for tokens in range(r.first_tokens, r.last_tokens + 1)]
    assert [tokens for tokens, _ in told] == list(range(counts[0], counts[-1] + 1))
    for tokens, where in told:
        answer = lookup.find(PROBLEM.at(tokens), CPU, valid_at(tokens), objective)
        assert answer.graph == where.graph
        assert tokens not in (where.first_tokens, where.last_tokens) or answer.speedup in (
            where.first_speedup,
            where.last_speedup,
        )
    assert all(one.graph != other.graph for one, other in pairwise(ranges))
    assert sorted(count for each in ranges for count in each.measured) == counts


# ---- on the command line


@pytest.fixture
def say(capsys):
    """Runs a command: its exit code, stdout and stderr."""

    def say(*words):
        code = main(words)
        return (code, *capsys.readouterr())

    return say


def fill(*records):
    TimingCache(records, search_path()[0]).save()


WHOLE = "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h"  # a graph of the problem
LOW = make_record(1000, {REFERENCE: 4000, SAVED: 1000, WHOLE: 3000})
HIGH = make_record(10_000, {REFERENCE: 9000, SAVED: 8000, WHOLE: 4000})


def test_show_crossovers_prints_ranges(say):
    fill(LOW, HIGH)
    code, out, err = say("show", "--crossovers")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"{search_path()[0]}: 1 layer shape, 2 records"
    start = lines.index("512 → 768, gradients X A B")
    (first, last) = crossovers(TimingCache([LOW, HIGH]), PROBLEM, CPU)
    assert lines[start - 1 : start + 6] == [
        "LoRA rank 8, float32",
        "512 → 768, gradients X A B",
        "measured at 1,000, 10,000; used from 500 to 20,000",
        f"1,000 to {first.last_tokens:,} tokens 4.00x to {first.last_speedup:.2f}x",
        SAVED,
        f"{last.first_tokens:,} to 10,000 tokens {last.first_speedup:.2f}x to 2.25x",
        WHOLE,
    ]
    assert max(map(len, out.splitlines()[1:])) <= 80  # the first is a path


def test_a_wide_screen_has_each_range_on_one_line():
    found = list(families_of([LOW, HIGH], TIME))
    wide = [line.plain for line in range_table(found, 120)]
    assert [line.rsplit(None, 1)[1] for line in wide[-2:]] == [SAVED, WHOLE]
    assert max(map(len, wide)) <= 120
    narrow = [line.plain.strip() for line in range_table(found, 80)]
    assert narrow[-3::2] == [SAVED, WHOLE]


def test_one_measured_count_is_used_near_it(say):
    fill(make_record(1001), make_record(problem=make_problem(64, gradients=())))
    _, out, _ = say("show", "--crossovers")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "measured at 1,001; used from 501 to 2,002" in lines
    assert f"1,001 tokens 2.00x {SAVED}" in lines
    assert "512 → 768, forward only" in lines  # where SAVED is no graph
    assert lines[lines.index("measured at 64; used from 32 to 128") + 1].endswith(
        f" 1.00x {REFERENCE}"
    )
    for tokens, reason in [(500, "miss"), (501, "nearest"), (2002, "nearest"), (2003, "miss")]:
        lookup = Lookup(search_path()[:1])
        assert lookup.find(PROBLEM.at(tokens), CPU, lambda name: True).reason == reason


def test_many_counts_fit_a_small_screen(say):
    counts = [7 * 2**n for n in range(20)]
    fill(*(replace(LOW, problem=make_problem(tokens)) for tokens in counts))
    _, out, _ = say("show", "--crossovers")
    assert max(map(len, out.splitlines()[1:])) <= 80  # the first is a path
    assert f"{counts[-1]:,}; used from 4 to {2 * counts[-1]:,}" in " ".join(out.split())


def test_machines_and_kinds_have_sections_of_their_own(say):
    cuda = make_record(problem=make_problem(device="cuda"), environment=H100)
    dora = make_record(problem=make_problem(variant="dora", gradients=("A", "B", "M")))
    fill(LOW, HIGH, cuda, dora, make_record(environment=OLDER))
    _, out, _ = say("show", "--crossovers")
    for words in ("4 layer shapes, 5 records", "NVIDIA H100", "torch 2.12.0", "DoRA rank 8"):
        assert out.count(words) == 1
    assert "gradients A B M" in out


def test_show_crossovers_for_an_objective(say):
    fill(LOW, replace(HIGH, objectives=("memory", "time")))
    _, out, _ = say("show", "--crossovers", "--objective", "memory")
    assert "Shown is what layers run for memory. 1 record not tuned for that." in out
    assert "Shown is" not in say("show", "--crossovers")[1]


def test_show_crossovers_as_json(say):
    fill(LOW, HIGH, make_record(environment=OLDER))
    code, out, _ = say("show", "--crossovers", "--json", "--max-saved-bytes", "1M")
    file = json.loads(out)["files"][0]
    assert code == 0
    assert (file["path"], file["objective"], file["max_saved_bytes"]) == (
        str(search_path()[0]),
        "time",
        2**20,
    )
    assert set(file["environments"]) == {CPU.id, OLDER.id}
    mine, _ = sorted(file["families"], key=lambda family: len(family["ranges"]), reverse=True)
    problem = PROBLEM.to_json()
    del problem["tokens"]
    assert (mine["problem"], mine["environment"]) == (problem, CPU.id)
    assert mine["measured"] == [1000, 10_000]

    def valid_at(tokens):
        return partial(_is_graph, PROBLEM.at(tokens))

    expected = crossovers(
        TimingCache([LOW, HIGH]), PROBLEM, CPU, Objective("time", 2**20), valid_at
    )
    assert [Range(**{**r, "measured": tuple(r["measured"])}) for r in mine["ranges"]] == expected


def _is_graph(problem, name):
    return find_graph(name, problem) is not None


def test_an_empty_cache_has_no_crossovers(say):
    assert "Nothing measured yet" in say("show", "--crossovers")[1]


def test_crossovers_and_evidence_are_shown_one_at_a_time(say):
    code, out, err = say("show", "--crossovers", "--verbose")
    assert (code, out) == (2, "")
    assert "not allowed with argument --crossovers" in err
