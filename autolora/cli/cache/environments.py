"""The environments that options name: of this machine, or by the first digits of an id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autolora.cli.cache.titles import environment_line, first
from autolora.environment import Environment
from autolora.errors import AutoloraError

THIS = "this"

_DIGITS = re.compile(r"[0-9a-f]{4,12}", re.ASCII)


def here() -> list[Environment]:
    """The environments of this machine: of its CPU, and of each kind of CUDA device."""
    import torch  # seconds, which some of these commands need not spend

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{index}" for index in range(number))]
    return list(dict.fromkeys(map(Environment.of, devices)))


def chosen(words: Iterable[str], known: Mapping[str, Environment]) -> list[Environment]:
    """The environments that options name.

    Args:
        words: ``"this"``, or the first digits of an id, at least four.
        known: those that there are records of, by id.

    Raises:
        AutoloraError: a word names none of them, or several.
    """
    found: list[Environment] = []
    for word in words:
        found += here() if word == THIS else [_by_digits(word, known)]
    return list(dict.fromkeys(found))


def listed(known: Mapping[str, Environment]) -> str:
    """Environments with their ids, one per line, for the end of a message."""
    lines = first(sorted(known), lambda name: f"{name}  {environment_line(known[name])}")
    return "\n" + "\n".join(lines) if lines else " none"


def _by_digits(word: str, known: Mapping[str, Environment]) -> Environment:
    digits = word.lower()
    if not _DIGITS.fullmatch(digits):
        raise AutoloraError(
            f"an environment is 'this' or the first digits of its id, at least 4, not {word!r}; "
            f"there are records of:{listed(known)}"
        )
    hits = {name: known[name] for name in known if name.startswith(digits)}
    if not hits:
        raise AutoloraError(
            f"no environment whose id begins with {word!r}; there are records of:{listed(known)}"
        )
    if len(hits) > 1:
        raise AutoloraError(f"{word!r} begins several ids; give more digits:{listed(hits)}")
    return next(iter(hits.values()))
