import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import CPU, OLDER, make_problem, make_record, records

from autolora.cache.files import disk
from autolora.cache.files.store import TimingCache
from autolora.cache.records.document import parse, render
from autolora.cache.records.record import better
from autolora.cache.records.table import Key
from autolora.errors import AutoloraError

ROOT = Path(disk.__file__).parents[3]
EXAMPLE = (ROOT / "cache_schema" / "v1.example.json").read_bytes()


def table_of(drawn):
    return TimingCache(drawn)._table


# --- what is written is read -------------------------------------------------------------------


def test_a_saved_cache_is_loaded(path, warnings):
    saved = TimingCache([make_record(tokens) for tokens in (64, 1024, 128)], path)
    assert saved.save() == path
    loaded = TimingCache.load(path)
    assert loaded.records == saved.records
    assert [record.problem.tokens for record in loaded.records] == [64, 128, 1024]
    assert loaded.find(make_problem(64), CPU) == make_record(64)
    assert loaded.find(make_problem(64), OLDER) is None
    assert loaded.find(make_problem(64, bias=True), CPU) is None
    assert warnings() == []


def test_a_missing_file_is_an_empty_cache(path, warnings):
    assert TimingCache.load(path).records == []
    assert TimingCache.load(path / "further" / "down").records == []
    assert len(warnings()) <= 1


@given(st.lists(records(), max_size=4))
def test_any_records_survive_the_file(drawn):
    table = table_of(drawn)
    data = render(table)
    again = parse(data)
    assert again.lines == table.lines
    assert again.environments.keys() == {key.environment for key in table.lines}
    assert render(again) == data
    assert render(parse(json.dumps(json.loads(data), indent=1).encode())) == data


@given(records())
def test_the_key_of_a_line_is_the_key_of_its_record(record):
    key = Key.of(record.problem, record.environment)
    assert Key.of_line(record.line) == key
    assert key.problem == record.problem


def test_the_file_is_readable_line_by_line(path):
    TimingCache([make_record(64), make_record(128), make_record(environment=OLDER)], path).save()
    lines = path.read_text().splitlines()
    assert lines[0] == '{"schema_version":1,'
    assert sum(line.startswith('{"problem":{"in_features":512,') for line in lines) == 3
    assert lines[-1] == "]}"
    assert set(json.loads(path.read_text())["environments"]) == {CPU.id, OLDER.id}


def test_an_empty_cache_is_a_file_too(path, warnings):
    TimingCache(path=path).save()
    assert json.loads(path.read_text()) == {"schema_version": 1, "environments": {}, "records": []}
    assert TimingCache.load(path).records == []
    assert warnings() == []


def test_environments_that_nothing_refers_to_are_not_written(path):
    data = json.loads(EXAMPLE)
    data["environments"][CPU.id] = CPU.to_json()
    path.write_text(json.dumps(data))
    TimingCache.load(path).save()
    assert path.read_bytes() == EXAMPLE


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_layout_of_the_same_content_is_read(path, warnings, indent, encoding):
    text = json.dumps(json.loads(EXAMPLE), indent=indent).replace("\n", "\r\n")
    path.write_bytes(text.encode(encoding))
    TimingCache.load(path).save()
    assert path.read_bytes() == EXAMPLE
    assert warnings() == []


def test_same_but_tokens_gives_the_other_counts(path):
    others = [make_record(64, environment=OLDER), make_record(64, problem=make_problem(64, rank=4))]
    TimingCache([*map(make_record, (1024, 64, 256)), *others], path).save()
    found = TimingCache.load(path).same_but_tokens(make_problem(5000), CPU)
    assert list(found) == [64, 256, 1024]
    assert found[256] == make_record(256)
    assert TimingCache().same_but_tokens(make_problem(), CPU) == {}


# --- merging is a join -------------------------------------------------------------------------

SEVERAL = st.lists(records(few_keys=True), max_size=4)


@given(SEVERAL, SEVERAL, SEVERAL)
def test_merging_is_a_join_to_the_byte(one, two, three):
    a, b, c = map(table_of, (one, two, three))
    assert render(a.joined(b)) == render(b.joined(a))
    assert render(a.joined(b).joined(c)) == render(a.joined(b.joined(c)))
    assert render(a.joined(a)) == render(a)
    assert render(a.joined(b).joined(b)) == render(a.joined(b))
    unread = [parse(render(table)) for table in (a, b)]  # lines, not records
    assert render(unread[0].joined(unread[1])) == render(a.joined(b))


@given(SEVERAL)
def test_a_merge_keeps_the_better_of_each_pair(drawn):
    best = {}
    for record in drawn:
        key = (record.problem, record.environment)
        best[key] = better(record, best.get(key, record))
    merged = TimingCache()
    for record in drawn:
        merged = merged.merge(TimingCache([record]))
    assert {(r.problem, r.environment): r.line for r in merged.records} == {
        key: record.line for key, record in best.items()
    }


@settings(max_examples=20)  # each writes ten files
@given(st.lists(SEVERAL, min_size=3, max_size=5), st.randoms())
def test_no_merged_file_holds_a_worse_record_than_any_of_its_sources(
    tmp_path_factory, drawn, chance
):
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    paths = [TimingCache(held, folder / f"{n}.json").save() for n, held in enumerate(drawn)]
    chance.shuffle(paths)
    for path in paths:
        TimingCache.load(path).save(folder / "out.json")
    merged = {(r.problem, r.environment): r for r in TimingCache.load(folder / "out.json").records}
    inputs = list(itertools.chain(*drawn))
    for record in inputs:
        kept = merged[record.problem, record.environment]
        assert better(kept, record) == kept
        assert merit(kept) >= merit(record)
    assert all(any(kept == record for record in inputs) for kept in merged.values())


def merit(record):
    """What makes one record better than another, read from its JSON by the words of the README."""
    value = json.loads(record.line)
    winner = next(c for c in value["candidates"] if c["graph"] == value["winner"])
    return (
        ["estimate", "quick", "normal", "thorough"].index(value["effort"]),
        len(value["objectives"]),
        winner["rounds"],
        -winner["spread_ns"] / winner["median_ns"],
        value["measured_at"],
        record.line,
    )


def test_any_order_of_publishing_ends_in_the_same_bytes(tmp_path):
    drawn = [make_record(64), make_record(64, seconds=9.0), make_record(64, effort="quick")]
    written = set()
    for number, order in enumerate(itertools.permutations(drawn)):
        path = tmp_path / str(number)
        for record in order:
            TimingCache(path=path).publish(record)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_merge_changes_neither_side():
    one, other = TimingCache([make_record(64)], "a.json"), TimingCache([make_record(128)])
    merged = one.merge(other)
    assert [len(cache.records) for cache in (one, other, merged)] == [1, 1, 2]
    assert merged.path == Path("a.json")


def test_saving_joins_what_others_have_written_meanwhile(path):
    mine, theirs = TimingCache.load(path), TimingCache.load(path)
    theirs.publish(make_record(64))
    mine.publish(make_record(128))
    assert [record.problem.tokens for record in mine.records] == [64, 128]
    assert TimingCache.load(path).records == mine.records
    theirs.publish(make_record(64, effort="quick"))
    assert TimingCache.load(path).find(make_problem(64), CPU).effort == "normal"


def test_a_cache_can_be_saved_elsewhere(tmp_path, path):
    cache = TimingCache([make_record()], path)
    other = tmp_path / "new" / "folder" / "x.json"
    assert cache.save(other) == other
    assert TimingCache.load(other).records == cache.records
    assert not path.exists()
    with pytest.raises(AutoloraError, match="no path"):
        TimingCache([make_record()]).save()


def test_of_two_records_for_one_key_the_better_is_kept():
    twice = [make_record(64, effort="quick"), make_record(64)]
    assert TimingCache(twice).records == TimingCache(reversed(twice)).records == [make_record(64)]


# --- replacing a record ------------------------------------------------------------------------

OLD, WORSE = make_record(64), make_record(64, effort="quick")


def test_a_record_is_replaced_by_a_worse_one_and_the_others_stay_to_the_byte(path, warnings):
    others = [make_record(1024), make_record(64, environment=OLDER)]
    cache = TimingCache([OLD, *others], path)
    cache.save()
    before = path.read_text()
    assert cache.replace(OLD, WORSE) == path
    assert better(OLD, WORSE) == OLD  # a join would have kept it
    assert path.read_text() == before.replace(OLD.line, WORSE.line)
    assert cache.find(make_problem(64), CPU) == WORSE
    assert cache.token_counts(make_problem())[CPU] == [64, 1024]
    assert warnings() == []


def test_replacing_loses_nothing_that_others_have_written_meanwhile(path):
    TimingCache([OLD, make_record(128)], path).save()
    mine, theirs = TimingCache.load(path), TimingCache.load(path)
    theirs.publish(make_record(256))
    theirs.replace(make_record(128), make_record(128, effort="quick"))
    mine.replace(OLD, WORSE)
    found = {record.problem.tokens: record for record in TimingCache.load(path).records}
    assert list(found) == [64, 128, 256]
    assert found[64] == WORSE
    assert found[128].effort == "quick"  # what they have replaced is not brought back


@pytest.mark.parametrize(
    ("meanwhile", "kept"),
    [
        (make_record(64, effort="thorough"), "thorough"),
        (make_record(64, seconds=9.0), "normal"),
        (make_record(64, effort="estimate"), "quick"),
    ],
)
def test_what_took_the_old_records_place_meanwhile_is_joined(path, meanwhile, kept):
    TimingCache([OLD], path).save()
    mine, theirs = TimingCache.load(path), TimingCache.load(path)
    theirs.replace(OLD, meanwhile)
    mine.replace(OLD, WORSE)
    assert [record.effort for record in TimingCache.load(path).records] == [kept]


def test_a_record_of_another_file_is_replaced_by_joining(path):
    cache = TimingCache(path=path)
    cache.replace(OLD, WORSE)
    assert TimingCache.load(path).records == cache.records == [WORSE]


def test_replacing_writes_a_file_of_any_layout(path):
    TimingCache([OLD, make_record(128)], path).save()
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    TimingCache.load(path).replace(OLD, WORSE)
    assert TimingCache.load(path).records == [WORSE, make_record(128)]


def test_replacing_in_a_corrupt_file_keeps_that_beside(path, warnings):
    TimingCache([OLD], path).save()
    cache = TimingCache.load(path)
    path.write_text("{")
    cache.replace(OLD, WORSE)
    assert TimingCache.load(path).records == [WORSE]
    assert path.with_name(f"{path.name}.corrupt-1").read_text() == "{"
    assert any("it is corrupt" in warning for warning in warnings())


def test_a_replacement_that_cannot_be_written_can_be_tried_again(path, monkeypatch):
    cache = TimingCache([OLD], path)
    cache.save()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "LIMIT", 0)
        with pytest.raises(AutoloraError, match="cannot write the timing cache"):
            cache.replace(OLD, WORSE)
    assert path.read_bytes() == before
    cache.replace(OLD, WORSE)
    assert TimingCache.load(path).records == [WORSE]
    with pytest.raises(AutoloraError, match="no path"):
        TimingCache([OLD]).replace(OLD, WORSE)


# --- taking records out ------------------------------------------------------------------------


def wide(record):
    return record.problem.tokens >= 128


def test_what_is_not_kept_is_taken_out_and_the_others_stay_to_the_byte(path, warnings):
    records = [make_record(64), make_record(64, environment=OLDER), make_record(128)]
    TimingCache(records, path).save()
    lines = path.read_text().splitlines()
    assert TimingCache.rewrite(path, wide) == (1, 2)
    assert TimingCache.load(path).records == [make_record(128)]
    assert set(path.read_text().splitlines()) == {
        each.rstrip(",") if "tokens" in each or CPU.id in each[:20] else each
        for each in lines
        if '"tokens":64' not in each and OLDER.id not in each[:20]
    }
    assert TimingCache.rewrite(path, wide) == (1, 0)
    assert warnings() == []


def test_taking_out_loses_nothing_that_others_write_meanwhile(path):
    TimingCache([make_record(64), make_record(128)], path).save()
    theirs = TimingCache.load(path)

    def keep(record):
        if not path.with_name("asked").exists():  # only once, or it would never end
            path.with_name("asked").touch()
            others = parse(path.read_bytes())
            others.add(make_record(256))
            others.add(make_record(32))
            path.write_bytes(render(others))  # as by a host that does not see our lock
        return wide(record)

    assert TimingCache.rewrite(path, keep) == (2, 2)
    assert [record.problem.tokens for record in TimingCache.load(path).records] == [128, 256]
    assert len(theirs.records) == 2


def test_what_is_damaged_is_set_aside_before_records_are_taken_out(path, warnings):
    TimingCache([make_record(64), make_record(128), make_record(256)], path).save()
    text = path.read_text().replace('"effort":"normal"', '"effort":"heroic"', 1)
    path.write_text(text)
    assert TimingCache.rewrite(path, lambda record: record.problem.tokens != 128) == (1, 1)
    assert TimingCache.load(path).records == [make_record(256)]
    assert path.with_name(f"{path.name}.corrupt-1").read_text() == text
    assert len(warnings()) == 1


@pytest.mark.parametrize("content", ['{"schema_version":2}', None])
def test_from_a_file_that_must_not_be_written_nothing_is_taken_out(path, content):
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(AutoloraError, match="cannot write the timing cache"):
        TimingCache.rewrite(path, wide)
    assert path.is_dir() if content is None else path.read_text() == content


def test_what_decides_may_fail_and_the_file_stays(path):
    TimingCache([make_record(64)], path).save()
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        TimingCache.rewrite(path, lambda record: 1 / 0)
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_a_file_that_is_not_there_is_not_made(path):
    assert TimingCache.rewrite(path, wide) == (0, 0)
    assert list(path.parent.iterdir()) == []
