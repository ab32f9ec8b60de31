"""``autolora run``: scripts that know nothing of autolora, run as ``python`` runs them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autolora.cli import main

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
    lines = run.stderr.splitlines(keepends=True)
    own = "".join(line for line in lines if line.startswith("autolora: "))
    others = "".join(line for line in lines if not line.startswith("autolora: "))
    return run.returncode, run.stdout, others, own


def autolora_run(*words, **options):
    return python("-m", "autolora", "run", *words, **options)


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


def test_without_tuning_the_summary_names_the_command_that_tunes():
    code, _, _, own = autolora_run("--objective", "memory", "train.py", "a b")
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
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def test_nothing_outlives_the_run():
    text = """
import sys, threading
def late():
    threading.main_thread().join()
    print([f for f in sys.meta_path if type(f).__module__.startswith("autolora")])
threading.Thread(target=late).start()
"""
    assert autolora_run(script(text))[1] == "[]\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "cannot run nowhere.py: No such file or directory"),
        (["."], "cannot run .: Is a directory"),
        (["-m", "no_such_module"], "there is no module no_such_module to run"),
        (["-m", "json"], "there is no module json.__main__ to run"),
        ([], "no script given: autolora run [options] SCRIPT [arguments], or -m MODULE"),
        (["-m"], "no script given"),
        (["--tune", "--budget", "0", "train.py"], "--budget: must be a time above 0"),
        (["--budget", "5", "train.py"], "--budget is for tuning in the first steps: add --tune"),
        (["--compute-dtype", "int8", "train.py"], "--compute-dtype: must be one of"),
        (["--nonsense", "train.py"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_arguments_are_one_line(words, said, capsys):
    before = list(sys.path), list(sys.argv)
    assert main(["run", *words]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert err.startswith("autolora: error: ")
    assert said in err
    sys.path[:], sys.argv[:] = before
