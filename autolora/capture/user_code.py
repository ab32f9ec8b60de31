"""The user's code: what it raises becomes an error that shows the line in the user's file."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from autolora.errors import AutoloraError, one_line

logger = logging.getLogger("autolora")

T = TypeVar("T")

_LONGEST = 2000  # characters shown of an error message


class UserCodeError(AutoloraError):
    """The user's code raised; the message names the exception and the line in the file."""


@dataclass(frozen=True, slots=True)
class Code:
    """Whose code is run.

    Args:
        label: what it is called, such as ``model.py`` or ``package.module``.
        places: the files of which lines are shown, or their folders.
    """

    label: str
    places: tuple[Path, ...]

    def holds(self, file: str | None) -> bool:
        """Whether a file is a part of it."""
        return file is not None and any(Path(file).is_relative_to(each) for each in self.places)


@contextmanager
def as_user_error(code: Code) -> Iterator[None]:
    """Turns what the user's code raises into a :class:`UserCodeError`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserCodeError(_described(error, code)) from error


def on_meta_or_cpu(code: Code, what: str, make: Callable[[], T]) -> T:
    """What ``make`` returns on the meta device; if the user's code fails there, on the CPU."""
    try:
        with torch.device("meta"):
            return make()
    except UserCodeError as error:
        if isinstance(error.__cause__, SystemExit):
            raise
        cause = summary_of(error.__cause__ or error)
        logger.info("%s: %s fails on the meta device (%s); trying the CPU", code.label, what, cause)
    return make()


def summary_of(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    return ": ".join(filter(None, (type(error).__name__, one_line(error))))


def _described(error: BaseException, code: Code) -> str:
    """What was raised, the deepest line of the code that led to it, and what to do if known."""
    if isinstance(error, SystemExit):
        head = (
            f"{code.label} ended the program (exit code {error.code!r}) instead of giving a model"
        )
        if error.code == 2:  # argparse's
            head += "; its own arguments go last, after --"
    elif isinstance(error, SyntaxError) and code.holds(error.filename):
        where = f"\n  line {error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        return f"{Path(error.filename or '').name} is not valid Python: {error.msg}{where}"
    else:
        message = str(error).partition("\nException raised from")[0].strip()  # torch's C++ stack
        message = message if len(message) <= _LONGEST else message[:_LONGEST] + " …"
        head = f"{code.label} raised {type(error).__name__}" + (f": {message}" if message else "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code.holds(f.filename)]
    if frames:
        last = frames[-1]
        file = Path(last.filename)
        head += f"\n  line {last.lineno}" + (f" of {file.name}" if file.name != code.label else "")
        head += "" if last.name == "<module>" else f", in {last.name}"
        head += f": {last.line}" if last.line else ""
    relative = frames and isinstance(error, ImportError) and "relative import" in str(error)
    path = code.places[0]
    return f"{head}\n{_instead_of_relative(path)}" if relative and path.is_file() else head


def _instead_of_relative(path: Path) -> str:
    """How to name a model that a file of a package holds."""
    folder = path.resolve().parent
    parts = [folder.name, path.stem] if path.stem != "__init__" else [folder.name]
    while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
        folder = folder.parent
        parts.insert(0, folder.name)
    return (
        "TARGET is run as a file of its own, outside its package; name the module instead: in "
        f"{folder.parent}, TARGET is {'.'.join(parts)}, or {'.'.join(parts)}:NAME"
    )
