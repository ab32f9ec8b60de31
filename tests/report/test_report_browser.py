"""The page of a report in Chromium: what a user sees, clicks and types."""

from dataclasses import replace

import browser
import pytest
from records import CPU, MERGED, REFERENCE, SAVED, XEON, make_problem, make_record

from autolora.cache.differences import differences
from autolora.report.contents import Contents
from autolora.report.page import page
from autolora.report.results import Results

pytestmark = pytest.mark.skipif(bool(browser.MISSING), reason=f"needs {browser.MISSING}")

TAB, ENTER = "\ue004", "\ue007"
ROWS = "table[data-name=problems] > tbody > tr"
EVIL = "<img src=x onerror=document.title='run'>"


def timed(tokens, speedup, **changes):
    times = {REFERENCE: round(1000 * speedup), SAVED: 1000}
    return make_record(tokens, times, **{"seconds": 1.3, **changes})


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens the page of some records."""

    def opened(records, *others, width=1280, dark=False):
        path = tmp_path / "report.html"
        path.write_text(page(Contents(["a.json"], records, *others)), encoding="utf-8")
        chromium.resize(width, dark=dark)
        chromium.open(path)
        return chromium

    return opened


def column(chromium, place):
    return chromium.texts(f"{ROWS} > :nth-child({place})")


def type_into(chromium, selector, text):
    chromium.run(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', { bubbles: true }))",
        selector,
        text,
    )


def test_a_click_on_a_header_sorts_the_rows(opened):
    page = opened([timed(n, s) for n, s in [(1, 1.5), (2, 3.0), (3, 1.0), (4, 2.0)]])
    speedup = "table[data-name=problems] thead th:nth-child(8)"
    assert page.texts(speedup)[0].startswith("Speed-up")
    assert column(page, 8) == ["1.50x", "3.00x", "1.00x", "2.00x"]
    page.click(f"{speedup} button")
    assert column(page, 8) == ["3.00x", "2.00x", "1.50x", "1.00x"]
    page.click(f"{speedup} button")
    assert column(page, 8) == ["1.00x", "1.50x", "2.00x", "3.00x"]
    sorts = "return [...document.querySelectorAll('[aria-sort]')].map((e) => e.ariaSort)"
    assert page.run(sorts) == ["ascending"]


def test_rows_without_a_figure_come_last_both_ways(opened):
    page = opened([timed(1, 1.5, floor_ns=None), timed(2, 3.0), timed(3, 2.0)])
    for order in (["80 %", "67 %", "–"], ["67 %", "80 %", "–"]):
        page.click("table[data-name=problems] thead th:nth-child(9) button")
        assert column(page, 9) == order


def test_the_filter_changes_rows_sums_and_plots(opened):
    wide = replace(make_problem(1), out_features=3072, dtype="bfloat16")
    records = [timed(n, 2.0) for n in (64, 128)]
    records += [timed(n, 4.0, problem=wide.at(n), environment=XEON) for n in (64, 128)]
    page = opened(records)
    assert page.texts("#number") == ["4 problems"]
    assert len(page.texts("#families figure")) == 2
    type_into(page, "#find", "BFLOAT16 3072")
    assert page.texts("#number") == ["2 of 4 problems"]
    assert column(page, 1) == ["512 → 3072"] * 2
    assert page.texts("#families h3") == ["512 → 3072"]
    assert page.texts("[data-sum] [data-field=speedup]") == ["4.00x"]
    type_into(page, "#find", "")
    page.run(
        "const e = document.querySelector('select[name=machine]'); e.value = '0';"
        "e.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    assert page.texts("#number") == ["2 of 4 problems"]
    type_into(page, "#find", "nothing of that name")
    assert column(page, 1) == []
    assert page.texts("#number") == ["0 of 4 problems"]


def test_ten_thousand_records_are_a_few_elements(opened):
    records = [
        timed(64, 2.0, problem=make_problem(64, in_features=size)) for size in range(1, 10_001)
    ]
    page = opened(records)
    assert page.texts("#number") == ["10,000 problems"]
    assert page.run("return document.querySelectorAll('*').length") < 2000
    assert len(column(page, 1)) == 25
    assert "1 to 25 of 10,000 problems" in page.texts("[data-pages=problems]")[0]
    page.click("[data-pages=problems] button:last-child")
    assert "26 to 50 of 10,000 problems" in page.texts("[data-pages=problems]")[0]


def test_the_script_shows_what_the_page_said_before(opened, tmp_path):
    records = [timed(n, 1 + n / 7, floor_ns=200 + n) for n in (1, 20, 1024)]
    records += [timed(64, 1.5, environment=XEON, problem=make_problem(64, mode="compiled"))]
    page = opened(records, (), "old.json", differences([timed(1, 2.0)], records))
    drawn = page.run("return document.querySelector('main').innerText")
    path = tmp_path / "report.html"
    path.write_text(path.read_text(encoding="utf-8").partition("<script>")[0], encoding="utf-8")
    page.open(path)
    said = page.run("return document.querySelector('main').innerText")
    marks = str.maketrans("", "", "↕▸\xa0")
    for line in filter(None, (line.strip() for line in said.translate(marks).splitlines())):
        assert line in drawn.translate(marks)


def test_candidates_open_and_close_by_the_keyboard(opened):
    times = {REFERENCE: 2_000_000, SAVED: 1_000_000, MERGED: 1_500_000}
    page = opened([make_record(64, times)])
    button = ".open"
    page.run("document.querySelector(arguments[0]).focus()", button)
    page.press(ENTER)
    assert page.run("return document.querySelector('.open').ariaExpanded") == "true"
    rows = page.texts(".details tbody tr")
    assert len(rows) == 3
    assert SAVED in rows[0].replace("\n", "")
    assert "1.00 ms" in rows[0]
    assert "accurate" in rows[0]
    assert page.run("return document.querySelectorAll('.details th:not([scope])').length") == 0
    page.press(ENTER)
    assert page.texts(".details") == []


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened):
    page = opened([timed(64, 2.0), timed(128, 1.5)])
    page.press(TAB)
    assert page.run("return document.activeElement.className") == "skip"
    assert page.run("return document.activeElement.getBoundingClientRect().left") >= 0
    page.press(ENTER)
    assert page.run("return document.activeElement.id") == "main"
    seen = []
    for _ in range(20):
        page.press(TAB)
        seen.append(
            page.run(
                "const e = document.activeElement;"
                "return [e.id || e.className || e.innerText, getComputedStyle(e).outlineStyle]"
            )
        )
    assert {"find", "open", "scroll"} <= {name for name, _ in seen}
    assert {style for _, style in seen} == {"solid"}


def test_markup_in_names_is_not_run(opened):
    record = make_record(
        times={REFERENCE: 2000, EVIL: 1000}, environment=replace(CPU, device_name=EVIL)
    )
    results = Results(EVIL, {EVIL: EVIL}, [{EVIL: EVIL}], [{EVIL: 1.0}], usage=EVIL)
    page = opened(
        [record, replace(record, environment=XEON)], [results], EVIL, differences([], [record])
    )
    page.click(".open")
    assert page.run("return document.images.length") == 0
    assert page.run("return document.title") == "autolora report"
    assert any(EVIL in text.replace("\n", "") for text in page.texts(".details code"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_need_not_scroll_sideways(opened, dark):
    long = "together=h,dA,dX/" + "+".join(["base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"] * 3)
    records = [make_record(n, {REFERENCE: 2000, long: 900 + n}) for n in (64, 128)]
    records += [make_record(64, environment=XEON)]
    results = Results("b" * 90 + ".json", {"command": "c" * 90}, [{"a": "d" * 90}], [{"peft": 1.0}])
    page = opened(records, [results], "old.json", differences([], records), width=360, dark=dark)
    page.click(".open")
    assert page.run("return innerWidth") == 360
    assert page.run("return document.documentElement.scrollWidth") == 360
    hidden = page.run(
        "return [...document.querySelectorAll('main *')]"
        ".filter((e) => !e.closest('.scroll, svg'))"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert hidden == []


def test_colours_follow_the_scheme_and_can_be_read(opened):
    shades = []
    for dark in (False, True):
        page = opened([timed(64, 2.0)], dark=dark)
        shades.append(page.run(CONTRASTS))
        assert min(shades[-1].values()) >= 4.5
    assert shades[0] != shades[1]


CONTRASTS = """
const shine = (color) => {
  const parts = color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const shade = (name) => {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const light = shine(getComputedStyle(probe).color);
  probe.remove();
  return light;
};
const contrast = (a, b) => {
  const [low, high] = [shade(a), shade(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const found = {};
for (const text of ["text", "dim", "link", "good", "bad"])
  for (const back of ["back", "card", "soft"]) found[`${text} on ${back}`] = contrast(text, back);
return found;
"""
