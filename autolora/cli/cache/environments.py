"""Environments named by options: this machine's, or by the first digits of an id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autolora.cli.output.figures import first_lines
from autolora.cli.output.tables import environment_line
from autolora.environment import Environment
from autolora.errors import AutoloraError

THIS = "this"

_DIGITS = re.compile(r"[0-9a-f]{4,12}", re.ASCII)


def local_environments() -> list[Environment]:
    """The environments of this machine's CPU and of each kind of its CUDA devices."""
    import torch  # takes seconds, and not all commands need it

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{index}" for index in range(number))]
    return list(dict.fromkeys(map(Environment.of, devices)))


def select(words: Iterable[str], known: Mapping[str, Environment]) -> list[Environment]:
    """The environments that options name.

    Args:
        words: ``"this"``, or at least four first digits of an id.
        known: the environments of the records, by id.

    Raises:
        AutoloraError: a word names none of them, or several.
    """
    found: list[Environment] = []
    for word in words:
        found += local_environments() if word == THIS else [_by_digits(word, known)]
    return list(dict.fromkeys(found))


def listing(known: Mapping[str, Environment]) -> str:
    """Environments by id, one per line, for the end of a message."""
    lines = first_lines(sorted(known), lambda name: f"{name}  {environment_line(known[name])}")
    return "\n" + "\n".join(lines) if lines else " none"


def _by_digits(word: str, known: Mapping[str, Environment]) -> Environment:
    digits = word.lower()
    if not _DIGITS.fullmatch(digits):
        raise AutoloraError(
            f"an environment is 'this' or the first digits of its id, at least 4, not {word!r}; "
            f"there are records of:{listing(known)}"
        )
    hits = {name: known[name] for name in known if name.startswith(digits)}
    if not hits:
        raise AutoloraError(
            f"no environment whose id begins with {word!r}; there are records of:{listing(known)}"
        )
    if len(hits) > 1:
        raise AutoloraError(f"{word!r} begins several ids; give more digits:{listing(hits)}")
    return next(iter(hits.values()))
