"""``autolora run``: scripts that know nothing of autolora, run as ``python`` runs them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import Fork, run_command

from autolora.cli import main
from autolora.report.results import read_results

TRAIN = """
import sys
import torch, peft
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 32), nn.Linear(32, 24)
    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

def main():
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
    model = peft.get_peft_model(Model().double(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(48, 24, dtype=torch.float64)
    for _ in range(8):
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print("loss", loss.item())
    print("class", type(model.base_model.model.first).__module__)

if __name__ == "__main__":
    main()
    print("arguments", sys.argv[1:], __file__, __package__, __spec__ is None)
"""
DEADLINE = 120


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN, encoding="utf-8")


def python(*words, **options):
    """A process of Python, and its output; with autolora's lines apart."""
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        **options,
    )
    return run.returncode, run.stdout, *apart(run.stderr)


def apart(err):
    """What others wrote to stderr, and autolora."""
    lines = err.splitlines(keepends=True)
    own = "".join(line for line in lines if line.startswith("autolora: "))
    return "".join(line for line in lines if not line.startswith("autolora: ")), own


def autolora_run(*words, **options):
    return python("-m", "autolora", "run", *words, **options)


def forked_run(*words):
    """As :func:`autolora_run`, in a process that has imported torch, but not PEFT."""
    fork = Fork(run_command, "run", *words, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    out, err = fork.communicate(timeout=DEADLINE)
    return fork.returncode, out, *apart(err)


def script(text, name="script.py"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def numbers(text):
    return [float(word) for word in re.findall(r"loss (\S+)", text)]


def test_a_script_that_knows_nothing_trains_with_the_same_losses_tuned():
    code, plain, *_ = python("train.py", "--lr", "3", "-x")
    assert code == 0
    code, out, _, own = autolora_run("--tune", "--report", "train.py", "--lr", "3", "-x")
    assert code == 0, own
    assert numbers(out) == pytest.approx(numbers(plain), rel=1e-9)
    assert "class autolora.nn.peft" in out
    assert "class peft.tuners.lora" in plain
    assert out.splitlines()[-1] == plain.splitlines()[-1]  # arguments, file, package, spec
    assert re.search(r"Tuning took [\d.]+ s", own)
    assert re.search(r"2 LoRA layers of 1 model accelerated; 8 of 16 calls in training ran", own)
    assert "to tune what was not measured" not in own
    assert "no timings" not in own


def test_a_run_writes_its_layers_for_a_report():
    code, _, _, own = autolora_run("--report-json", "run.json", "train.py")
    assert code == 0, own
    assert "first: " not in own  # which --report would say
    found = read_results(Path("run.json"))
    assert sorted(problem.shape_text for problem in found.layers) == ["24 → 32 +b", "32 → 24 +b"]
    assert set(found.layers.values()) == {1}
    assert "2 LoRA layers of 1 model accelerated; 0 of 16 calls" in found.usage


def test_a_report_that_cannot_be_written_is_said_at_the_end():
    code, _, _, own = autolora_run("--report-json", "none/run.json", "train.py")
    assert code == 0
    assert own.splitlines()[-1].startswith("autolora: cannot write the report none/run.json: No ")


def test_without_tuning_the_summary_names_the_command_that_tunes():
    code, _, _, own = forked_run("--objective", "memory", "train.py", "a b")
    assert code == 0
    assert "0 of 16 calls in training ran measured graphs; 16 ran graphs chosen unmeasured" in own
    assert own.endswith("autolora run --tune --objective memory train.py 'a b'\n")


def test_a_module_of_a_package_runs_with_its_relative_imports():
    Path("package").mkdir()
    Path("package", "__init__.py").touch()
    Path("package", "other.py").write_text("NAME = 'other'\n", encoding="utf-8")
    module = "from .other import NAME\nimport sys\nprint(NAME, sys.argv, __name__, __package__)\n"
    Path("package", "train.py").write_text(module, encoding="utf-8")
    Path("package", "__main__.py").write_text("print('whole')\n", encoding="utf-8")
    assert (
        autolora_run("-m", "package.train", "-m", "1")[:3]
        == python("-m", "package.train", "-m", "1")[:3]
    )
    assert autolora_run("-m", "package")[1] == "whole\n"


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    raise ValueError('wrong')\nprint(1)\nf()\n",
        "try:\n    {}['a']\nexcept KeyError as e:\n    raise RuntimeError('then') from e\n",
        "import sys\nsys.exit(3)\n",
        "import sys\nsys.exit('a message')\n",
        "raise SystemExit\n",
        "if True print(1)\n",
        "import atexit\natexit.register(print, 'at exit')\nraise KeyboardInterrupt\n",
        "import sys\nsys.excepthook = lambda *e: print('hook', e[2].tb_lineno)\n1 / 0\n",
        "import autolora\nraise autolora.AutoloraError('its own')\n",
        "import os\nos._exit(5)\n",
    ],
    ids=[
        "raises",
        "from",
        "exit",
        "message",
        "none",
        "syntax",
        "interrupt",
        "hook",
        "ours",
        "_exit",
    ],
)
def test_exit_code_output_and_traceback_are_the_scripts_own(text):
    name = script(text)
    assert autolora_run(name)[:3] == python(name)[:3]


def test_a_signal_interrupts_the_script_as_ever():
    name = script("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    for words in ((name,), ("-m", "autolora", "run", name)):
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a job in a shell's background ignores the signal, and so do its processes
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == -signal.SIGINT
        assert err.splitlines()[0] == "Traceback (most recent call last):"
        assert "autolora/" not in err


def test_workers_of_a_script_say_nothing():
    text = """
import multiprocessing, os, sys
def work(number):
    return number * number
class Thing: pass
if __name__ == "__main__":
    import pickle
    assert isinstance(pickle.loads(pickle.dumps(Thing())), Thing)
    for kind in ("fork", "spawn"):
        with multiprocessing.get_context(kind).Pool(2) as pool:
            print(pool.map(work, range(3)))
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
"""
    code, out, err, own = autolora_run(script(text))
    assert (code, out, err) == (0, "[0, 1, 4]\n[0, 1, 4]\n", "")
    assert own == "autolora: nothing was accelerated: the script made no PEFT model\n"


def test_a_script_without_models_imports_nothing_more():
    text = "import sys\nprint({'torch', 'peft', 'numpy', 'rich'} & set(sys.modules))\n"
    assert autolora_run(script(text))[1] == "set()\n"


@pytest.mark.parametrize("module", ["json", "package.nothing", "package.nothing.more"])
def test_a_module_that_is_missing_in_its_package_is_one_line(module):
    Path("package").mkdir()
    Path("package", "__init__.py").touch()
    code, out, err, own = autolora_run("-m", module)
    missing = "json.__main__" if module == "json" else module
    assert (code, out, err) == (2, "", "")
    assert own.startswith(f"autolora: error: there is no module {missing} to run")


@pytest.mark.parametrize(
    "text",
    [
        "import not_there\n",
        "import pack\n",
        "import sys\nprint(sys.argv)\n",
        "raise ValueError('wrong')\n",
    ],
)
def test_a_package_is_imported_as_python_does(text):
    Path("package").mkdir()
    Path("package", "__init__.py").write_text(text, encoding="utf-8")
    Path("package", "train.py").touch()
    code, out, err, _ = autolora_run("-m", "package.train", "-x")
    theirs = python("-m", "package.train", "-x")
    assert (code, out) == theirs[:2]
    assert err.splitlines()[-1:] == theirs[2].splitlines()[-1:]
    assert "autolora/" not in err


def test_the_main_module_is_what_python_makes_of_it():
    text = """
import sys
names = ("__name__", "__doc__", "__package__", "__spec__", "__annotations__", "__cached__")
print({name: globals()[name] for name in names}, type(__builtins__), type(__loader__))
x: int = 1
print(__annotations__, sys.modules["__main__"].x)
"""
    assert autolora_run(script(text))[1] == python(script(text))[1]


def test_a_stream_of_the_scripts_own_gets_the_account():
    text = """
import sys
class Tee:
    def write(self, text):
        sys.__stdout__.write(text)
    def flush(self):
        pass
sys.stderr = Tee()
"""
    assert "nothing was accelerated" in autolora_run(script(text))[1]


def test_what_the_script_cannot_print_stays_an_error(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, _, err, _ = autolora_run(script("print('\\u00e9')\n"))
    assert code == 1
    assert "UnicodeEncodeError" in err


def test_handlers_of_the_script_do_not_get_what_autolora_logs():
    text = "import logging, sys\nlogging.basicConfig(stream=sys.stdout)\n" + TRAIN
    _, out, _, own = forked_run(script(text))
    assert "autolora:" not in out
    assert "autolora: no timings for" in own


def test_threads_that_outlive_the_main_code_are_accelerated():
    text = TRAIN.replace(
        "    main()\n", "    import threading\n    threading.Thread(target=main).start()\n"
    )
    code, out, _, own = forked_run(script(text))
    assert code == 0
    assert "class autolora.nn.peft" in out
    assert "2 LoRA layers of 1 model accelerated" in own


def test_strict_mode_begins_once_it_is_tuned(monkeypatch):
    monkeypatch.setenv("AUTOLORA_STRICT", "1")
    code, out, err, own = forked_run("--tune", "train.py")
    assert code == 0, err
    assert len(numbers(out)) == 8
    assert "8 of 16 calls in training ran measured graphs" in own


def test_a_run_that_is_too_short_says_so():
    _, _, _, own = forked_run("--tune", script(TRAIN.replace("range(8)", "range(3)")))
    assert "autolora: not tuned: the training ended before its first steps were recorded" in own
    assert "to tune what was not measured" not in own


def test_a_second_run_measures_nothing_again():
    for said in ("Tuning took", "what the first steps need is measured already"):
        _, _, _, own = forked_run("--tune", "--budget", "1h", "train.py")
        assert said in own
    assert "Tuning took" not in own


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "cannot run nowhere.py: No such file or directory"),
        (["."], "cannot run .: Is a directory"),
        (["-m", "no_such_module"], "there is no module no_such_module to run"),
        (["--tun", "train.py"], "unrecognized arguments: --tun (see 'autolora run --help')"),
        ([], "no script given: autolora run [options] SCRIPT [arguments], or -m MODULE"),
        (["-m"], "no script given"),
        (["--tune", "--budget", "0", "train.py"], "--budget: must be a time above 0"),
        (["--budget", "5", "train.py"], "--budget is for tuning in the first steps: add --tune"),
        (["--compute-dtype", "int8", "train.py"], "--compute-dtype: must be one of"),
        (["--", "nowhere.py"], "cannot run nowhere.py: No such file or directory"),
    ],
)
def test_wrong_arguments_are_one_line(words, said, capsys):
    before = list(sys.path), list(sys.argv)
    assert main(["run", *words]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert err.startswith("autolora: error: ")
    assert said in err
    sys.path[:], sys.argv[:] = before
