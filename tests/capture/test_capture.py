"""The problems of a target in training, found without its weights."""

import json
import re
import resource
import sys
import time
from copy import deepcopy
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from small_llama import SIZES
from torch import nn

import autolora
from autolora.capture.capture import capture, model_problems
from autolora.capture.run import run_problems
from autolora.capture.target import Adapters, Target, load_target
from autolora.errors import AutoloraError
from autolora.problem import Problem
from autolora.timing.quantise import quantised

BLOCK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.q_proj(x) * self.k_proj(x)
        return x + self.down_proj(torch.relu(self.up_proj(x)))

class Model(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x

def example_inputs(batch_size, seq_len):
    return torch.zeros(batch_size, seq_len, dtype=torch.long)
"""
MODEL = BLOCK + "\nmodel = Model()\n"
R8 = Adapters(rank=8)


@pytest.fixture
def write(tmp_path):
    def write(source: str, name: str = "model.py") -> str:
        path = tmp_path / name
        path.write_text(dedent(source), encoding="utf-8")
        return str(path)

    return write


def captured(target: str, adapters: Adapters = R8, **options):
    return capture(load_target(target, adapters), device="cpu", **options)


def test_a_run_shows_tokens_and_which_layers_need_no_gradient_of_x(write):
    found = captured(write(MODEL), batch_size=3, seq_len=5)
    square = Problem(64, 64, 15, 8, "float32", "cpu", gradients=("A", "B"))
    up = Problem(64, 128, 15, 8, "float32", "cpu", bias=True)
    down = Problem(128, 64, 15, 8, "float32", "cpu", bias=True)
    assert single(found) == [square, up, down, Problem(64, 64, 15, 8, "float32", "cpu")]
    assert found.uses[square] == 2  # q_proj and k_proj of the first block, fed by the embedding
    assert found.uses[up] == found.uses[down] == 2
    assert [name for name, _ in found.layers][:2] == ["blocks.0.q_proj", "blocks.0.k_proj"]
    assert (found.left, found.notes) == ([], [])


def single(found):
    """The problems of single layers."""
    return [problem for problem in found.problems if not problem.parts]


def test_a_run_shows_siblings(write):
    found = captured(write(MODEL), batch_size=3, seq_len=5)
    families = [tuple(f"blocks.{n}.{name}_proj" for name in "qk") for n in (0, 1)]
    assert found.siblings == families
    assert [names for names, _ in found.families] == families
    first, second = (problem for _, problem in found.families)
    assert (first.out_features, first.gradients) == ((64, 64), ("A", "B"))
    assert second.gradients == ("X", "A", "B")
    assert found.uses[first] == found.uses[second] == 1
    assert {p.tokens for p in found.at([8, 16]).problems if p.parts} == {8, 16}


def test_a_run_shows_which_layers_get_the_same_input(write):
    found = captured(write(MODEL), tokens=[8, 16])
    assert found.inputs.keys() == set(found.layers)
    numbers = {}
    for (name, problem), number in found.inputs.items():
        numbers.setdefault(problem.tokens, {}).setdefault(number, []).append(name.split(".", 1)[1])
    for groups in numbers.values():
        assert sorted(groups.values()) == [
            [f"{block}.{name}" for name in names.split()]
            for block in (0, 1)
            for names in ("down_proj", "q_proj k_proj", "up_proj")
        ]


def test_inputs_that_autocast_casts_are_not_shared(write):
    found = captured(write(MODEL), autocast=torch.bfloat16)
    assert len(set(found.inputs.values())) == len(found.inputs)
    assert captured(write(MODEL.partition("def example")[0] + "model = Model()")).inputs == {}


def test_tokens_override_the_run_but_keep_its_gradients(write):
    found = captured(write(MODEL), tokens=[512, 2048])
    assert {problem.tokens for problem in found.problems} == {512, 2048}
    assert found.uses[Problem(64, 64, 2048, 8, "float32", "cpu", gradients=("A", "B"))] == 2
    assert len(single(found)) == 8


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (MODEL, None),
        (BLOCK + "other = Model(1)\nmodel = Model()", None),
        (BLOCK + "def build_model(blocks=2): return Model(blocks)\nother = Model(1)", None),
        (BLOCK + "net = Model()", None),
        (BLOCK + "def anything(): return Model()\ndef main(): raise SystemExit", None),
        (BLOCK + "def model(): return Model()", None),
        (BLOCK + "one, two = Model(1), Model(2)", "two"),
        (BLOCK, "Model"),
        (BLOCK.replace("class Block", "class _Block").replace("Block()", "_Block()"), None),
    ],
)
def test_the_model_of_a_file(write, source, name):
    target = load_target(write(source) + (f":{name}" if name else ""), R8)
    assert len(target.model.blocks) == 2
    assert {p.device.type for p in target.model.parameters()} == {"meta"}
    assert target.model.training


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("x = 1", None, "model.py holds no model"),
        (
            BLOCK,
            None,
            "may hold several models; name one as model.py:NAME; candidates: Block, Model",
        ),
        (BLOCK + "a = Model()\nb = Model()", None, "name one as model.py:NAME; candidates: a, b"),
        (BLOCK + "def f(): ...\ndef g(): ...", None, "candidates: f(), g()"),
        (MODEL, "modle", "model.py has no 'modle'; candidates: model"),
        (MODEL, "Block.forward", "model.py has no 'Block.forward'"),
        (MODEL, "", "nothing after the colon"),
        ("def f(width, *, depth): ...", "f", "needs arguments (width, depth)"),
        ("from torch import nn\nclass Wide(nn.Linear): ...", None, "model.py holds no model"),
        ("from torch.nn import Linear", "Linear", "needs arguments (in_features, out_features)"),
        ("x = 1", "x", "model.py:x is a int, neither an nn.Module nor a class"),
        ("def build_model(): return 'no'", None, "build_model() gave a str, not an nn.Module"),
        ("import torch\nmodel = torch.nn.Linear(8, 8)", None, "from_linear"),
        (MODEL + "def example_inputs(): ...", None, "must take (batch_size, seq_len)"),
    ],
)
def test_a_file_without_a_clear_model_is_an_error_that_says_what_to_do(
    write, source, name, message
):
    path = write(source)
    with pytest.raises(AutoloraError) as raised:
        load_target(path if name is None else f"{path}:{name}", R8)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def f():\n    1 / 0\nf()",
            "raised ZeroDivisionError: division by zero\n  line 2, in f: 1 / 0",
        ),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("def build_model():\n    raise ValueError('bad')", "raised ValueError: bad\n  line 2"),
        ("model = (", "model.py is not valid Python: '(' was never closed\n  line 1: model = ("),
        ("import sys\nsys.exit(3)", "ended the program (exit code 3)"),
        ("import autolora\nautolora.LoRALinear(8, 8, 0, alpha=1)", "AutoloraError: rank must be"),
        ("def build_model(): return build_model()", "raised RecursionError"),
        ("model = '\0'", "null bytes"),
    ],
)
def test_an_error_of_a_file_shows_its_line(write, source, message):
    with pytest.raises(AutoloraError) as raised:
        load_target(write(source), R8)
    assert message in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_an_interrupt_in_a_file_is_an_interrupt(write):
    with pytest.raises(KeyboardInterrupt):
        load_target(write("raise KeyboardInterrupt"), R8)


def test_a_model_that_fails_on_the_meta_device_is_built_on_the_cpu(write, caplog):
    caplog.set_level("INFO", "autolora")
    source = BLOCK + "def build_model():\n    return Model(int(torch.ones(1).item()) + 1)"
    assert len(captured(write(source), tokens=[64]).layers) == 8
    assert "fails on the meta device" in caplog.text


def test_a_file_can_import_its_neighbours(write):
    write(BLOCK, "neighbour_of_the_model.py")
    target = write("from neighbour_of_the_model import Model, example_inputs\nmodel = Model()")
    assert len(captured(target).layers) == 8


@pytest.mark.parametrize(("inner", "dots"), [("", "."), ("inner", "..")])
def test_a_relative_import_says_what_to_do_and_that_works(tmp_path, monkeypatch, inner, dots):
    package = tmp_path / f"made_up_package{len(dots)}"
    (package / inner).mkdir(parents=True)
    for folder in {package, package / inner}:
        (folder / "__init__.py").touch()
    (package / "layers.py").write_text(BLOCK, encoding="utf-8")
    source = f"from {dots}layers import Model, example_inputs\ndef build():\n    return Model()\n"
    (package / inner / "model.py").write_text(source, encoding="utf-8")
    with pytest.raises(AutoloraError) as raised:
        load_target(str(package / inner / "model.py"), R8)
    said = str(raised.value)
    assert "attempted relative import" in said
    assert f"line 1: from {dots}layers import Model" in said
    folder, module, named = re.search(r"in (.*), TARGET is (.*), or (.*):NAME$", said).groups()
    assert (folder, module) == (str(tmp_path), named)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(folder)
    for target in (module, f"{module}:build"):
        assert len(captured(target, batch_size=2, seq_len=8).layers) == 8


def test_without_example_inputs_every_layer_gets_batch_times_length(write):
    source = BLOCK + "model = Model()\ndel example_inputs"
    found = captured(write(source), batch_size=2, seq_len=8)
    assert {problem.tokens for problem in found.problems} == {16}
    assert "no example_inputs" in found.notes[0]
    first = [problem for name, problem in found.layers if name == "blocks.0.q_proj"]
    assert [problem.gradients for problem in first] == [("A", "B"), ("X", "A", "B")]
    assert captured(write(source), tokens=[4]).notes == []


def test_a_model_that_needs_data_falls_back_and_says_so(write, caplog):
    source = MODEL + "Block.forward = lambda self, x: self.q_proj(x) * x.detach().numpy().size"
    found = captured(write(source), batch_size=2, seq_len=8)
    assert {problem.tokens for problem in found.problems} == {16}
    assert "cannot be run without its numbers" in found.notes[0]
    assert found.notes[0] in caplog.text
    (note,) = captured(write(source), tokens=[4]).notes
    assert "which layers need the gradient of their input is assumed" in note


def test_example_inputs_are_made_without_numbers(write):
    source = MODEL + (
        "class Packed(Model):\n"
        "    def forward(self, mask, ids):\n"
        "        return super().forward(ids[mask][None])\n"
        "model = Packed()\n"
        "def example_inputs(batch_size, seq_len):\n"
        "    ids = torch.zeros(batch_size, seq_len, dtype=torch.long)\n"
        "    huge = torch.randn(2**20, 2**20)\n"
        "    return {'mask': torch.arange(seq_len) < ids.new_tensor([[3], [5]]), 'ids': ids}\n"
    )
    assert {p.tokens for p in captured(write(source), batch_size=2, seq_len=8).problems} == {8}


def test_example_inputs_that_need_numbers_get_them(write):
    source = MODEL + (
        "def example_inputs(batch_size, seq_len):\n"
        "    noise = torch.rand(batch_size, seq_len).numpy()\n"
        "    return torch.from_numpy(noise > 2).long()\n"
    )
    assert captured(write(source), batch_size=2, seq_len=8).problems[0].tokens == 16


def test_a_failure_behind_the_last_layer_loses_nothing(write):
    source = MODEL + (
        "class Picky(Model):\n"
        "    def forward(self, ids):\n"
        "        return super().forward(ids).sum().item()\n"
        "model = Picky()"
    )
    assert captured(write(source), batch_size=2, seq_len=8).notes == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [("7", "not a int"), ("None", "not a NoneType"), ("1 / 0", "line 34, in example_inputs")],
)
def test_bad_example_inputs(write, returned, message):
    source = MODEL + f"def example_inputs(batch_size, seq_len):\n    return {returned}"
    with pytest.raises(AutoloraError) as raised:
        captured(write(source))
    assert message in str(raised.value)


@pytest.mark.parametrize("form", ["ids", "(ids,)", "[ids]", "{'ids': ids}"])
def test_forms_of_example_inputs(write, form):
    source = MODEL + (
        "def example_inputs(batch_size, seq_len):\n"
        f"    ids = torch.zeros(batch_size, seq_len, dtype=torch.long)\n    return {form}"
    )
    assert captured(write(source), batch_size=1, seq_len=7).problems[0].tokens == 7


def test_dtypes_of_added_adapters(write):
    adapters = Adapters(8, dtype=torch.bfloat16)
    assert _dtypes(captured(write(MODEL), adapters)) == ("bfloat16",) * 3
    adapters = Adapters(8, dtype=torch.bfloat16, adapter_dtype=torch.float32)
    assert _dtypes(captured(write(MODEL), adapters)) == ("bfloat16", "float32", "float32")
    adapters = Adapters(
        8, dtype=torch.bfloat16, adapter_dtype=torch.float32, compute_dtype=torch.bfloat16
    )
    assert _dtypes(captured(write(MODEL), adapters)) == ("bfloat16", "float32", "bfloat16")


def test_dtypes_under_autocast(write):
    found = captured(write(MODEL), autocast=torch.bfloat16)
    assert _dtypes(found) == ("bfloat16", "float32", "bfloat16")


def test_a_float_input_takes_the_dtype_asked_for(write):
    source = BLOCK + (
        "model = nn.Sequential(Block(), Block())\n"
        "def example_inputs(batch_size, seq_len): return torch.zeros(batch_size, seq_len, 64)"
    )
    found = captured(write(source), Adapters(8, dtype=torch.bfloat16))
    assert (len(found.layers), found.notes, found.left) == (8, [], [])


def test_target_modules(write):
    for target_modules in (["q_proj", "up_proj"], r"blocks\.\d\.(q|up)_proj"):
        found = captured(write(MODEL), Adapters(8, target_modules=target_modules))
        assert {name.rpartition(".")[2] for name, _ in found.layers} == {"q_proj", "up_proj"}


OURS = BLOCK + "import autolora\nmodel = autolora.add_lora(Model(), rank=4, alpha=8)\n"
PEFT = BLOCK + (
    "import peft\n"
    "config = peft.LoraConfig(r=4, target_modules='all-linear')\n"
    "config.lora_dropout, config.use_dora = {dropout}, {dora}\n"
    "model = peft.get_peft_model(Model(), config)\n"
)


def _peft(dropout: float = 0.0, dora: bool = False) -> str:
    return PEFT.replace("{dropout}", str(dropout)).replace("{dora}", str(dora))


@pytest.mark.parametrize("kind", ["ours", "peft"])
def test_a_model_that_brings_its_adapters(write, kind):
    path = write(OURS if kind == "ours" else _peft())
    if kind == "peft":
        pytest.importorskip("peft")
    found = captured(path, Adapters(), batch_size=2, seq_len=3)
    assert {(problem.rank, problem.tokens) for problem in single(found)} == {(4, 6)}
    assert found.uses[found.problems[0]] == 2
    assert found.problems[0].gradients == ("A", "B")
    assert found.notes == []
    adapters = Adapters(16, dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    found = captured(path, adapters)
    assert _dtypes(found) == ("bfloat16", "float32", "bfloat16")
    assert {problem.rank for problem in single(found)} == {4}
    assert "brings its own LoRA layers" in found.notes[0]
    found = captured(path, Adapters(adapter_dtype=torch.bfloat16))
    assert _dtypes(found) == ("float32", "bfloat16", "bfloat16")


def test_layers_that_cannot_be_tuned(write):
    source = (
        _peft()
        + "model.add_adapter('two', config)\nmodel.base_model.set_adapter(['default', 'two'])\n"
    )
    with pytest.raises(AutoloraError, match=r"of the 8 LoRA layers.*several active adapters"):
        load_target(write(source), Adapters())


def test_dropout_and_dora_are_problems_of_their_own(write):
    found = captured(write(_peft(dropout=0.1)), Adapters(), batch_size=2, seq_len=3)
    assert {(p.dropout, p.variant) for p in found.problems} == {(True, "lora")}
    found = captured(write(_peft(dora=True)), Adapters(), batch_size=2, seq_len=3)
    assert {(p.dropout, p.variant) for p in found.problems} == {(False, "dora")}
    assert {p.gradients for p in found.problems} == {("A", "B", "M"), ("X", "A", "B", "M")}


def test_no_adapters_and_no_rank(write):
    with pytest.raises(AutoloraError, match=r"has no LoRA layers; .*--rank"):
        load_target(write(MODEL), Adapters())


@pytest.mark.parametrize("target", ["nowhere.py", "nowhere.py:model", "nowhere.json", "org/model"])
def test_a_target_that_is_not_there(target):
    with pytest.raises(AutoloraError, match="no such file"):
        load_target(target, R8)


def test_a_layer_called_twice_poses_each_problem_once():
    model = autolora.add_lora(nn.Sequential(nn.Linear(8, 8)), rank=2)
    model.forward = lambda x: [model[0](x), model[0](x), model[0](x[:1])]
    found = run_problems(model, torch.zeros(3, 5, 8))
    assert [problem.tokens for _, problem in found.layers] == [15, 5]


def test_a_model_with_quantised_layers():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    del bitsandbytes

    def layer():
        return quantised(torch.randn(64, 64), None, "nf4")

    model = nn.Sequential(nn.Embedding(9, 64), layer(), nn.Linear(64, 64), layer())
    ids = torch.zeros(2, 5, dtype=torch.long)
    for target_modules in (["1"], ["3"], ["1", "2", "3"]):
        adapted = autolora.add_lora(deepcopy(model), rank=4, target_modules=target_modules)
        found = run_problems(adapted, ids)
        adapted.train()(ids)
        assert set(found.layers) == {(e.name, e.problem) for e in autolora.explain(adapted).layers}
        assert [name for name, _ in found.layers] == target_modules


def test_running_changes_nothing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    model = autolora.add_lora(Twice(), rank=2).eval()
    found = run_problems(model, torch.ones(5, 8))
    assert found.left == [("unused", "not called")]
    assert not any(module.training or "forward" in vars(module) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_autocast_of_the_model_itself_is_seen():
    model = autolora.add_lora(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                x = self.inner[0](x)
            return self.inner[1](x.float())

    found = run_problems(Inner().to("meta"), torch.zeros(5, 8, device="meta"), device="cpu")
    assert [problem.dtype for _, problem in found.layers] == ["bfloat16", "float32"]


def test_inputs_that_pose_no_problem_are_left_with_a_reason():
    model = autolora.add_lora(nn.Sequential(nn.Linear(8, 8)), rank=2)
    assert run_problems(model, torch.zeros(8)).left == [("0", "its input has no tokens")]
    assert run_problems(model, torch.zeros(0, 8)).left == [("0", "its input has no tokens")]
    left = run_problems(model, torch.zeros(2, 8, dtype=torch.float64)).left
    assert left == [("0", "its input is torch.float64, its base weight torch.float32")]


def test_problems_without_running():
    model = autolora.add_lora(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), rank=2)
    found = model_problems(model, [4, 8])
    assert len(found.problems) == 6  # the first layer with and without dX, the second with it
    assert all(problem.device == "cpu" for problem in found.problems)
    frozen = model[1].lora_A.weight
    frozen.requires_grad_(False)
    assert model_problems(model, [4]).problems[-1].gradients == ("X", "B")


def test_a_device_without_graphs_is_a_reason():
    model = autolora.add_lora(nn.Sequential(nn.Linear(8, 8)), rank=2).to("meta")
    target = Target(model, None)
    with pytest.raises(AutoloraError, match="device must be one of cpu, cuda"):
        capture(target, device="meta")


def _dtypes(found) -> tuple[str, str, str]:
    (dtypes,) = {(p.dtype, p.adapter_dtype, p.compute_dtype) for p in found.problems}
    return dtypes


# ---- Hugging Face configurations

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **SIZES,
    "dtype": "float32",
}


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("transformers")

    def config(**changes) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**LLAMA, **changes}), encoding="utf-8")
        return str(path)

    return config


def test_a_configuration(config):
    found = captured(config(), batch_size=2, seq_len=16)
    assert [(p.in_features, p.out_features, p.gradients) for p in single(found)] == [
        (32, 32, ("A", "B")),  # q_proj of the first block
        (32, 16, ("A", "B")),  # its k_proj and v_proj
        (32, 32, ("X", "A", "B")),
        (32, 48, ("X", "A", "B")),
        (48, 32, ("X", "A", "B")),
        (32, 16, ("X", "A", "B")),
    ]
    assert {problem.tokens for problem in found.problems} == {32}
    assert len(found.layers) == 14  # all but the output embedding
    assert found.notes == []


def test_a_folder_with_a_configuration(config):
    folder = str(Path(config()).parent)
    assert len(captured(folder).layers) == 14
    with pytest.raises(AutoloraError, match=r"holds no config\.json"):
        load_target(str(Path(folder).parent), R8)


def test_a_narrow_base_gets_float32_adapters_as_from_peft(config):
    assert _dtypes(captured(config(dtype="bfloat16"))) == ("bfloat16", "float32", "float32")
    adapters = Adapters(8, adapter_dtype=torch.bfloat16)
    assert _dtypes(captured(config(dtype="bfloat16"), adapters)) == ("bfloat16",) * 3
    assert _dtypes(captured(config(), Adapters(8, dtype=torch.float64))) == ("float64",) * 3


BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 128}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "is_encoder_decoder": True,
    "d_model": 64,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 16,
}
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32}
WHISPER = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_source_positions": 100,
    "vocab_size": 51865,
}


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        (BERT, {512, 4}),  # the pooler reads one token of each sequence
        ({**BERT, "architectures": None}, {512}),
        (T5, {2048}),
        (VIT, {4 * 5}),  # 4 patches of 16 × 16 and a class token
        (WHISPER, {400, 4 * 448}),
        ({"model_type": "gpt_neox", "architectures": ["NoSuchClass"]}, {2048}),
    ],
    ids=["bert", "bert without architectures", "t5", "vit", "whisper", "unknown architecture"],
)
def test_other_kinds_of_model(config, changes, tokens):
    found = captured(config(**changes))
    assert {problem.tokens for problem in found.problems} == tokens
    assert not any("cannot be run" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "cannot read"),
        ("{}", "cannot read"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot"),
        ('{"model_type": "llama", "hidden_size": 0}', "cannot"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Evil"}}', "cannot read"),
    ],
)
def test_a_broken_configuration(config, text, message):
    path = Path(config())
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AutoloraError) as raised:
        load_target(str(path), R8)
    assert message in str(raised.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["plain", "autocast"])
def test_a_configuration_poses_what_training_with_peft_will_ask(config, dtype, autocast):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    path = config(dtype=dtype)
    found = captured(path, autocast=autocast, batch_size=2, seq_len=16)

    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(path), dtype=kind
    )
    lora = peft.LoraConfig(r=8, target_modules="all-linear")
    model = peft.get_peft_model(model, lora).train()
    taken = autolora.accelerate(model).taken
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        model(input_ids=torch.zeros(2, 16, dtype=torch.long))
    asked = {
        (name.removeprefix("base_model.model."), choice.problem)
        for name in taken
        for choice in model.get_submodule(name)._autolora.choices.values()
    }
    assert asked == set(found.layers)


def test_a_quantised_configuration_is_taken_as_dense(config):
    found = captured(
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    )
    assert "quantisation" in found.notes[0]


def test_transformers_missing(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AutoloraError, match=r"pip install 'autolora\[peft\]'"):
        load_target(config(), R8)


def test_seventy_billion_parameters_take_no_memory(config):
    import transformers  # noqa: F401  # its import is not what is measured

    path = config(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        dtype="bfloat16",
    )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    target = load_target(path, Adapters(16))
    found = capture(target, device="cpu", batch_size=1, seq_len=4096)
    assert sum(p.numel() for p in target.model.parameters()) > 70e9
    assert len(found.layers) == 560
    assert len(single(found)) == 6
    assert time.process_time() - start < 60  # seconds of this process; about 2 when alone
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
