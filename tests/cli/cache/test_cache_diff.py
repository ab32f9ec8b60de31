"""``autolora cache diff``."""

import json
from dataclasses import replace
from pathlib import Path

from cache_files import keep
from records import CPU, REFERENCE, SAVED, XEON, make_problem, make_record

from autolora.cli.output.figures import MAX_LINES


def test_diff_of_equal_files(autolora):
    keep("a.json", make_record(1), make_record(2))
    pretty = json.dumps(json.loads(Path("a.json").read_bytes()), indent=1).encode()
    completed = autolora("diff", "a.json", "-", stdin=pretty)
    assert completed.code == 0
    assert completed.out == "Records: 0 only in a.json, 0 only in -, 0 different, 2 equal\n"


def test_diff_says_what_differs_by_environment(autolora):
    slower = {REFERENCE: 2000, SAVED: 1900}
    new = replace(make_record(1, slower), effort="thorough", measured_at="2026-02-01T00:00:00Z")
    other = make_record(2, environment=XEON)
    keep("a.json", make_record(1), make_record(3), make_record(5))
    keep("b.json", new, other, replace(make_record(5), seconds=2.5))
    completed = autolora("diff", "a.json", "b.json")
    assert completed.code == 1
    assert "AMD EPYC 9B14, 2 threads\n" in completed.out
    assert "Intel Xeon, 8 threads\n" in completed.out
    title = "512 → 768, {} tokens, dX, dA, dB, rank 8, float32"
    shown = completed.out
    assert f"  1 record only in a.json:\n    {title.format(3)}\n" in shown
    assert f"  1 record only in b.json:\n    {title.format(2)}\n" in shown
    assert (
        f"    {title.format(1)}: 1.00 µs → 1.90 µs (0.53x as fast); effort normal → thorough; "
        "measured 2026-01-01T00:00:00Z → 2026-02-01T00:00:00Z\n" in shown
    )
    assert f"    {title.format(5)}: other seconds\n" in shown
    assert shown.endswith("1 only in a.json, 1 only in b.json, 2 different, 0 equal\n")


def test_diff_json_has_all(autolora):
    many = [make_record(tokens) for tokens in range(1, MAX_LINES + 6)]
    keep("a.json", *many, make_record(1, environment=XEON))
    keep("b.json", *(replace(record, seconds=9.5) for record in many))
    assert "and 5 more, which --json lists\n" in autolora("diff", "a.json", "b.json").out
    document = autolora("diff", "a.json", "b.json", "--json").json
    assert len(document["different"]) == MAX_LINES + 5
    assert document["different"][0]["fields"] == ["seconds"]
    assert document["different"][0]["median_ns"] == [1000, 1000]
    assert document["only_a"] == [{"problem": make_problem(1).to_json(), "environment": XEON.id}]
    assert (document["only_b"], document["equal"]) == ([], 0)
    assert set(document["environments"]) == {CPU.id, XEON.id}
