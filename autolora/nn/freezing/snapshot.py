"""Plans: the cache records for the layers of a model, held in memory.

A plan contains the records of every environment, token count, dtype, rank and gradient need that
fit the sizes of the layers, file by file. It therefore gives the same answers as the files even if
the model is moved, cast, or given another adapter. It is sent between processes as text, which is
validated like a cache file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.cache.records.checks import dumps, loads, members, text
from autolora.cache.records.document import NewerSchema, parse, text_of
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.objective import Objective

Sizes = frozenset[tuple[int, int]]  # in_features and out_features of each layer

FROZEN = "frozen"

_MEMBERS = ("objective", "max_saved_bytes", "environments", "files")
_LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A plan: the records that layers choose their graphs from.

    Args:
        lookup: of the records.
        objective: of layers without their own.
        origin: ``"frozen"`` or ``"rank 0's plan"``.
    """

    lookup: Lookup
    objective: Objective
    origin: str = FROZEN

    @property
    def records(self) -> list[Record]:
        """All records of all files."""
        return [record for layer in self.lookup.layers for record in layer.records]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the records are from."""
        return tuple(str(layer.path) for layer in self.lookup.layers if layer.records)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshots:
    """The plan of each device type.

    Args:
        own: the plan read by this process.
        agreed: rank 0's plan, None if there is none.
        kept: device types that use ``own``, since their environment differs from rank 0's.
        lasting: whether it stays after tuning, since the user froze the model.
    """

    own: Snapshot
    agreed: Snapshot | None = None
    kept: frozenset[str] = frozenset()
    lasting: bool = True

    @property
    def objective(self) -> Objective:
        """The objective of layers without their own."""
        return (self.agreed or self.own).objective

    def of(self, device: str) -> Snapshot:
        """The plan for a device type."""
        return self.own if self.agreed is None or device in self.kept else self.agreed


def read_snapshot(sizes: Sizes, objective: Objective, files: Sequence[Path]) -> Snapshot:
    """Reads the plan for layers of some sizes from cache files."""
    layers = (TimingCache(_fitting(TimingCache.load(path), sizes), path) for path in files)
    return Snapshot(Lookup.of(*layers), objective)


def write_message(plan: Snapshot, environments: Mapping[str, Environment]) -> str:
    """Writes a plan and the environments of its process, by device type, as ASCII text."""
    return dumps(
        {
            "objective": plan.objective.kind,
            "max_saved_bytes": plan.objective.max_saved_bytes,
            "environments": [environment.to_json() for environment in environments.values()],
            "files": [[_shown(layer), text_of(layer.records)] for layer in plan.lookup.layers],
        }
    )


def read_message(message: str, origin: str) -> tuple[Snapshot, dict[str, Environment]]:
    """Reads the text of :func:`write_message`, which is not trusted.

    Args:
        message: the text.
        origin: of the plan.

    Raises:
        ValueError: the text or a record in it is invalid.
    """
    fields = members("a plan", loads(message), _MEMBERS)
    environments, files = fields["environments"], fields["files"]
    if not isinstance(environments, list) or not isinstance(files, list):
        raise ValueError("environments and files must be lists")
    try:
        objective = Objective(fields["objective"], fields["max_saved_bytes"])
        layers = [_layer(file) for file in files]
    except (AutoloraError, NewerSchema) as error:
        raise ValueError(str(error)) from None
    made = [Environment.from_json(environment) for environment in environments]
    return Snapshot(Lookup.of(*layers), objective, origin), {each.device: each for each in made}


def _fitting(layer: TimingCache, sizes: Sizes) -> Iterator[Record]:
    for problem, environment in layer.problems():
        if problem.layer_sizes <= sizes:
            record = layer.find(problem, environment)
            if record is not None:
                yield record


def _shown(layer: TimingCache) -> str:
    """The path of a file, with characters replaced that cannot be printed."""
    path = str(layer.path)
    return "".join(c if c.isprintable() else "?" for c in path)[:_LONGEST_PATH] or "?"


def _layer(file: Any) -> TimingCache:
    if not isinstance(file, list) or len(file) != 2 or not isinstance(file[1], str):
        raise ValueError("each of files must be a path and the text of a cache file")
    path, content = text("a path", file[0], most=_LONGEST_PATH), file[1]
    table = parse(content.encode())
    table.check_all()
    if table.invalid_summary:
        raise ValueError(table.invalid_summary)
    found = (table.record(key) for key in list(table.lines))
    return TimingCache((record for record in found if record is not None), path)
