"""TARGET: modules, classes, code with arguments of its own, models without example inputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import QUICK
from small_llama import SIZES

LAYERS = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Embedding(16, width), nn.Linear(width, 16), nn.Linear(16, width))
"""
INPUTS = """
import torch
def example_inputs(batch_size, seq_len):
    return torch.zeros(batch_size, seq_len, dtype=torch.long)
"""
NET = "from .layers import Net\nprint('loading', __name__)\n" + INPUTS
SIZED = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, default=8)
parser.add_argument("--json", action="store_true")
size = parser.parse_args().size
def build_model():
    assert sys.argv[0].startswith("sized")
    return Net(size)
"""
R = ("--rank", "2", "--batch-size", "2", "--seq-len", "8")


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package in the current folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    known = set(sys.modules)
    folder = Path("made_up_models")
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "layers.py").write_text(LAYERS, encoding="utf-8")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    Path("sized.py").write_text(LAYERS + INPUTS + SIZED, encoding="utf-8")
    yield folder
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in (folder.name, "sized"):
            del sys.modules[name]


def sizes(completed):
    """The sizes and tokens of the layers that explain tells of."""
    assert completed.code == 0, completed.err
    problems = [layer["problem"] for layer in completed.json["layers"]]
    return [(p["in_features"], p["out_features"], p["tokens"]) for p in problems]


def test_a_class_of_a_module_of_a_package(autolora):
    target = "made_up_models.net:Net"
    assert sizes(autolora("explain", target, *R, "--json")) == [(8, 16, 16), (16, 8, 16)]
    completed = autolora("tune", target, *QUICK)
    assert completed.code == 0
    assert "2 problems measured" in completed.out
    assert "loading" not in completed.out
    assert "2 layers: 2 exact." in autolora("explain", target, *R).out


def test_the_only_model_of_a_module_and_of_a_package(autolora, package):
    (package / "__init__.py").write_text("from .net import Net, example_inputs\nmodel = Net(8)")
    for target in ("made_up_models", "made_up_models:model", "sized", "sized:Net", "sized.py:Net"):
        assert len(sizes(autolora("explain", target, *R, "--json"))) == 2
    (package / "config.json").write_text("{", encoding="utf-8")
    assert "cannot read made_up_models/config.json" in autolora("explain", "made_up_models", *R).err


@pytest.mark.parametrize("target", ["sized.py", "sized", "sized:build_model"])
def test_arguments_of_the_code_of_a_target(autolora, target):
    before = sys.argv
    assert sizes(autolora("explain", target, *R, "--json")) == [(8, 16, 16), (16, 8, 16)]
    sys.modules.pop("sized", None)
    words = ("explain", target, *R, "--", "--size", "24", "--json")
    completed = autolora(*words)
    assert completed.code == 0
    assert f"To tune them: autolora tune {' '.join(words[1:])}" in completed.out
    sys.modules.pop("sized", None)
    completed = autolora(words[0], "--json", *words[1:])
    assert sizes(completed) == [(24, 16, 16), (16, 24, 16)]
    assert sys.argv is before


def test_code_that_rejects_its_arguments(autolora):
    completed = autolora("tune", "sized.py", *R, "--", "--size", "wide")
    assert (completed.code, completed.out) == (2, "")
    assert completed.err.count("invalid int value: 'wide'") == 1
    assert "sized.py ended the program (exit code 2)" in completed.err
    assert "its own arguments go last, after --" in completed.err


@pytest.mark.parametrize("command", ["tune", "explain"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.models:Net", "no such file, folder or module: nowhere.models (No module named "),
        ("made_up_models.nothing", "made_up_models.nothing (No module named 'made_up_models.not"),
        ("made_up_models.net.Net", "made_up_models.net.Net (No module named 'made_up_models.net.N"),
        ("made_up_models.net:", "nothing after the colon; TARGET must be model.py, package.module"),
        ("made_up_models.layers:Nat", "made_up_models.layers has no 'Nat'; candidates: Net"),
        ("made_up_models", "made_up_models holds no model"),
        (
            "made_up_models.raises",
            "ZeroDivisionError: division by zero\n  line 3 of raises.py, in f",
        ),
        ("made_up_models.through", "made_up_models.through raised ZeroDivisionError"),
        ("made_up_models.through", "line 3 of raises.py, in f: 1 / 0"),
        ("made_up_models.broken", "broken.py is not valid Python"),
        ("made_up_models.lacks", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("made_up_models/net.py", "TARGET is made_up_models.net, or made_up_models.net:NAME"),
        ("no/such/folder", "no such file or folder: no/such/folder; TARGET must be"),
    ],
)
def test_a_target_that_cannot_be_read(autolora, package, command, target, message):
    for name, text in {
        "raises": "def f():\n    print('here')\n    1 / 0\nf()",
        "through": "from .raises import f",
        "broken": "model = (",
        "lacks": "import no_such_module",
    }.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    completed = autolora(command, target, *R)
    assert (completed.code, completed.out) == (2, "")
    assert completed.err.count("autolora: error: ") == 1
    assert message in completed.err
    assert "Traceback" not in completed.err


def test_arguments_that_no_code_can_take(autolora):
    Path("config.json").write_text("{}", encoding="utf-8")
    for target in ("config.json", ".", "missing.json"):
        completed = autolora("tune", target, *R, "--", "--size", "small")
        assert completed.code == 2
        assert f"arguments after -- go to the code of TARGET, and {target} holds" in completed.err


def test_a_module_that_fails_on_the_meta_device_is_imported_anew(autolora, package):
    (package / "layers.py").write_text(LAYERS + "import torch\nwidths = torch.tensor([24])\n")
    (package / "net.py").write_text(
        NET + "from .layers import widths\ndef build():\n    return Net(int(widths[0]))\n"
    )
    completed = autolora("explain", "made_up_models.net:build", *R, "--json")
    assert sizes(completed) == [(24, 16, 16), (16, 24, 16)]
    assert completed.err.count("loading made_up_models.net") == 2


def test_a_process_of_its_own_with_a_model_that_says_nothing_of_inputs(package):
    pytest.importorskip("transformers")
    (package / "llama.py").write_text(
        "import sys\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"config = LlamaConfig(**{SIZES!r})\n"
        "config.num_hidden_layers = int(sys.argv[1])\n"
        "class Llama(LlamaForCausalLM):\n"
        "    def __init__(self):\n"
        "        super().__init__(config)\n",
        encoding="utf-8",
    )
    words = ("explain", "made_up_models.llama:Llama", *R, "--json", "--", "1")
    command = [sys.executable, "-m", "autolora", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(run.stdout)
    assert document["notes"] == []
    problems = [layer["problem"] for layer in document["layers"]]
    assert {problem["tokens"] for problem in problems} == {16}
    assert [len(problem["gradients"]) for problem in problems] == [2] * 3 + [3] * 4


def test_why_inputs_could_not_be_made_is_said_once(autolora):
    pytest.importorskip("transformers")
    Path("fails.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"model = LlamaForCausalLM(LlamaConfig(**{SIZES!r}))\n"
        "def forward(*_, **__): raise RuntimeError('it wants numbers')\n"
        "model.model.forward = forward\n",
        encoding="utf-8",
    )
    completed = autolora("tune", "fails.py", *R, "--effort", "estimate")
    assert completed.code == 0
    said = " ".join(completed.err.split())
    assert said.count("it wants numbers") == 1
    assert (
        "fails.py has no example_inputs(batch_size, seq_len), and the model cannot be run on "
        "inputs made from its configuration (RuntimeError: it wants numbers): every layer is "
        "taken to get 16 tokens, 2 sequences of 8"
    ) in said
