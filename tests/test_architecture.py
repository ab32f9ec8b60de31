"""The rooms of the package, held to what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autolora"

# folder or module → the rooms that it may import, beside itself and what everybody may
MAY_IMPORT = {
    "problem": set(),
    "objective": set(),
    "environment": set(),
    "graphs": {"problem", "objective"},
    "cache.records": {"problem", "environment", "objective"},
    "cache.files": {"problem", "environment", "cache.records"},
    "cache.lookup": {"problem", "environment", "objective", "cache.records", "cache.files"},
    "cache.joining": {"environment", "cache.records", "cache.files"},
    "cache.differences": {"cache.records"},
    "report": {"problem", "environment", "objective", "graphs", "cache"},
    "nn": {"problem", "environment", "objective", "graphs", "cache"},
    "capture": {"problem", "objective", "graphs", "nn"},
    "timing": {"problem", "environment", "objective", "graphs", "cache"},
    "cluster": {"problem", "environment", "cache", "timing"},
    "tuning": {
        "problem",
        "environment",
        "objective",
        "graphs",
        "cache",
        "nn",
        "capture",
        "timing",
        "cluster",
    },
    "integrations": {"problem", "cache", "nn", "capture", "timing", "tuning"},
    "cli": {
        "problem",
        "environment",
        "objective",
        "graphs",
        "cache",
        "nn",
        "capture",
        "timing",
        "cluster",
        "tuning",
        "integrations",
        "report",
    },
}
LARGEST_FOLDER = 15  # modules
LONGEST_FILE = 300  # lines
EVERYBODY = {"errors", "units", "version"}
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


def test_no_module_imports_itself_by_way_of_others():
    modules = {name_of(path): path for path in FILES}
    imports = {
        name: {target.removeprefix("autolora.") for target in imported(path)} & modules.keys()
        for name, path in modules.items()
    }
    while leaves := [name for name, targets in imports.items() if not targets & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, "these import each other"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=str)
def test_folders_stay_small(folder):
    assert len([path for path in folder.glob("*.py") if path in FILES]) <= LARGEST_FOLDER


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
