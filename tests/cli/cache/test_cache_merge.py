"""``autolora cache merge``."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from cache_files import better_of, held, keep, on_gpu
from records import CPU, SAVED, make_record

from autolora.cli.output.figures import MAX_LINES


def test_merge_says_what_came_from_where(autolora):
    old, new = make_record(1), better_of(make_record(1))
    keep("a.json", old, make_record(2))
    keep("b.json", new, make_record(2), on_gpu())
    completed = autolora("merge", "a.json", "b.json", "-o", "team.json")
    assert (completed.code, completed.err) == (0, "")
    assert held("team.json") == [new, make_record(2), on_gpu()]
    assert "a.json  2 records: 1 taken, 1 worse\n" in completed.out
    assert "b.json  3 records: 2 taken, 1 the same as an earlier file's\n" in completed.out
    assert "1 conflict:\n" in completed.out
    title = "512 → 768, 1 tokens, dX, dA, dB, rank 8, float32"
    assert (
        f"  {title} ({CPU.id}): b.json over a.json, effort thorough over normal\n" in completed.out
    )
    assert completed.out.endswith("team.json: 3 records of 2 environments\n")


BASE = make_record(1)


def with_spread(spread_ns):
    winner = BASE.candidate(SAVED)
    others = tuple(c for c in BASE.candidates if c.graph != SAVED)
    return replace(BASE, candidates=(*others, replace(winner, spread_ns=spread_ns)))


@pytest.mark.parametrize(
    ("better", "words"),
    [
        (replace(BASE, effort="thorough"), "effort thorough over normal"),
        (replace(BASE, objectives=("memory", "time")), "2 objectives over 1"),
        (with_spread(12), "spread 1.2 % below 10 %"),
        (with_spread(99), "spread 9.9 % below 10 %"),
        (
            replace(BASE, measured_at="2026-01-02T00:00:00Z"),
            "newer, 2026-01-02T00:00:00Z over 2026-01-01T00:00:00Z",
        ),
        (replace(BASE, seconds=1.6), "equally good, the greater text"),
    ],
)
def test_merge_says_by_what_a_record_won(autolora, better, words):
    keep("a.json", better)
    keep("b.json", BASE)
    assert (
        f"a.json over b.json, {words}\n"
        in autolora("merge", "a.json", "b.json", "-o", "c.json").out
    )


def test_merge_in_any_order_gives_the_same_bytes(autolora):
    files = [
        keep(f"{name}.json", replace(make_record(n % 3 + 1), seconds=n / 10))
        for n, name in enumerate("abcdef")
    ]
    written = []
    for number, order in enumerate((files, files[::-1], [*files[3:], *files[:3], files[0]])):
        assert autolora("merge", *order, "-o", f"out{number}/team.json").code == 0
        written.append(Path(f"out{number}/team.json").read_bytes())
    assert len(set(written)) == 1
    assert autolora("merge", *files, "-o", "-").out.encode() == written[0]


def test_merge_joins_with_what_is_there(autolora):
    keep("team.json", make_record(1), make_record(2))
    keep("mine.json", better_of(make_record(1)))
    completed = autolora("merge", "mine.json", "team.json", "-o", "team.json")
    assert held("team.json") == [better_of(make_record(1)), make_record(2)]
    assert "team.json, as it was  2 records: 1 taken, 1 worse\n" in completed.out
    again = Path("team.json").read_bytes()
    assert autolora("merge", "team.json", "-o", "team.json").code == 0
    assert Path("team.json").read_bytes() == again


def test_merge_reads_folders_patterns_links_and_standard_input(autolora):
    Path("nodes").mkdir()
    keep("nodes/b.json", make_record(2))
    keep("nodes/a.json", make_record(1))
    Path("nodes/notes.txt").write_text("no cache", encoding="utf-8")
    Path("nodes/package.json").write_text("{}", encoding="utf-8")
    keep("node-3.json", make_record(3))
    Path("link.json").symlink_to("node-3.json")
    sent = keep("sent.json", make_record(4)).read_bytes()
    Path("sent.json").unlink()
    words = ("nodes", "node-*.json", "link.json", "-", "nodes/a.json")
    completed = autolora("merge", *words, "-o", "out.json", "--json", stdin=sent)
    assert [entry["file"] for entry in completed.json["sources"]] == [
        os.path.join("nodes", "a.json"),  # noqa: PTH118  # as it is printed
        os.path.join("nodes", "b.json"),  # noqa: PTH118
        "node-3.json",
        "standard input",
    ]
    assert [entry["file"] for entry in completed.json["left_out"]] == ["nodes/package.json"]
    assert "nodes/package.json is left out: it is corrupt" in completed.err
    assert [record.problem.tokens for record in held("out.json")] == [1, 2, 3, 4]


def test_merge_leaves_out_what_is_damaged(autolora):
    keep("good.json", make_record(1))
    part = keep("part.json", make_record(2), make_record(3))
    part.write_bytes(part.read_bytes().replace(b'"seconds":1.5', b'"seconds":-1', 1))
    Path("broken.json").write_text("{", encoding="utf-8")
    completed = autolora("merge", "good.json", "part.json", "broken.json", "-o", "out.json")
    assert completed.code == 0
    assert "in part.json, 1 entry cannot be used (seconds must not be negative)" in completed.err
    assert "broken.json is left out: it is corrupt" in completed.err
    assert "part.json  1 record: 1 taken, 1 unusable" in completed.out
    assert held("out.json") == [make_record(1), make_record(3)]


def test_merge_writes_a_file_over_a_damaged_one_and_keeps_that(autolora):
    keep("good.json", make_record(1))
    Path("out.json").write_text("{", encoding="utf-8")
    assert autolora("merge", "good.json", "-o", "out.json").code == 0
    assert held("out.json") == [make_record(1)]
    assert Path("out.json.corrupt-1").read_text(encoding="utf-8") == "{"


def test_merge_shows_the_first_conflicts_and_json_all(autolora):
    many = [make_record(tokens) for tokens in range(1, MAX_LINES + 6)]
    keep("a.json", *many)
    keep("b.json", *map(better_of, many))
    completed = autolora("merge", "a.json", "b.json", "-o", "c.json")
    assert completed.out.count("effort thorough over normal") == MAX_LINES
    assert "  and 5 more, which --json lists\n" in completed.out
    Path("c.json").unlink()
    document = autolora("merge", "a.json", "b.json", "-o", "c.json", "--json").json
    assert len(document["conflicts"]) == MAX_LINES + 5
    assert document["conflicts"][0] == {
        "problem": many[0].problem.to_json(),
        "environment": CPU.id,
        "winner": "b.json",
        "loser": "a.json",
        "decided_by": "effort",
        "reason": "effort thorough over normal",
    }
    assert (document["out"], document["records"]) == ("c.json", MAX_LINES + 5)
