"""The command line as a whole: help, bad input, text that is not ours, closed pipes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import QUICK

from autolora.cache.files.paths import search_path
from autolora.cli import main

COMMANDS = [
    (),
    ("tune",),
    ("show",),
    ("explain",),
    ("check",),
    ("cache",),
    *(("cache", verb) for verb in ("path", "merge", "validate", "diff", "prune", "export")),
    ("demo",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_small_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(f"usage: {' '.join(('autolora', *command))} ")
    assert command == ("cache",) or "autolora " in shown.partition("usage:")[2]


WITHOUT_TORCH = [
    ("--help",),
    ("show",),
    ("cache", "path"),  # as long as there are no records that could fit the machine
    ("cache", "path", "--write"),
    ("cache", "validate", "none.json"),
    ("cache", "merge", "none.json", "-o", "x.json"),
]


@pytest.mark.parametrize("command", WITHOUT_TORCH, ids=" ".join)
def test_what_needs_no_torch_does_not_wait_for_it(command):
    code = (
        "import sys; from autolora.cli import main\n"
        f"try: main({list(command)})\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr


def test_python_m_autolora():
    command = [sys.executable, "-m", "autolora", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"autolora \d+\.\d+\.\d+\S*\n", shown)


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {' '.join(command)} " in shown for command in COMMANDS[1:4])


FILES = {
    "raises.py": "def build_model():\n    raise ValueError('too wide')",
    "broken.py": "model = (",
    "exits.py": "import sys\nsys.exit()",
    "nothing.py": "x = 1",
    "broken.json": '{"model_type": ',
    "model.txt": "",
    "odd.py": "raise ValueError('\\x1b[31m [bold]red[/bold]')",
}
R = ("--rank", "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", "missing.py"), "no such file: missing.py"),
        (("tune", "raises.py"), "ValueError: too wide\n  line 2, in build_model: raise"),
        (("tune", "broken.py"), "broken.py is not valid Python"),
        (("tune", "exits.py"), "exits.py ended the program"),
        (("tune", "nothing.py"), "nothing.py holds no model"),
        (("tune", "model.py:other"), "model.py has no 'other'; candidates: model"),
        (("tune", "model.py"), "has no LoRA layers"),
        (("tune", "broken.json", *R), "cannot read broken.json"),
        (("tune", "model.txt", *R), "neither Python nor JSON"),
        (("tune", ".", *R), "holds no config.json"),
        (("tune",), "required: TARGET (see 'autolora tune --help')"),
        (("tune", "model.py", "--rank", "0"), "whole number of at least 1, not '0'"),
        (("tune", "model.py", "--rank", "two"), "whole number of at least 1, not 'two'"),
        (("tune", "model.py", *R, "--dtype", "float8"), "must be one of float32, bfloat16"),
        (("tune", "model.py", *R, "--tokens", "8,0"), "every STEP tokens, not '8,0'"),
        (("tune", "model.py", *R, "--tokens", ""), "every STEP tokens, not ''"),
        (("tune", "model.py", *R, "--tokens", "9:3"), "the range of tokens '9:3' is empty"),
        (("tune", "model.py", *R, "--tokens", "1:6000:1"), "12,000 problems would take hours"),
        (("tune", "model.py", *R, "--tokens", "1:999999:1"), "has 999999 counts"),
        (("tune", "model.py", *R, "--device", "gpu"), "cpu, cuda or cuda:N, not 'gpu'"),
        (("tune", "model.py", *R, "--device", "meta"), "cpu, cuda or cuda:N, not 'meta'"),
        (("tune", "model.py", *R, "--device", "cuda:99"), "no device 'cuda:99'"),
        (("tune", "model.py", *R, "--effort", "max"), "choose from"),
        (("tune", "model.py", *R, "--budget", "-1"), "such as 90, 60s, 5m or 1h, not '-1'"),
        (("tune", "model.py", *R, "--budget", "0s"), "must be a time above 0"),
        (("tune", "model.py", *R, "--alpha", "nan"), "positive number, not 'nan'"),
        (("tune", "model.py", *R, "--target-modules", "q_proj"), "match no linear layer"),
        (("tune", "model.py", *R, "--target-modules", "(" * 3), "no regular expression"),
        (("tune", "model.py", *R, "--cache", "."), "cannot write the timing cache"),
        (("tune", "model.py", *R, "--cache", "/dev/null/x.json"), "cannot write the timing cache"),
        (("tune", "model.py", *R, "--no-such-option"), "--no-such-option"),
        (("show", "--cache", "missing.json"), "no such cache file: missing.json"),
        (("show", "--cache", "broken.json"), "broken.json is not used: it is corrupt"),
        (("explain", "model.py", *R, "--cache", "broken.json"), "it is corrupt"),
        (("explain", "missing.py", *R), "no such file"),
        (("tune", "model.py", "--rank", "9" * 30), "must be at most 2147483647"),
        (("demo", "--rank", "100000"), "rank must be at most 512"),
        (("demo", "--dtype", "fp16"), "float16 trains with loss scaling only"),
        (("cache",), "no verb given; one of path, merge"),
        ((), "no command given"),
        (("tuen",), "invalid choice: 'tuen'"),
    ],
)
def test_bad_input_is_one_clear_error(autolora, words, message):
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    autolora(*words).assert_one_error(message)
    for name, text in FILES.items():
        assert Path(name).read_text(encoding="utf-8") == text  # nothing is lost


def test_a_broken_cache_is_set_aside(autolora):
    path = search_path()[0]
    path.write_text("{", encoding="utf-8")
    completed = autolora("tune", "model.py", *QUICK)
    assert completed.code == 0
    assert "it is corrupt" in completed.err
    assert path.with_name(f"{path.name}.corrupt-1").read_text(encoding="utf-8") == "{"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(autolora, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    completed = autolora("tune", "model.py", *QUICK, "--cache", str(closed / "timings.json"))
    assert completed.code == 2
    assert "cannot write the timing cache" in completed.err


def test_text_of_others_cannot_steer_the_terminal(autolora):
    Path("odd.py").write_text(FILES["odd.py"], encoding="utf-8")
    completed = autolora("tune", "odd.py")
    assert r"\x1b[31m [bold]red[/bold]" in completed.err
    assert "\x1b" not in completed.err


def test_a_screen_without_our_signs_gets_others(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    path = tmp_path / "modèle.py"
    command = [sys.executable, "-m", "autolora", "tune", str(path)]
    run = subprocess.run(command, capture_output=True, check=False)
    assert run.returncode == 2
    assert b"no such file" in run.stderr


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    command = [sys.executable, "-m", "autolora", "show"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")
