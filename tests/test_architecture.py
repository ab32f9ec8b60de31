"""The rooms of the package, held to what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autolora"

# room → the rooms it may import, beside itself and what everybody may: errors and version
MAY_IMPORT = {
    "problem": set(),
    "objective": set(),
    "environment": set(),
    "graphs.contraction": set(),
    "graphs.tensors": {"problem", "graphs.contraction"},
    "graphs.forward": {"problem", "graphs.contraction", "graphs.tensors"},
    "graphs.backward": {"problem", "graphs.contraction", "graphs.tensors"},
    "graphs.baseline": {"problem", "graphs.contraction", "graphs.tensors"},
    "graphs.graph": {
        "problem",
        "graphs.contraction",
        "graphs.tensors",
        "graphs.forward",
        "graphs.backward",
        "graphs.baseline",
    },
    "graphs.space": {"problem", "graphs"},
    "graphs.onednn": set(),
    "graphs.dropout": set(),
    "graphs.quantised": set(),
    "graphs.source": {"problem", "graphs"},
    "graphs.function": {"problem", "graphs"},
    "graphs.reference": {"graphs.function", "graphs.quantised"},
    "cache": {"problem", "environment", "objective"},
    "nn": {"problem", "environment", "objective", "graphs", "cache"},
    "tuning.clock": set(),
    "tuning.statistics": set(),
    "tuning.stopwatch": {"tuning.clock", "tuning.statistics"},
    "tuning.conditions": {"cache"},
    "tuning.quantise": set(),
    "tuning.data": {"problem", "graphs", "tuning.quantise"},
    "tuning.screen": {"problem", "graphs", "tuning.data", "tuning.clock"},
    "tuning.accuracy": {"problem", "graphs", "cache", "tuning.data"},
    "tuning.effort": {"tuning.stopwatch"},
    "tuning.budget": {"tuning.effort"},
    "tuning.ladder": {"problem", "cache"},
    "tuning.tokens": {"tuning.ladder"},
    "tuning.peers": {"environment", "cache"},
    "tuning.line": {"tuning.peers"},
    "tuning.letters": {"problem", "cache", "tuning.line", "tuning.peers"},
    "tuning.cluster": {
        "problem",
        "environment",
        "cache",
        "tuning.device",
        "tuning.letters",
        "tuning.line",
        "tuning.peers",
        "tuning.result",
    },
    "tuning.torchrun": {"tuning.cluster", "tuning.peers"},
    "tuning.claims": {
        "problem",
        "environment",
        "objective",
        "graphs",
        "cache",
        "tuning.budget",
        "tuning.cluster",
    },
    "tuning.keeping": {"problem", "environment", "cache", "tuning"},
    "tuning.entrants": {"problem", "objective", "graphs", "cache", "tuning.screen"},
    "tuning.measurement": {"problem", "environment", "objective", "graphs", "cache", "tuning"},
    "tuning.tuner": {"problem", "environment", "objective", "graphs", "cache", "tuning"},
    "tuning": {"problem", "environment", "objective", "graphs", "cache", "nn"},
    "cli": {"problem", "environment", "objective", "graphs", "cache", "nn", "tuning"},
}
EVERYBODY = {"errors", "version"}
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module):
    """The longest entry of the table that holds the module."""
    parts = module.split(".")
    rooms = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((room for room in rooms if room in MAY_IMPORT), None)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.startswith("autolora"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_what_it_may(path):
    module = name_of(path)
    if module in EVERYBODY:
        return
    room = room_of(module)
    assert room is not None, f"{module} stands in no room"
    for name in imported(path):
        target = name.removeprefix("autolora.")
        if not name.startswith("autolora.") or target in EVERYBODY:
            continue
        if not (PACKAGE / (target.replace(".", "/") + ".py")).exists():
            continue  # a package or an attribute; its module is listed as well
        allowed = MAY_IMPORT[room] | {room}
        assert any(target == one or target.startswith(f"{one}.") for one in allowed), name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_command_line_prints(path):
    if name_of(path).startswith("cli"):
        return
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    assert not [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert "sys.argv" not in path.read_text()


@pytest.mark.parametrize("module", ["graphs.contraction", "graphs.forward", "graphs.backward"])
def test_the_formulas_know_nothing_of_torch(module):
    path = PACKAGE / (module.replace(".", "/") + ".py")
    assert not [name for name in imported(path) if name.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import autolora", {"torch", "numpy", "rich", "transformers", "peft", "filelock"}),
        (
            "import autolora, torch; m = autolora.add_lora("
            "torch.nn.Sequential(torch.nn.Linear(3, 3)), rank=1); m(torch.ones(2, 3))",
            {"rich", "transformers", "peft"},
        ),
    ],
)
def test_imports_stay_light(code, unwanted):
    check = f"{code}\nimport sys\nprint(*sorted({unwanted!r} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_every_public_name_is_there():
    import autolora

    for name in autolora.__all__:
        assert getattr(autolora, name) is not None
    assert set(autolora.__all__) <= set(dir(autolora))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = autolora.nothing
