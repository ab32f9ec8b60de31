"""The documents, held to the code: their examples run, their commands parse, their links lead."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import peft
import pytest
import torch
from cache_files import keep
from documents import PAGES, ROOT, anchors, blocks, commands, links, tool_commands
from records import make_record
from small_llama import SIZES
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import autolora
from autolora.cli import main, tune
from autolora.cli.parser import parse
from autolora.environment import Environment
from autolora.timing import data, effort, measurement
from autolora.tuning import check, entry

# Commands that are parsed by the parsers of their programs and not run: first words → why.
ONLY_PARSED = {
    "torchrun": "starts eight processes; tests/cli/test_cli_torchrun.py runs two",
    "accelerate launch": "starts processes with settings of the user's own",
}

# One layer whose products are all of one size, so that few problems are tuned.
CONFIG = {
    **SIZES,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
MODEL = f"""
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(**{CONFIG!r}))
"""
PACKAGE = """
import argparse
from torch import nn
parser = argparse.ArgumentParser()
parser.add_argument("--size", required=True)
class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear({"small": 8}[parser.parse_args().size], 4))
"""
SCRIPT = "import sys\nprint(sys.argv[1:])\n"


# ---- examples in Python


def llama():
    torch.default_generator.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG))


def model_for(page, block):
    """What an example calls ``model``."""
    if page == "docs/experts.md":
        from small_mixture import config_of

        return AutoModelForCausalLM.from_config(config_of("qwen3_moe", num_hidden_layers=1))
    if "get_peft_model(" in block or "add_lora(" in block:
        return llama()
    if "save_adapter(" in block:
        return autolora.add_lora(llama(), rank=4)
    return peft.get_peft_model(llama(), peft.LoraConfig(r=16, target_modules="all-linear"))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """Tuning takes no time: nothing is timed really, few graphs race, and nothing is compiled."""
    for module in (check, measurement):
        monkeypatch.setattr(module, "measure_for", lambda device: lambda run: 1e6)
    for efforts in ("EFFORTS", "_COMPILED"):
        known = getattr(effort, efforts)
        monkeypatch.setattr(effort, efforts, dict.fromkeys(known, known["quick"]))
    monkeypatch.setattr(data, "compiled", lambda layer: layer)
    for module in (data, entry, tune):
        monkeypatch.setattr(module, "require_compiler", lambda device: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page, text in PAGES.items() for block in blocks(text, "python")],
)
def test_the_examples_run(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 64, (8, 12))]
    given = {"max_steps": 6, "report_to": [], "save_strategy": "no", "use_cpu": True}
    names = {
        "autolora": autolora,
        "peft": peft,
        "torch": torch,
        "model": model_for(page, block),
        "base": llama(),
        "linear": nn.Linear(8, 12),
        "Trainer": Trainer,
        "args": TrainingArguments(str(tmp_path), **given),
        "data": rows,
    }

    def step():
        ids = torch.randint(3, 64, (2, 12))
        loss = names["model"](input_ids=ids, labels=ids).loss
        if loss.requires_grad:
            loss.backward()

    names["step"] = step
    lines = [
        line.replace("...", "step()", line.lstrip().startswith("..."))
        for line in block.splitlines()
    ]
    exec(compile("\n".join(lines), page, "exec"), names)
    step()
    if "autolora.accelerate(" in block and "restore" not in block:
        assert autolora.explain(names["model"]).layers


def test_the_five_lines_run_measured_graphs(tmp_path, capsys):
    names = {"model": llama(), "step": None}
    (block,) = [each for each in blocks(PAGES["README.md"], "python") if "explain" in each]
    step = "model(input_ids=torch.ones(4, 512, dtype=torch.long)).logits.sum().backward()"
    exec(
        compile(block.replace("\n...", f"\nimport torch\n{step}\n..."), "README.md", "exec"), names
    )
    assert "in all: 7 exact" in capsys.readouterr().out


# ---- commands


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the commands of the documents name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("package", "path/to", "shared/bucket"):
        Path(name).mkdir(parents=True)
    config = json.dumps(LlamaConfig(**CONFIG).to_dict())
    Path("path/to/config.json").write_text(config, encoding="utf-8")
    Path("model.py").write_text(MODEL, encoding="utf-8")
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    Path("package/__init__.py").write_text("", encoding="utf-8")
    Path("package/module.py").write_text(PACKAGE, encoding="utf-8")
    Path("package/train.py").write_text(SCRIPT, encoding="utf-8")
    record = make_record(
        times={"reference": 10**8},
        environment=Environment.of(torch.device("cpu")),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    for name in ("node-1", "node-2", "team", "mine", "timings.v1"):
        keep(f"{name}.json", record)
    yield tmp_path
    sys.modules.pop("package", None)
    for name in [name for name in sys.modules if name.startswith("package.")]:
        del sys.modules[name]


def only_parsed(command):
    return any(command.startswith(f"{words} ") for words in ONLY_PARSED)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if commands(text)])
def test_the_commands_run(page, workplace, monkeypatch):
    for command in commands(PAGES[page]):
        words = shlex.split(command.replace("/shared/", f"{workplace}/shared/"))
        if only_parsed(command):
            continue
        if words[0] == "cp":
            shutil.copy(*words[1:])
        elif words[0] == "export":
            monkeypatch.setenv(*words[1].split("="))
        elif words[:2] == ["autolora", "run"]:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            words = [sys.executable, "-m", *words]
            run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            assert run.stdout == "['--epochs', '3']\n"
        else:
            assert words.pop(0) == "autolora"
            words = [str(p) for w in words for p in (sorted(Path().glob(w)) if "*" in w else [w])]
            # files of one machine differ where both hold its records, and that is exit code 1
            assert main(words) in ((0, 1) if words[:2] == ["cache", "diff"] else (0,)), command


@pytest.mark.parametrize(
    "command", [c for text in PAGES.values() for c in commands(text) if only_parsed(c)]
)
def test_the_other_commands_parse(command):
    words = shlex.split(command)
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(words[1:])
        assert found.module
        words = [found.training_script, *found.training_script_args]
    else:
        from accelerate.commands.launch import launch_command_parser

        found = launch_command_parser().parse_args(words[2:])
        assert found.module
        words = [found.training_script, *found.training_script_args]
    assert words.pop(0) == "autolora"
    parse(words)


class Parsed(Exception):
    """The arguments of a tool are right."""


@pytest.mark.parametrize(
    "command", sorted({c for text in PAGES.values() for c in tool_commands(text)})
)
def test_the_commands_of_tools_parse(command, monkeypatch):
    import argparse

    parse_args = argparse.ArgumentParser.parse_args

    def parsed(self, *arguments):
        parse_args(self, *arguments)
        raise Parsed

    _, path, *arguments = shlex.split(command)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = import_module(Path(path).stem)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Parsed):
        tool.main()


# ---- links


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page):
    for target in links(PAGES[page]):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(PAGES[str(path.relative_to(ROOT))]), target
