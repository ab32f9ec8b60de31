"""The ``autolora cache`` commands as their users meet them."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commands import Said
from records import CPU, H100, OLDER, REFERENCE, SAVED, XEON, make_problem, make_record

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.records.document import parse
from autolora.cli import arguments, main
from autolora.cli.cache import environments
from autolora.cli.cache import files as caches
from autolora.cli.cache.path import obstacle_to_writing
from autolora.cli.output.figures import MAX_LINES
from autolora.environment import Environment

NODE = replace(CPU, device_name="[bold]Node 7[/bold]")


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Runs ``autolora cache``, with what it is given on standard input."""
    monkeypatch.chdir(tmp_path)

    def say(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(("cache", *map(str, words)))
        return Said(code, *capsys.readouterr())

    return say


@pytest.fixture
def machine(monkeypatch):
    """A machine with the environments CPU and H100."""
    monkeypatch.setattr(environments, "local_environments", lambda: [CPU, H100])
    monkeypatch.setattr("autolora.cli.cache.path.local_environments", lambda: [CPU, H100])


def keep(path, *found):
    TimingCache(found, path).save()
    return Path(path)


def held(path):
    return TimingCache.load(path).records


def better_of(record):
    return replace(record, effort="thorough")


def on_gpu(tokens=1024):
    return make_record(problem=make_problem(tokens, device="cuda"), environment=H100)


# ---- all of them


def test_without_a_verb_they_are_listed(say, capsys):
    said = say()
    assert said.code == 2
    assert "no verb given; one of path, merge, validate, diff, prune, export" in said.err
    with pytest.raises(SystemExit):
        main(["cache", "--help"])
    shown = capsys.readouterr().out
    for verb in ("path", "merge", "validate", "diff", "prune", "export"):
        assert re.search(rf"^  {verb} +\w", shown, re.M)


FILES = {
    "good.json": None,
    "broken.json": b"{",
    "newer.json": b'{"schema_version":2,"records":"?"}',
    "other.json": b'{"name": "no cache"}',
}
BAD = [
    (("merge", "none-*.json", "-o", "out.json"), "no file matches 'none-*.json'"),
    (("merge", "none.json", "-o", "out.json"), "no such cache file: none.json"),
    (("merge", "good.json"), "required: -o/--output"),
    (("merge", "-o", "out.json"), "required: FILE"),
    (("merge", "empty", "-o", "out.json"), "the folder empty holds no *.json file"),
    (("merge", "good.json", "-o", "empty"), "empty is a folder; name a file in it"),
    (("merge", "-", "-", "-o", "out.json"), "can be read only once"),
    (("merge", "broken.json", "-o", "out.json"), "broken.json cannot be used: it is corrupt"),
    (
        ("merge", "broken.json", "newer.json", "-o", "out.json"),
        "none of these 2 files can be used: newer.json cannot be used: its schema is newer",
    ),
    (("merge", "broken.json", "-o", "broken.json"), "there is nothing else to join"),
    (("merge", "good.json", "-o", "newer.json"), "cannot write newer.json: its schema is newer"),
    (("merge", "good.json", "-o", "-", "--json"), "--json and the merged file cannot both"),
    (("validate",), "required: FILE"),
    (("validate", "none.json"), "no such cache file: none.json"),
    (("validate", "othe?.json"), "none of these files is a timing cache"),
    (("diff", "good.json"), "required: B"),
    (("diff", "good.json", "none.json"), "no such cache file: none.json"),
    (("diff", "good.json", "broken.json"), "broken.json cannot be used: it is corrupt"),
    (("diff", "-", "-"), "can be read only once"),
    (("prune", "good.json"), "nothing to remove: give"),
    (("prune", "good.json", "--older-than", "90"), "such as 12h, 90d or 4w, not '90'"),
    (("prune", "good.json", "--older-than", "0d"), "such as 12h, 90d or 4w, not '0d'"),
    (("prune", "--older-than", "90d"), "timings.v1.json cannot be used: there is no such file"),
    (("prune", "*.json", "--older-than", "90d"), "is 4 files; prune one at a time"),
    (
        ("prune", "good.json", "--older-than", "1h"),
        "no record would be left of 2 records in good",
    ),
    (("prune", "good.json", "--older-than", "1h", "-o", "x"), "-o is for standard input only"),
    (("prune", "-", "--older-than", "1h", "--json"), "--json and the pruned file cannot both"),
    (("prune", "broken.json", "--older-than", "1h"), "broken.json cannot be used"),
    (("prune", "good.json", "--keep-environment", "abc"), "at least 4, not 'abc'; there are"),
    (("prune", "good.json", "--keep-environment", "ffff"), f"of:\n  {CPU.id}  AMD EPYC 9B14, 2 th"),
    (("export", "good.json"), "required: --environment"),
    (
        ("export", "good.json", "--environment", "ffff"),
        "no environment whose id begins with 'ffff'",
    ),
    (("export", "--environment", "this"), "no cache file of the search path exists"),
    (("export", "good.json", "--environment", CPU.id, "-o", "empty"), "empty is a folder"),
    (("export", "good.json", "broken.json", "--environment", CPU.id), "broken.json cannot be used"),
    (("path", "--write", "--json"), "not allowed with"),
    (("join",), "invalid choice: 'join'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(row[0])[:60] for row in BAD])
def test_bad_input_is_one_clear_error_and_nothing_is_lost(say, words, message):
    Path("empty").mkdir()
    for name, data in FILES.items():
        if data is not None:
            Path(name).write_bytes(data)
    keep("good.json", make_record(1), make_record(2))
    Path("good.json.lock").unlink()
    before = {path: path.read_bytes() for path in Path().glob("*.json")}
    said = say(*words)
    assert said.code == 2
    assert said.out == ""
    assert said.err.count("autolora: error: ") == 1
    assert message in said.err
    assert "Traceback" not in said.err
    assert {path: path.read_bytes() for path in Path().glob("*.json")} == before


HOSTILE = "\\u001b[2J[bold red]x[/bold red]"  # as JSON and as markup


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "a.json", "b.json", "-o", "c.json"),
        ("validate", "a.json"),
        ("diff", "a.json", "b.json"),
        ("prune", "a.json", "--keep-environment", CPU.id[:6]),
        ("export", "b.json", "--environment", NODE.id, "-o", "d.json"),
        ("path",),
    ],
    ids=lambda words: words[0],
)
def test_what_a_file_says_is_shown_as_text(say, monkeypatch, machine, words):
    record = make_record(1, environment=NODE, autolora="[red]")
    winner = "\\[blink]fast[/blink]"
    named = make_record(2, {REFERENCE: 2000, winner: 1000}, environment=NODE)
    keep("a.json", record, named, make_record(3))
    keep("b.json", better_of(record), replace(named, winner=REFERENCE))
    with Path("a.json").open("rb+") as file:  # an entry that is no record, for its cause
        data = file.read().replace(b'"autolora":"[red]"', f'"autolora":"{HOSTILE}"'.encode())
        file.seek(0)
        file.write(data)
        file.truncate()
    odd = "\x1b[2Jodd.json"
    Path(odd).write_bytes(Path("a.json").read_bytes())
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join((odd, "b.json")))
    said = say(*words, *([odd] if words[0] in ("merge", "validate", "export") else []))
    assert "\x1b" not in said.out + said.err
    if words[0] in ("diff", "prune", "export"):
        assert "[bold]Node 7[/bold]" in said.out
    if words[0] in ("diff", "validate"):
        assert winner in said.out
    if words[0] in ("merge", "path", "validate"):
        assert r"\x1b[2Jodd.json" in said.out + said.err


# ---- path


def test_path_write_is_the_path_alone(say, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("here.json", "/there.json")))
    assert say("path", "--write").out == "here.json\n"


def test_path_tells_of_each_layer(say, monkeypatch, machine, tmp_path):
    names = ("mine.json", "team.json", "broken.json", "none.json")
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(names))
    keep("mine.json", make_record(1), make_record(2), make_record(1, environment=OLDER), on_gpu())
    keep("team.json", make_record(1, environment=XEON))
    Path("broken.json").write_text("{", encoding="utf-8")
    said = say("path")
    assert said.code == 0
    shown = " ".join(said.out.split())
    gpu = on_gpu().environment
    for told in (
        f"1. mine.json written; 4 records 2 of environment {CPU.id} (cpu), 1 of the same device in "
        f"others 1 of environment {gpu.id} (cuda) ",
        f"2. team.json read; 1 record 0 of environment {CPU.id} (cpu) 0 of environment {gpu.id} ",
        "3. broken.json read; 0 records damaged: it is corrupt",
        "4. none.json read; not there",
        f"5. {tmp_path / 'site' / 'timings.v1.json'} site folder; not there",
        f"{CPU.id} AMD EPYC 9B14, 2 threads, AVX512, torch 2.13.0+cpu",
        "The first can be written",
    ):
        assert told in shown


def test_path_json(say, monkeypatch, machine):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("mine.json", "none.json")))
    keep("mine.json", make_record(1), make_record(1, environment=OLDER), on_gpu())
    document = say("path", "--json").json
    assert document["path"] == "mine.json"
    assert document["reads"][:2] == ["mine.json", "none.json"]
    assert (document["writable"], document["obstacle"]) == (True, "")
    assert document["machine"] == {e.id: e.to_json() for e in (CPU, H100)}
    first, second, _ = document["layers"]
    assert [layer["role"] for layer in document["layers"]] == ["written", "read", "site folder"]
    assert (first["records"], first["exists"], second["exists"]) == (3, True, False)
    assert first["this_environment"] == {CPU.id: 1, H100.id: 1}
    assert first["same_device"] == {CPU.id: 1, H100.id: 0}


def test_path_counts_only_records_that_can_be_used(say, machine):
    path = keep(search_path()[0], make_record(1), make_record(2))
    path.write_bytes(path.read_bytes().replace(b'"seconds":1.5', b'"seconds":-1', 1))
    (layer, _) = say("path", "--json").json["layers"]
    assert layer["records"] == 1
    assert layer["damage"] == "1 entry cannot be used (seconds must not be negative)"


def test_what_stands_in_the_way_of_writing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "new.json")
    for name, obstacle in (
        ("new.json", ""),
        ("a/b/new.json", ""),
        ("file", ""),
        ("link.json", ""),
        (".", "it is a folder"),
        ("file/new.json", f"{tmp_path / 'file'} is no folder"),
    ):
        assert obstacle_to_writing(tmp_path / name) == obstacle
    if os.geteuid():  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert obstacle_to_writing(closed / "x") == f"the folder {closed} is read-only"
        (tmp_path / "file").chmod(0o400)
        assert obstacle_to_writing(tmp_path / "file") == "the file is read-only"


def test_this_machine_is_that_of_the_layers():
    assert Environment.of("cpu") in environments.local_environments()


@pytest.mark.parametrize(
    "words",
    [
        ("a.json", "b.json", "-o", "c.json"),
        ("-o", "c.json", "a.json", "b.json"),
        ("a.json", "-o", "c.json", "b.json"),
        ("-o", "c.json", "--json", "--", "a.json", "b.json"),
    ],
    ids=" ".join,
)
def test_options_stand_where_they_like(say, words):
    keep("a.json", make_record(1))
    keep("b.json", make_record(2))
    assert say("merge", *words).code == 0
    assert held("c.json") == [make_record(1), make_record(2)]
    said = say("export", "--environment", CPU.id, "a.json", "--json", "-o", "d.json", "b.json")
    assert said.json["exported"] == 2
    assert say("prune", "--older-than", "99999w", "a.json", "--dry-run").code == 0


# ---- merge


def test_merge_says_what_came_from_where(say):
    old, new = make_record(1), better_of(make_record(1))
    keep("a.json", old, make_record(2))
    keep("b.json", new, make_record(2), on_gpu())
    said = say("merge", "a.json", "b.json", "-o", "team.json")
    assert (said.code, said.err) == (0, "")
    assert held("team.json") == [new, make_record(2), on_gpu()]
    assert "a.json  2 records: 1 taken, 1 worse\n" in said.out
    assert "b.json  3 records: 2 taken, 1 the same as an earlier file's\n" in said.out
    assert "1 conflict:\n" in said.out
    title = "512 → 768, 1 tokens, dX, dA, dB, rank 8, float32"
    assert f"  {title} ({CPU.id}): b.json over a.json, effort thorough over normal\n" in said.out
    assert said.out.endswith("team.json: 3 records of 2 environments\n")


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
def test_merge_says_by_what_a_record_won(say, better, words):
    keep("a.json", better)
    keep("b.json", BASE)
    assert f"a.json over b.json, {words}\n" in say("merge", "a.json", "b.json", "-o", "c.json").out


def test_merge_in_any_order_gives_the_same_bytes(say):
    files = [
        keep(f"{name}.json", replace(make_record(n % 3 + 1), seconds=n / 10))
        for n, name in enumerate("abcdef")
    ]
    written = []
    for number, order in enumerate((files, files[::-1], [*files[3:], *files[:3], files[0]])):
        assert say("merge", *order, "-o", f"out{number}/team.json").code == 0
        written.append(Path(f"out{number}/team.json").read_bytes())
    assert len(set(written)) == 1
    assert say("merge", *files, "-o", "-").out.encode() == written[0]


def test_merge_joins_with_what_is_there(say):
    keep("team.json", make_record(1), make_record(2))
    keep("mine.json", better_of(make_record(1)))
    said = say("merge", "mine.json", "team.json", "-o", "team.json")
    assert held("team.json") == [better_of(make_record(1)), make_record(2)]
    assert "team.json, as it was  2 records: 1 taken, 1 worse\n" in said.out
    again = Path("team.json").read_bytes()
    assert say("merge", "team.json", "-o", "team.json").code == 0
    assert Path("team.json").read_bytes() == again


def test_merge_reads_folders_patterns_links_and_standard_input(say):
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
    said = say("merge", *words, "-o", "out.json", "--json", stdin=sent)
    assert [entry["file"] for entry in said.json["sources"]] == [
        os.path.join("nodes", "a.json"),  # noqa: PTH118  # as it is printed
        os.path.join("nodes", "b.json"),  # noqa: PTH118
        "node-3.json",
        "standard input",
    ]
    assert [entry["file"] for entry in said.json["left_out"]] == ["nodes/package.json"]
    assert "nodes/package.json is left out: it is corrupt" in said.err
    assert [record.problem.tokens for record in held("out.json")] == [1, 2, 3, 4]


def test_merge_leaves_out_what_is_damaged(say):
    keep("good.json", make_record(1))
    part = keep("part.json", make_record(2), make_record(3))
    part.write_bytes(part.read_bytes().replace(b'"seconds":1.5', b'"seconds":-1', 1))
    Path("broken.json").write_text("{", encoding="utf-8")
    said = say("merge", "good.json", "part.json", "broken.json", "-o", "out.json")
    assert said.code == 0
    assert "in part.json, 1 entry cannot be used (seconds must not be negative)" in said.err
    assert "broken.json is left out: it is corrupt" in said.err
    assert "part.json  1 record: 1 taken, 1 unusable" in said.out
    assert held("out.json") == [make_record(1), make_record(3)]


def test_merge_writes_a_file_over_a_damaged_one_and_keeps_that(say):
    keep("good.json", make_record(1))
    Path("out.json").write_text("{", encoding="utf-8")
    assert say("merge", "good.json", "-o", "out.json").code == 0
    assert held("out.json") == [make_record(1)]
    assert Path("out.json.corrupt-1").read_text(encoding="utf-8") == "{"


def test_merge_shows_the_first_conflicts_and_json_all(say):
    many = [make_record(tokens) for tokens in range(1, MAX_LINES + 6)]
    keep("a.json", *many)
    keep("b.json", *map(better_of, many))
    said = say("merge", "a.json", "b.json", "-o", "c.json")
    assert said.out.count("effort thorough over normal") == MAX_LINES
    assert "  and 5 more, which --json lists\n" in said.out
    Path("c.json").unlink()
    document = say("merge", "a.json", "b.json", "-o", "c.json", "--json").json
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


def test_what_is_too_large_is_refused(say, monkeypatch):
    data = keep("a.json", make_record(1)).read_bytes()
    monkeypatch.setattr(caches, "LIMIT", len(data) - 1)
    said = say("merge", "-", "-o", "out.json", stdin=data)
    assert said.code == 2
    assert "standard input cannot be used: it is larger than 0 MB" in said.err


def test_a_reader_that_has_seen_enough_is_no_error(say):
    keep("a.json", *(make_record(tokens) for tokens in range(1, 200)))
    command = [sys.executable, "-m", "autolora", "cache", "merge", "a.json", "-o", "-"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")


# ---- validate


EXAMPLE = Path(__file__).parents[2] / "cache_schema" / "v1.example.json"


def test_validate_a_good_file(say):
    said = say("validate", EXAMPLE)
    assert said.code == 0
    assert re.search(r"v1\.example\.json: \d records, valid", said.out)


def test_validate_says_what_is_wrong_and_where(say):
    keep("a.json", make_record(7), make_record(9, {REFERENCE: 10**6, "swift": 10**5}))
    said = say("validate", "a.json", EXAMPLE)
    assert said.code == 1
    title = "512 → 768, 9 tokens, dX, dA, dB, rank 8, float32"
    assert (
        f"a.json: error: {title} ({CPU.id}): winner 'swift' is no graph of this version of "
        "autolora for this problem\n" in said.out
    )
    assert "a.json: 2 records, " in said.out
    document = say("validate", "a.json", EXAMPLE, "--json").json
    first, second = document["files"]
    assert (first["file"], first["valid"], second["valid"]) == ("a.json", False, True)
    assert {
        "severity": "error",
        "cause": "winner 'swift' is no graph of this version of autolora for this problem",
        "problem": make_problem(9).to_json(),
        "environment": CPU.id,
    } in first["findings"]


def test_validate_shows_the_first_findings(say):
    many = [make_record(n, {REFERENCE: 10**6, "swift": 10**5}) for n in range(1, MAX_LINES + 6)]
    keep("a.json", *many)
    said = say("validate", "a.json")
    assert said.out.count("'swift' is no graph") == MAX_LINES
    assert re.search(r"^and [\d,]+ more, which --json lists$", said.out, re.M)


def test_validate_tells_a_broken_cache_in_a_folder_from_what_is_none(say):
    Path("nodes").mkdir()
    data = keep("nodes/a.json", make_record(1)).read_bytes()
    Path("nodes/cut.json").write_bytes(data[:-9])
    Path("nodes/package.json").write_text('{"name":"x"}', encoding="utf-8")
    said = say("validate", "nodes")
    assert said.code == 1
    assert "cut.json: error: it is no cache file" in said.out
    assert "package.json is left out: it is no timing cache" in said.err
    assert "package.json" not in said.out
    assert say("validate", "nodes/package.json").code == 1  # which was named itself


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is no cache file"),
        (b'{"schema_version":9}', "its schema is newer than this autolora"),
    ],
)
def test_validate_standard_input(say, data, words):
    said = say("validate", "-", stdin=data)
    assert said.code == 1
    assert f"standard input: error: {words}" in said.out


# ---- diff


def test_diff_of_equal_files(say):
    keep("a.json", make_record(1), make_record(2))
    pretty = json.dumps(json.loads(Path("a.json").read_bytes()), indent=1).encode()
    said = say("diff", "a.json", "-", stdin=pretty)
    assert said.code == 0
    assert said.out == "Records: 0 only in a.json, 0 only in -, 0 different, 2 equal\n"


def test_diff_says_what_differs_by_environment(say):
    slower = {REFERENCE: 2000, SAVED: 1900}
    new = replace(make_record(1, slower), effort="thorough", measured_at="2026-02-01T00:00:00Z")
    other = make_record(2, environment=XEON)
    keep("a.json", make_record(1), make_record(3), make_record(5))
    keep("b.json", new, other, replace(make_record(5), seconds=2.5))
    said = say("diff", "a.json", "b.json")
    assert said.code == 1
    assert "AMD EPYC 9B14, 2 threads\n" in said.out
    assert "Intel Xeon, 8 threads\n" in said.out
    title = "512 → 768, {} tokens, dX, dA, dB, rank 8, float32"
    shown = said.out
    assert f"  1 record only in a.json:\n    {title.format(3)}\n" in shown
    assert f"  1 record only in b.json:\n    {title.format(2)}\n" in shown
    assert (
        f"    {title.format(1)}: 1.00 µs → 1.90 µs (0.53x as fast); effort normal → thorough; "
        "measured 2026-01-01T00:00:00Z → 2026-02-01T00:00:00Z\n" in shown
    )
    assert f"    {title.format(5)}: other seconds\n" in shown
    assert shown.endswith("1 only in a.json, 1 only in b.json, 2 different, 0 equal\n")


def test_diff_json_has_all(say):
    many = [make_record(tokens) for tokens in range(1, MAX_LINES + 6)]
    keep("a.json", *many, make_record(1, environment=XEON))
    keep("b.json", *(replace(record, seconds=9.5) for record in many))
    assert "and 5 more, which --json lists\n" in say("diff", "a.json", "b.json").out
    document = say("diff", "a.json", "b.json", "--json").json
    assert len(document["different"]) == MAX_LINES + 5
    assert document["different"][0]["fields"] == ["seconds"]
    assert document["different"][0]["median_ns"] == [1000, 1000]
    assert document["only_a"] == [{"problem": make_problem(1).to_json(), "environment": XEON.id}]
    assert (document["only_b"], document["equal"]) == ([], 0)
    assert set(document["environments"]) == {CPU.id, XEON.id}


# ---- prune


@pytest.fixture
def mixed():
    """A file of three environments, with an old and a new record of the first."""
    path = search_path()[0]
    now = datetime.now(UTC)
    moments = [(now - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (100, 10)]
    old, new = (replace(make_record(n + 1), measured_at=at) for n, at in enumerate(moments))
    xeon = replace(make_record(1, environment=XEON), measured_at=moments[1])
    gpu = replace(on_gpu(), measured_at=moments[1])
    keep(path, old, new, xeon, gpu)
    return path, {"old": old, "new": new, "xeon": xeon, "gpu": gpu}


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        (["--older-than", "90d"], {"new", "xeon", "gpu"}),
        (["--older-than", "15w"], {"old", "new", "xeon", "gpu"}),
        (["--older-than", "2500h"], {"old", "new", "xeon", "gpu"}),
        (["--keep-environment", CPU.id], {"old", "new"}),
        (["--keep-environment", XEON.id[:4].upper()], {"xeon"}),
        (["--keep-environment", "this"], {"old", "new", "gpu"}),
        (["--keep-environment", XEON.id, "--keep-environment", H100.id], {"xeon", "gpu"}),
        (["--keep-environment", "this", "--older-than", "90d"], {"new", "gpu"}),
    ],
)
def test_prune_keeps_what_it_should(say, machine, mixed, words, stay):
    path, records = mixed
    before = path.read_bytes()
    dry = say("prune", *words, "--dry-run")
    assert dry.code == 0
    assert path.read_bytes() == before
    said = say("prune", *words)
    assert said.code == 0
    assert {record.line for record in held(path)} == {records[name].line for name in stay}
    assert said.out.endswith(
        "1 record stays\n" if len(stay) == 1 else f"{len(stay)} records stay\n"
    )
    removed = len(records) - len(stay)
    assert (f"{removed} removed, " if removed else "nothing to remove, ") in said.out


def test_prune_says_what_went_by_environment(say, machine, mixed):
    path, _ = mixed
    said = say("prune", "--keep-environment", XEON.id, "--json")
    document = said.json
    assert document["removed_by_environment"] == {CPU.id: 2, H100.id: 1}
    assert (document["kept"], document["removed"], document["file"]) == (1, 3, str(path))
    assert set(document["environments"]) == {CPU.id, H100.id}


def test_prune_does_not_lose_what_others_publish_meanwhile(say, machine, mixed, monkeypatch):
    path, records = mixed
    late = make_record(77, environment=XEON)
    rewrite = TimingCache.rewrite

    def interrupted(place, keep):
        TimingCache([late], place).save()
        return rewrite(place, keep)

    monkeypatch.setattr(TimingCache, "rewrite", interrupted)
    assert say("prune", "--keep-environment", XEON.id).code == 0
    assert {r.line for r in held(path)} == {records["xeon"].line, late.line}


def test_prune_never_removes_all_without_a_yes(say, mixed):
    path, _ = mixed
    before = path.read_bytes()
    said = say("prune", "--older-than", "1h")
    assert said.code == 2
    assert "no record would be left of 4 records" in said.err
    assert path.read_bytes() == before
    assert say("prune", "--older-than", "1h", "--yes").code == 0
    assert held(path) == []


def test_prune_standard_input_to_standard_output_or_a_file(say, mixed):
    path, records = mixed
    data = path.read_bytes()
    said = say("prune", "-", "--keep-environment", XEON.id, stdin=data)
    (kept,) = parse(said.out.encode()).lines.values()
    assert kept == records["xeon"].line
    assert "standard output: 3 removed, 1 record stays" in said.err
    keep("out.json", records["gpu"])
    said = say("prune", "-", "--keep-environment", XEON.id, "-o", "out.json", stdin=data)
    assert {r.line for r in held("out.json")} == {records["xeon"].line, records["gpu"].line}
    assert said.out.endswith("out.json: 3 removed, 1 record stays\n")
    assert path.read_bytes() == data


# ---- export


def test_export_to_standard_output_is_a_cache_file(say, machine):
    keep("a.json", make_record(1), make_record(2, environment=XEON), on_gpu())
    keep("b.json", better_of(make_record(1)), make_record(3))
    said = say("export", "a.json", "b.json", "--environment", CPU.id[:5], "--json")
    table = parse(said.out.encode())
    table.check_all()
    assert set(table.lines.values()) == {better_of(make_record(1)).line, make_record(3).line}
    assert set(table.environments) == {CPU.id}
    said = say("export", "-", "--environment", "this", stdin=Path("a.json").read_bytes())
    assert set(parse(said.out.encode()).environments) == {CPU.id, H100.id}


def test_export_of_the_search_path_to_a_file(say, machine, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(("a.json", "b.json", "none.json")))
    keep("a.json", make_record(1), make_record(2, environment=XEON))
    keep("b.json", make_record(3))
    said = say("export", "--environment", "this", "-o", "out.json")
    assert said.code == 0
    assert held("out.json") == [make_record(1), make_record(3)]
    assert said.out == (
        f"2 records of {CPU.id}  AMD EPYC 9B14, 2 threads, AVX512, torch 2.13.0+cpu, "
        "mkl 2024.2\nout.json: 2 records\n"
    )
    document = say("export", "--environment", XEON.id, "-o", "out.json", "--json").json
    assert (document["exported"], document["records"]) == (1, 3)
    assert set(document["environments"]) == {XEON.id}


def test_export_without_a_record_says_of_what_there_are_some(say, machine):
    keep("a.json", make_record(1, environment=XEON))
    said = say("export", "a.json", "--environment", "this", "-o", "out.json")
    assert said.code == 2
    assert "no records of AMD EPYC 9B14, 2 threads" in said.err
    assert f"there are records of:\n  {XEON.id}  Intel Xeon, 8 threads" in said.err
    assert not Path("out.json").exists()


def test_an_id_that_begins_several_environments_is_refused(machine):
    twins = {f"abcd{n:08d}": replace(CPU, units=n + 1) for n in range(2)}
    assert environments.select(["abcd00000001"], twins) == [replace(CPU, units=2)]
    with pytest.raises(Exception, match="'abcd' begins several ids; give more digits:\n  abcd"):
        environments.select(["abcd"], twins)
    with pytest.raises(Exception, match="no environment whose id begins with '00000001'"):
        environments.select(["00000001"], twins)


# ---- ages


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("90d", 2160), ("4W", 672), ("1.5d", 36), ("99999w", 16799832)]
)
def test_ages(text, hours):
    assert arguments.age(text) == hours * 3600


def test_the_oldest_age_removes_nothing(say, mixed):
    assert "nothing to remove" in say("prune", "--older-than", "99999w").out
