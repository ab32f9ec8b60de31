"""Joining many tables: the laws of the join, and what is told of it."""

import json
from dataclasses import replace
from functools import reduce
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import CPU, H100, MERGED, REFERENCE, SAVED, make_candidate, make_record, records

from autolora.cache.files.store import TimingCache
from autolora.cache.joining import Source, join, save
from autolora.cache.records.document import parse, render
from autolora.cache.records.precedence import TEXT, Precedence
from autolora.cache.records.record import Record, better
from autolora.cache.records.table import Key, Table


def table_of(*found):
    """A table as it is read from a file: its lines unchecked."""
    table = Table()
    for record in found:
        table.add(record)
    return parse(render(table))


def sources_of(*tables):
    return [Source(name, table) for name, table in zip("abcdefgh", tables, strict=False)]


def key_of(record):
    return Key.of(record.problem, record.environment)


def with_winner(record, **changes):
    """A record whose winner has other figures."""
    candidates = [
        replace(c, **changes) if c.graph == record.winner else c for c in record.candidates
    ]
    return replace(record, candidates=tuple(candidates))


# ---- the laws


FILES = st.lists(st.lists(records(few_keys=True), max_size=3), min_size=1, max_size=4)


@given(FILES, st.randoms())
def test_in_any_order_it_is_the_join_to_the_byte(files, random):
    tables = [table_of(*found) for found in files]
    folded = reduce(Table.joined, [table_of(*found) for found in files], Table())
    expected = render(folded)
    assert render(join(sources_of(*tables)).table) == expected
    random.shuffle(tables)
    assert render(join(sources_of(*tables, *tables)).table) == expected


@given(FILES)
def test_no_record_is_worse_than_any_input(files):
    joined = {
        key_of(record): record
        for record in join(sources_of(*[table_of(*found) for found in files])).records
    }
    for record in (record for found in files for record in found):
        stays = joined[key_of(record)]
        assert better(stays, record).line == stays.line


@given(FILES)
def test_every_record_is_counted_once(files):
    tables = [table_of(*found) for found in files]
    joined = join(sources_of(*tables))
    assert [source.records for source in joined.contributions] == [
        len(table.lines) for table in tables
    ]
    assert sum(source.taken for source in joined.contributions) == len(joined.records)
    assert sum(source.worse for source in joined.contributions) == len(joined.conflicts)


# ---- precedence


@given(records())
def test_a_line_states_the_precedence_of_its_record(record):
    assert Precedence.of_line(record.line) == record.precedence


@given(records(few_keys=True), records(few_keys=True))
def test_the_greater_precedence_is_the_better_record(one, other):
    other = replace(other, problem=one.problem, environment=one.environment)
    first, second = one.precedence, other.precedence
    if first != second:
        assert better(one, other) is (one if first > second else other)
    else:
        assert first.decided_by(second) == TEXT


def test_what_a_record_says_elsewhere_is_not_taken_for_its_precedence():
    record = make_record()
    said = {"graph": record.winner, "median_ns": 1, "spread_ns": 0, "rounds": 10**6}
    forged = replace(record, conditions=said)
    assert f'{{"graph":"{record.winner}","median_ns":1,' in forged.line
    assert Precedence.of_line(forged.line) == record.precedence


BASE = make_record()
DECISIONS = [
    (replace(BASE, effort="quick"), BASE, "effort"),
    (BASE, replace(BASE, objectives=("memory", "time")), "objectives"),
    (BASE, with_winner(BASE, rounds=6), "rounds"),
    (BASE, with_winner(BASE, spread_ns=99), "steadiness"),
    (BASE, replace(BASE, measured_at="2026-01-01T00:00:01Z"), "measured_at"),
    (BASE, replace(BASE, seconds=1.6), TEXT),
]


@pytest.mark.parametrize(("worse", "best", "field"), DECISIONS, ids=[row[2] for row in DECISIONS])
def test_a_conflict_says_who_won_and_by_what(worse, best, field):
    for number, pair in enumerate(permutations((worse, best))):
        joined = join(sources_of(*map(table_of, pair)))
        (conflict,) = joined.conflicts
        assert joined.records == [best]
        assert (conflict.winner, conflict.loser) == (("b", "a"), ("a", "b"))[number]
        assert conflict.decided_by == field
        assert conflict.key == key_of(BASE)


# ---- where records come from


def test_what_each_source_contributed():
    old, new = make_record(1), replace(make_record(1), measured_at="2026-02-01T00:00:00Z")
    other, third = make_record(2), make_record(3, environment=CPU)
    gpu = make_record(problem=replace(make_record(4).problem, device="cuda"), environment=H100)
    joined = join(sources_of(table_of(old, other), table_of(new, other, gpu), table_of(new, third)))
    told = [(s.name, s.records, s.taken, s.equal, s.worse) for s in joined.contributions]
    assert told == [("a", 2, 1, 0, 1), ("b", 3, 2, 1, 0), ("c", 2, 1, 1, 0)]
    assert [(c.winner, c.loser) for c in joined.conflicts] == [("b", "a")]
    assert joined.environments == {CPU.id: CPU, H100.id: H100}


# ---- what is invalid


def lines_of(path):
    return [record.line for record in TimingCache.load(path).records]


def invalidate(table, record, old, new):
    """Changes the text of one record of a table."""
    key = key_of(record)
    assert old in table.lines[key]
    table.lines[key] = table.lines[key].replace(old, new)
    return table


def test_a_invalid_record_is_left_out_and_told():
    good, bad = make_record(1), make_record(2)
    joined = join(sources_of(invalidate(table_of(good, bad), bad, '"seconds":1.5', '"seconds":-1')))
    assert joined.records == [good]
    (source,) = joined.contributions
    assert (source.records, source.invalid_summary) == (
        1,
        "1 entry cannot be used (seconds must not be negative)",
    )


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_invalid_record_never_wins(order):
    best, next_best, last = (with_winner(BASE, rounds=rounds) for rounds in (9, 8, 7))
    tables = [
        invalidate(table_of(best), best, '"seconds":1.5', '"seconds":-1'),
        table_of(next_best),
        table_of(last),
    ]
    joined = join(sources_of(*(tables[place] for place in order)))
    assert joined.records == [next_best]
    names = dict(zip(order, "abc", strict=True))
    assert [source.name for source in joined.contributions if source.invalid] == [names[0]]
    assert [(c.winner, c.loser) for c in joined.conflicts] == [(names[1], names[2])]


def test_where_all_records_are_invalid_there_is_none():
    good, better_one = (with_winner(BASE, rounds=rounds) for rounds in (8, 9))
    tables = [
        invalidate(table_of(each), each, '"seconds":1.5', '"seconds":-1')
        for each in (good, better_one)
    ]
    joined = join(sources_of(*tables))
    assert (joined.records, joined.conflicts) == ([], [])
    assert [(source.records, len(source.invalid)) for source in joined.contributions] == [
        (0, 1)
    ] * 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_equally_good_records_the_canonical_text_decides(order):
    low, high = replace(BASE, seconds=1.5), replace(BASE, seconds=1.6)
    # as it is written the greatest of all, as autolora writes it the least
    odd = invalidate(table_of(low), low, '"seconds":1.5', '"seconds":15e-1')
    tables = [odd, table_of(low), table_of(high)]
    joined = join(sources_of(*(tables[place] for place in order)))
    assert joined.records == [high]
    alone = join(sources_of(odd, table_of(low)))
    assert [source.records for source in alone.contributions] == [1, 1]
    assert alone.conflicts == []  # the same record, written in two ways


def test_what_was_invalid_before_is_told_too():
    table = parse(json.dumps({**json.loads(render(table_of(BASE))), "records": [1]}).encode())
    (source,) = join(sources_of(table)).contributions
    assert (source.records, len(source.invalid)) == (0, 1)


# ---- many


def test_records_that_lose_are_not_checked(monkeypatch):
    checked, from_json = [], Record.from_json

    def counted(value, environments):
        checked.append(value)
        return from_json(value, environments)

    tables = [
        table_of(*(with_winner(make_record(tokens), rounds=100 + number) for tokens in (1, 2, 3)))
        for number in range(8)
    ]
    monkeypatch.setattr(Record, "from_json", counted)
    joined = join(sources_of(*tables))
    assert [record.rounds for record in joined.records] == [107] * 3
    assert len(joined.conflicts) == 3 * 7
    assert len(checked) == 3


def test_saving_joins_with_what_is_there_by_then(path):
    mine, theirs = make_record(1), make_record(2)
    joined = join(sources_of(table_of(mine)))
    TimingCache([theirs], path).save()
    assert [record.line for record in save(joined, path).records] == lines_of(path)
    assert set(lines_of(path)) == {mine.line, theirs.line}


def test_a_candidate_whose_name_is_written_in_another_way_is_found_all_the_same():
    record = make_record(times={REFERENCE: 2000, SAVED: 1000, MERGED: 900})
    odd = record.line.replace(f'"winner":"{MERGED}"', f'"winner":"{MERGED[:-1]}\\u0068"')
    assert odd != record.line
    assert Precedence.of_line(odd) is None
    worse = with_winner(record, rounds=4)
    table = table_of(record)
    table.lines[key_of(record)] = odd
    assert join(sources_of(table_of(worse), table)).records == [record]


def test_a_graph_that_was_not_timed_states_no_precedence():
    record = replace(BASE, candidates=(*BASE.candidates, make_candidate("large", None)))
    line = record.line.replace(f'"winner":"{BASE.winner}"', '"winner":"large"')
    assert Precedence.of_line(line) is None
