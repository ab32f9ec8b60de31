"""What the ``autolora cache`` commands have in common: arguments, errors, hostile files."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cache_files import NODE, better_of, held, keep
from records import CPU, REFERENCE, make_record

from autolora.cli import main
from autolora.cli.cache import files as caches


def test_without_a_verb_they_are_listed(autolora, capsys):
    completed = autolora()
    assert completed.code == 2
    assert "no verb given; one of path, merge, validate, diff, prune, export" in completed.err
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
def test_bad_input_is_one_clear_error_and_nothing_is_lost(autolora, words, message):
    Path("empty").mkdir()
    for name, data in FILES.items():
        if data is not None:
            Path(name).write_bytes(data)
    keep("good.json", make_record(1), make_record(2))
    Path("good.json.lock").unlink()
    before = {path: path.read_bytes() for path in Path().glob("*.json")}
    autolora(*words).assert_one_error(message)
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
def test_what_a_file_says_is_shown_as_text(autolora, monkeypatch, machine, words):
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
    completed = autolora(*words, *([odd] if words[0] in ("merge", "validate", "export") else []))
    assert "\x1b" not in completed.out + completed.err
    if words[0] in ("diff", "prune", "export"):
        assert "[bold]Node 7[/bold]" in completed.out
    if words[0] in ("diff", "validate"):
        assert winner in completed.out
    if words[0] in ("merge", "path", "validate"):
        assert r"\x1b[2Jodd.json" in completed.out + completed.err


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
def test_options_stand_where_they_like(autolora, words):
    keep("a.json", make_record(1))
    keep("b.json", make_record(2))
    assert autolora("merge", *words).code == 0
    assert held("c.json") == [make_record(1), make_record(2)]
    completed = autolora(
        "export", "--environment", CPU.id, "a.json", "--json", "-o", "d.json", "b.json"
    )
    assert completed.json["exported"] == 2
    assert autolora("prune", "--older-than", "99999w", "a.json", "--dry-run").code == 0


def test_what_is_too_large_is_refused(autolora, monkeypatch):
    data = keep("a.json", make_record(1)).read_bytes()
    monkeypatch.setattr(caches, "LIMIT", len(data) - 1)
    completed = autolora("merge", "-", "-o", "out.json", stdin=data)
    assert completed.code == 2
    assert "standard input cannot be used: it is larger than 0 MB" in completed.err


def test_a_reader_that_has_seen_enough_is_no_error(autolora):
    keep("a.json", *(make_record(tokens) for tokens in range(1, 200)))
    command = [sys.executable, "-m", "autolora", "cache", "merge", "a.json", "-o", "-"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")
