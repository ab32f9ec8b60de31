"""``autolora report``."""

import sys
from pathlib import Path

import pytest
from cache_files import keep
from commands import QUICK
from records import XEON, make_record

from autolora.cache.files.paths import search_path


def test_a_page_of_what_was_tuned(autolora):
    autolora("tune", "model.py", *QUICK)
    completed = autolora("report")
    assert (completed.code, completed.out, completed.err) == (0, "report.html\n", "")
    html = Path("report.html").read_text(encoding="utf-8")
    assert "2 problems on 1 machine" in html
    assert str(search_path()[0]) in html


def test_a_model_and_an_earlier_cache(autolora):
    autolora("tune", "model.py", *QUICK)
    explained = autolora("explain", "model.py", *QUICK[:2], *QUICK[4:], "--json")
    Path("model.json").write_text(explained.out, encoding="utf-8")
    keep("old.json", make_record(environment=XEON))
    words = ("--results", "model.json", "--against", "old.json", "-o", "page.html")
    assert autolora("report", *words).code == 0
    html = Path("page.html").read_text(encoding="utf-8")
    assert "One step of the model of <code>model.json</code>" in html
    assert '<p class="note"><span data-field="number">2</span> layers' in html
    assert "Since <code>old.json</code>: 2 new, 1 gone, 0 different, 0 equal." in html


def test_several_files_are_joined(autolora):
    keep("a.json", make_record(1))
    keep("b.json", make_record(2), make_record(1, environment=XEON))
    completed = autolora("report", "a.json", "-o", "-", "b.json")
    assert "3 problems on 2 machines" in completed.out
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no cache file of the search path exists"),
        (("none.json",), "no such cache file: none.json"),
        (("empty.json",), "nothing measured yet: no records in empty.json"),
        (("model.py",), "model.py cannot be used: it is corrupt"),
        (("a.json", "--against", "none.json"), "no such cache file: none.json"),
        (("a.json", "--results", "a.json"), "the results a.json cannot be used"),
        (("a.json", "--results", "none.json"), "the results none.json cannot be used: No such"),
        (("a.json", "-o", "none/report.html"), "cannot write the report none/report.html: No such"),
        (("a.json", "-o", "."), "cannot write the report .: Is a directory"),
        (("a.json", "-o", "./a.json"), "a.json is a cache file"),
    ],
)
def test_errors_are_one_line(autolora, words, message):
    keep("a.json", make_record())
    keep("empty.json")
    before = Path("a.json").read_bytes()
    completed = autolora("report", *words)
    assert completed.code == 2
    assert completed.out == ""
    assert completed.err.startswith(f"autolora: error: {message}")
    assert completed.err.count("\n") == 1
    assert Path("a.json").read_bytes() == before


def test_plots_need_matplotlib(autolora, monkeypatch):
    keep("a.json", make_record())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    completed = autolora("report", "a.json", "--plots", "figures")
    assert completed.code == 2
    assert "pip install 'autolora[report]'" in completed.err
    assert not Path("report.html").exists()
