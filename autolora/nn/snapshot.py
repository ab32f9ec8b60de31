"""A plan held in memory: all records that may answer for the layers of a model, as they were read.

It holds the records of every environment, token count, dtype, rank and gradient need that fit the
layers' sizes, file by file: the model may still be moved, cast, or given another adapter, and the
plan answers whatever the files would have answered then. It is copied between processes as text
that is checked on arrival like any cache file.
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
    """What layers choose their graphs from.

    Args:
        lookup: the records, in memory.
        objective: what graphs are chosen for where a layer was not told.
        origin: where it comes from, in words.
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
        own: read by this process.
        agreed: of rank 0, None where there is none.
        kept: the device types whose environment is another than rank 0's, so that ``own`` holds.
        lasting: whether tuning leaves it as it is: the user froze the model, not the group.
    """

    own: Snapshot
    agreed: Snapshot | None = None
    kept: frozenset[str] = frozenset()
    lasting: bool = True

    @property
    def objective(self) -> Objective:
        """What graphs are chosen for where a layer was not told."""
        return (self.agreed or self.own).objective

    def of(self, device: str) -> Snapshot:
        """The plan for a type of devices."""
        return self.own if self.agreed is None or device in self.kept else self.agreed


def read_snapshot(sizes: Sizes, objective: Objective, files: Sequence[Path]) -> Snapshot:
    """The plan for layers of some sizes, read from cache files now."""
    layers = []
    for path in files:
        layer = TimingCache.load(path)
        layers.append(TimingCache(_fitting(layer, sizes), path))
    return Snapshot(Lookup.of(*layers), objective)


def write_message(plan: Snapshot, environments: Mapping[str, Environment]) -> str:
    """A plan, and the environments of its process by device type, as ASCII text."""
    return dumps(
        {
            "objective": plan.objective.kind,
            "max_saved_bytes": plan.objective.max_saved_bytes,
            "environments": [environment.to_json() for environment in environments.values()],
            "files": [[_shown(layer), text_of(layer.records)] for layer in plan.lookup.layers],
        }
    )


def read_message(message: str, origin: str) -> tuple[Snapshot, dict[str, Environment]]:
    """What :func:`write_message` wrote.

    Args:
        message: the text, whatever it be.
        origin: of the plan, in words.

    Raises:
        ValueError: it is none, or a record in it is none; the message says what.
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
    """The path of a file, fit to be printed elsewhere."""
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
