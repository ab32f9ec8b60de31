"""A table: the records of one file by what they answer, each a line until it is asked for.

Ten thousand records are read in the time that checking a few hundred takes. A line is checked when
its record is asked for, and every line is before it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from autolora.cache.records.checks import LONGEST, dumps, loads
from autolora.cache.records.record import Record, better
from autolora.environment import Environment
from autolora.problem.base import DEFAULT_KIND, EAGER, BaseProblem, field_names, size_names
from autolora.problem.kinds import KINDS, problem_from_json

Family = tuple[tuple[int, ...], str]

_VALUE = r'(?:"\w*"|true|false|\[[\w",]*\])'


class Key(NamedTuple):
    """What a record answers; sorts as records stand in a file: by size, tokens last.

    Args:
        sizes: of the problem, but for the tokens.
        rest: the problem's other fields, as they are written in a record's line.
        tokens: of the problem.
        environment: its id.
    """

    sizes: tuple[int, ...]
    rest: str
    tokens: int
    environment: str

    @classmethod
    def of(cls, problem: BaseProblem, environment: Environment) -> Key:
        """The key of a problem in an environment."""
        return cls(*family_of(problem), problem.tokens, environment.id)

    @classmethod
    def of_line(cls, line: str) -> Key | None:
        """The key of a line that is written as :attr:`Record.line` writes; else None."""
        named = _KIND.match(line) if line.startswith(_NAMED) else None
        kind = KINDS.get(named[1] if named else DEFAULT_KIND)
        if kind is None or not line.endswith("}"):
            return None
        head, place = _head(kind)
        match = head.match(line)
        if match is None:
            return None
        *sizes, rest, environment = match.groups()
        numbers = list(map(int, sizes))
        tokens = numbers.pop(place)
        prefix = f',"kind":"{named[1]}"' if named else ""
        return cls(tuple(numbers), prefix + rest, tokens, environment)

    @property
    def family(self) -> Family:
        """The key without tokens and environment."""
        return self[:2]

    @property
    def problem(self) -> BaseProblem:
        """The problem.

        Raises:
            ValueError: the line that the key is of holds none.
        """
        rest = json.loads(f"{{{self.rest[1:]}")
        kind = KINDS[rest.get("kind", DEFAULT_KIND)]
        names = [name for name in size_names(kind) if name != "tokens"]
        sizes = dict(zip(names, self.sizes, strict=True))
        return problem_from_json({**sizes, "tokens": self.tokens, **rest})


def family_of(problem: BaseProblem) -> Family:
    """What problems have in common that differ in tokens only: the first fields of their keys."""
    sizes = problem.sizes
    rest = {name: value for name, value in problem.to_json().items() if name not in sizes}
    del sizes["tokens"]
    return tuple(sizes.values()), f",{dumps(rest)[1:]}"


_NAMED = '{"problem":{"kind":'
_KIND = re.compile(r'\{"problem":\{"kind":"(\w+)",', re.ASCII)


@lru_cache(maxsize=64)
def _head(kind: type[BaseProblem]) -> tuple[re.Pattern[str], int]:
    """How a record's line begins, with a group for each size, and the place of the tokens there."""
    sizes = size_names(kind)
    named = "" if kind.kind == DEFAULT_KIND else rf'"kind":"{kind.kind}",'
    numbers = ",".join(rf'"{name}":([1-9]\d{{0,15}})' for name in sizes)
    names = [name for name in field_names(kind) if name not in (*sizes, "mode")]
    rest = ",".join(rf'"{name}":{_VALUE}' for name in names) + rf'(?:,"mode":"(?!{EAGER}")\w+")?'
    pattern = rf'\{{"problem":\{{{named}{numbers}(,{rest}\}}),"environment":"([0-9a-f]{{12}})",'
    return re.compile(pattern, re.ASCII), sizes.index("tokens")


class Table:
    """Records by key.

    Args:
        environments: those that the lines refer to, by id.
        lines: the records' lines, unchecked but for their keys.
        invalid: why other records of the same file could not be used.
    """

    def __init__(
        self,
        environments: Mapping[str, Environment] | None = None,
        lines: Mapping[Key, str] | None = None,
        invalid: Iterable[str] = (),
    ) -> None:
        self.environments = dict(environments or {})
        self.lines = dict(lines or {})
        self.invalid = list(invalid)
        self._records: dict[Key, Record] = {}  # of the lines that have been checked
        self._families: dict[Family, dict[str, list[int]]] | None = None

    @property
    def invalid_summary(self) -> str:
        """What is wrong with some of the entries in words, ``""`` if nothing is known to be."""
        if not self.invalid:
            return ""
        count = "1 entry" if len(self.invalid) == 1 else f"{len(self.invalid)} entries"
        return f"{count} cannot be used ({self.invalid[0][:200]})"

    def record(self, key: Key) -> Record | None:
        """The record of a key; a line that holds none is dropped, and the reason kept."""
        line = self.lines.get(key)
        if line is None or key in self._records:
            return self._records.get(key)
        try:
            _checked_length(line)
            record = Record.from_json(loads(line), self.environments)
            self._keep(key, record)
        except ValueError as error:
            self.invalid.append(str(error))
            self.lines.pop(key, None)
            return None
        return record

    def check_all(self, known: Table | None = None) -> None:
        """Checks every line that has not been, except those that ``known`` has already checked."""
        for key, line in list(self.lines.items()):
            if known is not None and key in known._records and known.lines[key] == line:
                self._records[key] = known._records[key]
            self.record(key)

    def add(self, record: Record) -> None:
        """Joins one record: the better one stays."""
        key = Key.of(record.problem, record.environment)
        known = self.record(key)
        self.environments[record.environment.id] = record.environment
        self._keep(key, record if known is None else better(record, known))
        self._families = None

    def free_records(self) -> None:
        """Keeps of the records that have been checked only the lines, which take less memory."""
        self._records.clear()

    def remove(self, record: Record) -> None:
        """Takes a record out, if what stands in its place is that one to the letter."""
        key = Key.of(record.problem, record.environment)
        if (known := self.record(key)) is not None and known.line == record.line:
            del self.lines[key], self._records[key]
            self._families = None

    def subset(self, keys: Iterable[Key]) -> Table:
        """Some of the records."""
        found = [key for key in keys if key in self.lines]
        result = Table(self.environments, {key: self.lines[key] for key in found})
        result._records = {key: self._records[key] for key in found if key in self._records}
        return result

    def joined(self, other: Table) -> Table:
        """The records of both, the better one where both have one."""
        result = Table(self.environments | other.environments, self.lines)
        result._records = dict(self._records)
        for key, line in list(other.lines.items()):
            if key not in result.lines:
                result.lines[key] = line
                if key in other._records:
                    result._records[key] = other._records[key]
            elif result.lines[key] != line and (record := other.record(key)) is not None:
                result.add(record)
        return result

    def token_counts(self, family: Family) -> Mapping[str, list[int]]:
        """For each environment that has records of the family, for how many tokens, ascending."""
        if self._families is None:
            families: dict[Family, dict[str, list[int]]] = {}
            for key in sorted(self.lines):
                environments = families.setdefault(key.family, {})
                environments.setdefault(key.environment, []).append(key.tokens)
            self._families = families  # only when whole: another thread may be reading
        return self._families.get(family, {})

    def _keep(self, key: Key, record: Record) -> None:
        self.lines[key] = _checked_length(record.line)
        self._records[key] = record


def _checked_length(line: str) -> str:
    if len(line) > LONGEST:
        raise ValueError(f"a record is longer than {LONGEST:,} characters")
    return line
