"""``autolora cache path``: the files of the search path, and what they contain."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolora.cache.files.disk import Unreadable
from autolora.cache.files.paths import search_path, site_path
from autolora.cache.lookup.closest import similarity
from autolora.cli.cache.environments import local_environments
from autolora.cli.cache.files import MISSING, CacheFile, read_table
from autolora.cli.output.console import print_json, print_line, print_lines, print_paragraph
from autolora.cli.output.tables import environment_line
from autolora.environment import Environment
from autolora.units import count


@dataclass(frozen=True, slots=True)
class _Layer:
    """A file of the search path.

    Args:
        role: ``"written"``, ``"read"`` or ``"site folder"``.
        path: of the file.
        exists: whether it exists.
        records: number of valid records, by the id of their environment.
        environments: of these records, by id.
        damage: why the file, or a part of it, cannot be used.
    """

    role: str
    path: Path
    exists: bool
    records: Mapping[str, int] = field(default_factory=dict)
    environments: Mapping[str, Environment] = field(default_factory=dict)
    damage: str = ""

    def fitting(self, environment: Environment) -> int:
        """The number of records of an environment."""
        return self.records.get(environment.id, 0)

    def related(self, environment: Environment) -> int:
        """The number of records of the same device with other libraries or settings."""
        return sum(
            self.records[name]
            for name, other in self.environments.items()
            if other != environment and similarity(environment, other)
        )


def run(options: Namespace) -> int:
    """Prints the layers of the search path, or only the path that tuning writes."""
    paths = search_path()
    if options.write:
        print_line(str(paths[0]))
        return 0
    layers = [_layer(path, _role(number, path)) for number, path in enumerate(paths)]
    machine = local_environments() if any(layer.records for layer in layers) else []
    obstacle = obstacle_to_writing(paths[0])
    if options.json:
        print_json(_json(layers, machine, obstacle))
    else:
        _print(layers, machine, obstacle)
    return 0


def obstacle_to_writing(path: Path) -> str:
    """Why a cache file cannot be written there, ``""`` if it can."""
    target = os.path.realpath(path)
    if os.path.isdir(target):  # noqa: PTH112  # Path.is_dir may raise
        return "it is a folder"
    if os.path.lexists(target) and not os.access(target, os.W_OK):
        return "the file is read-only"
    folder = Path(target).parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):  # noqa: PTH112  # likewise
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} is read-only"
    return ""


def _role(number: int, path: Path) -> str:
    if number == 0:
        return "written"
    return "site folder" if path == site_path() else "read"


def _layer(path: Path, role: str) -> _Layer:
    try:
        table = read_table(CacheFile(str(path), path))
    except Unreadable as error:
        damage = str(error)
        there = damage != MISSING
        return _Layer(role, path, there, damage=damage if there else "")
    table.check_all()
    records = Counter(key.environment for key in table.lines)
    environments = {name: table.environments[name] for name in records}
    return _Layer(role, path, True, records, environments, table.invalid_summary)


def _json(
    layers: Sequence[_Layer], machine: Sequence[Environment], obstacle: str
) -> dict[str, Any]:
    return {
        "path": str(layers[0].path),
        "writable": not obstacle,
        "obstacle": obstacle,
        "reads": [str(layer.path) for layer in layers],
        "machine": {environment.id: environment.to_json() for environment in machine},
        "layers": [
            {
                "path": str(layer.path),
                "role": layer.role,
                "exists": layer.exists,
                "records": sum(layer.records.values()),
                "damage": layer.damage,
                "this_environment": {e.id: layer.fitting(e) for e in machine},
                "same_device": {e.id: layer.related(e) for e in machine},
            }
            for layer in layers
        ],
    }


def _print(layers: Sequence[_Layer], machine: Sequence[Environment], obstacle: str) -> None:
    for number, layer in enumerate(layers, 1):
        print_line(f"{number}. {layer.path}")
        print_lines(f"   {line}" for line in _about(layer, machine))
    print_line()
    if machine:
        print_line("This machine:")
        print_lines(f"  {e.id}  {environment_line(e)}" for e in machine)
        print_line()
    if obstacle:
        print_paragraph(f"The first cannot be written: {obstacle}.")
    else:
        print_line("The first can be written; 'autolora tune' does.")


def _about(layer: _Layer, machine: Sequence[Environment]) -> list[str]:
    """The description of a layer, in lines."""
    if not layer.exists:
        return [f"{layer.role}; not there"]
    lines = [f"{layer.role}; {count(sum(layer.records.values()), 'record')}"]
    if layer.records:
        for environment in machine:
            related = layer.related(environment)
            also = f", {related} of the same device in others" if related else ""
            place = f"environment {environment.id} ({environment.device})"
            lines.append(f"{layer.fitting(environment)} of {place}{also}")
    return [*lines, f"damaged: {layer.damage}"] if layer.damage else lines
