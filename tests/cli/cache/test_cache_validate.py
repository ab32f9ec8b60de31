"""``autolora cache validate``."""

import re
from pathlib import Path

import pytest
from cache_files import keep
from records import CPU, REFERENCE, make_problem, make_record

from autolora.cli.output.figures import MAX_LINES

EXAMPLE = Path(__file__).parents[3] / "cache_schema" / "v1.example.json"


def test_validate_a_good_file(autolora):
    completed = autolora("validate", EXAMPLE)
    assert completed.code == 0
    assert re.search(r"v1\.example\.json: \d records, valid", completed.out)


def test_validate_says_what_is_wrong_and_where(autolora):
    keep("a.json", make_record(7), make_record(9, {REFERENCE: 10**6, "swift": 10**5}))
    completed = autolora("validate", "a.json", EXAMPLE)
    assert completed.code == 1
    title = "512 → 768, 9 tokens, dX, dA, dB, rank 8, float32"
    assert (
        f"a.json: error: {title} ({CPU.id}): winner 'swift' is no graph of this version of "
        "autolora for this problem\n" in completed.out
    )
    assert "a.json: 2 records, " in completed.out
    document = autolora("validate", "a.json", EXAMPLE, "--json").json
    first, second = document["files"]
    assert (first["file"], first["valid"], second["valid"]) == ("a.json", False, True)
    assert {
        "severity": "error",
        "cause": "winner 'swift' is no graph of this version of autolora for this problem",
        "problem": make_problem(9).to_json(),
        "environment": CPU.id,
    } in first["findings"]


def test_validate_shows_the_first_findings(autolora):
    many = [make_record(n, {REFERENCE: 10**6, "swift": 10**5}) for n in range(1, MAX_LINES + 6)]
    keep("a.json", *many)
    completed = autolora("validate", "a.json")
    assert completed.out.count("'swift' is no graph") == MAX_LINES
    assert re.search(r"^and [\d,]+ more, which --json lists$", completed.out, re.M)


def test_validate_tells_a_broken_cache_in_a_folder_from_what_is_none(autolora):
    Path("nodes").mkdir()
    data = keep("nodes/a.json", make_record(1)).read_bytes()
    Path("nodes/cut.json").write_bytes(data[:-9])
    Path("nodes/package.json").write_text('{"name":"x"}', encoding="utf-8")
    completed = autolora("validate", "nodes")
    assert completed.code == 1
    assert "cut.json: error: it is no cache file" in completed.out
    assert "package.json is left out: it is no timing cache" in completed.err
    assert "package.json" not in completed.out
    assert autolora("validate", "nodes/package.json").code == 1  # which was named itself


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is no cache file"),
        (b'{"schema_version":9}', "its schema is newer than this autolora"),
    ],
)
def test_validate_standard_input(autolora, data, words):
    completed = autolora("validate", "-", stdin=data)
    assert completed.code == 1
    assert f"standard input: error: {words}" in completed.out
