"""The page of a report, as text."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from records import CPU, H100, XEON, make_problem, make_record

from autolora.cache.differences import differences
from autolora.cache.records.candidate import Verdict
from autolora.problem import Experts, Siblings
from autolora.report.contents import Contents
from autolora.report.page import page
from autolora.report.results import Results

EVIL = "</script><img src=x onerror=alert(1)>&amp;<!--"
SIBLINGS = Siblings(
    in_features=512, out_features=(512, 64), tokens=64, ranks=(8, 8), dtype="float32", device="cpu"
)
EXPERTS = Experts(512, 768, 64, 16, 4, 8, "float32", "cpu")
KINDS = [
    make_record(64),
    make_record(problem=make_problem(64, mode="compiled")),
    make_record(problem=SIBLINGS),
    make_record(problem=EXPERTS),
]


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text in each kind of element."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_nothing_is_loaded():
    found = Elements(page(Contents(["a.json"], KINDS)))
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not {"src", "srcset", "action", "data", "background"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    style = "".join(found.texts["style"])
    assert "@import" not in style
    assert "url(" not in style
    script = "".join(found.texts["script"])
    assert not re.search(
        r"fetch\(|XMLHttp|import\(|WebSocket|innerHTML|document\.write|eval", script
    )
    (policy,) = (meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; ")


def test_the_policy_lets_the_page_s_own_script_run_and_no_other():
    html = page(Contents(["a.json"], KINDS))
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_markup_in_names_stays_text():
    times = {"reference": 2000, EVIL: 1000}
    record = make_record(times=times, environment=replace(CPU, device_name=EVIL))
    results = Results(EVIL, {EVIL: EVIL}, [{EVIL: EVIL}], [{EVIL: 1.0, "floor": 0.5}], usage=EVIL)
    changes = differences([make_record(environment=replace(CPU, device_name=EVIL))], [record])
    plain = page(
        Contents(
            ["a"],
            [make_record()],
            [Results("b", {"c": "d"}, [{"e": "f"}], [{"g": 1.0, "floor": 0.5}], usage="h")],
            "i",
            differences([], [make_record()]),
        )
    )
    html = page(Contents([EVIL], [record], [results], EVIL, changes))
    assert [tag for tag, _ in Elements(html).tags if tag in ("img", "script")] == ["script"] * 2
    assert html.count("<!--") == plain.count("<!--")
    assert EVIL in data_of(html)["graphs"]
    assert any(EVIL in machine for machine in data_of(html)["machines"])


def test_headers_have_scopes_and_sections_have_names():
    found = Elements(page(Contents(["a.json"], KINDS, changes=differences([], KINDS))))
    assert {attributes["scope"] for attributes in found.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for section in found.all("section"):
        assert section["aria-labelledby"] in ids
    for link in found.all("a"):
        assert link["href"][1:] in ids
    assert len(found.texts["caption"]) == len(found.all("table"))
    assert found.all("html") == [{"lang": "en"}]


def test_every_kind_is_shown_with_its_candidates():
    data = data_of(page(Contents(["a.json"], KINDS)))
    rows = data["tables"]["problems"]["rows"]
    assert [(row["kind"], row["mode"]) for row in rows] == [
        ("layer", "eager"),
        ("layer", "compiled"),
        ("siblings", "eager"),
        ("experts", "eager"),
    ]
    for row, record in zip(rows, KINDS, strict=True):
        shown = [(data["graphs"][graph], median) for graph, median, *_ in row["candidates"]]
        assert shown == [(each.graph, each.median_ns) for each in record.candidates]
        assert row["speedup"] == record.speedup
        assert row["overhead_removed"] == record.overhead_removed


def test_figures_that_are_not_finite_and_those_that_are_missing():
    rejected = Verdict(False, {"Y": (None, 1e-7)}, (None, 1.0), "error of Y inf")
    times = {"reference": 2000, "bad": 10, "untimed": None}
    record = make_record(times=times, verdicts={"bad": rejected}, floor_ns=None)
    html = page(Contents(["a.json"], [record]))
    (row,) = data_of(html)["tables"]["problems"]["rows"]
    verdicts = {data_of(html)["graphs"][c[0]]: c[6] for c in row["candidates"]}
    assert verdicts["bad"] == [False, "error of Y inf", {"Y": [None, 1e-7], "gain": [None, 1.0]}]
    assert row["overhead_removed"] is None
    assert "No floor was measured." in html


def test_the_first_rows_and_the_bars_stand_in_the_page_itself():
    many = [make_record(tokens) for tokens in range(1, 41)]
    html = page(Contents(["a.json"], many))
    first = html[html.index('data-name="problems"') :].partition("</table>")[0]
    assert Elements(first).texts["td"].count("2.00x") == 25
    assert "The first 25 of 40; a script shows the others." in html
    assert '<strong data-field="speedup">2.00x</strong>' in html
    assert '<strong data-field="removed">67 %</strong>' in html


def test_a_table_of_machines_only_where_there_are_several():
    one = data_of(page(Contents(["a.json"], [make_record()])))
    assert "shared" not in one["tables"]
    assert not any(row["place"] for row in one["tables"]["problems"]["rows"])
    gpu = make_record(problem=make_problem(1024, device="cuda"), environment=H100)
    data = data_of(page(Contents(["a"], [make_record(), make_record(environment=XEON), gpu])))
    (row,) = data["tables"]["shared"]["rows"]
    assert [row[f"time{place}"] for place in range(3)] == [1000] * 3
    assert row["same"] == "yes"


def test_changes_are_named():
    slower = make_record(1, {"reference": 900, "new": 950})
    old = [make_record(1), make_record(2), make_record(4), make_record(5)]
    new = [slower, make_record(3), replace(make_record(4), seconds=9.0), make_record(5)]
    contents = Contents(["a"], new, (), "old.json", differences(old, new))
    rows = data_of(page(contents))["tables"]["changes"]["rows"]
    assert {row["tokens"]: row["change"] for row in rows} == {
        1: "another winner",
        2: "gone",
        3: "new",
        4: "other seconds",
    }
    (first,) = (row for row in rows if row["tokens"] == 1)
    assert first["speedup"] == pytest.approx(1000 / 900)
    assert "Since <code>old.json</code>: 1 new, 1 gone, 2 different, 1 equal." in page(contents)
