"""Printing: results to stdout, messages and log records to stderr.

Nothing is interpreted as markup, and control characters are escaped. rich is imported when it is
needed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PACKAGE = Path(__file__).parents[2]
_PREFIX = "autolora: "
_errors: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()  # of the streams, as they were
_STYLES = {"error": "bold red", "warning": "yellow"}


def clean(text: str) -> str:
    r"""Escapes control characters other than line breaks.

    >>> clean("\x1b[2Jgone")
    '\\x1b[2Jgone'
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def console(stream: TextIO | None = None) -> Console:
    """A rich console for a stream (default: stdout)."""
    from rich.console import Console

    screen = Console(
        file=stream or sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True
    )
    screen.on_broken_pipe = _raise_again  # type: ignore[method-assign]  # rich would exit with 1
    return screen


def print_line(line: str = "", style: str = "") -> None:
    """Prints one line of a result."""
    print_lines([line], style)


def print_lines(lines: Iterable[str | Text], style: str = "") -> None:
    """Prints lines of a result."""
    screen = console()
    for line in lines:
        screen.print(clean(line) if isinstance(line, str) else line, style=style or None)


def screen_width() -> int:
    """Width of stdout in cells; 80 if it is not a terminal."""
    screen = console()
    return screen.width if screen.is_terminal else 80


def print_paragraph(text: str) -> None:
    """Prints text wrapped to the width of the screen."""
    width = min(screen_width(), 100)
    print_line(textwrap.fill(clean(text), width, break_on_hyphens=False, break_long_words=False))


def print_json(document: Any) -> None:
    """Prints one JSON document, the only output on stdout with ``--json``."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True) + "\n")


def print_status(line: str) -> None:
    """Prints one line that is not a result, to stderr."""
    console(sys.stderr).print(clean(line))


def print_error(message: str) -> None:
    """Prints ``autolora: error: …`` to stderr."""
    _print_labelled("error", message)


def restore_encoding() -> None:
    """Has stdout and stderr treat characters that they cannot encode as they did at the start."""
    for stream in (sys.stdout, sys.stderr):
        if stream in _errors and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_errors[stream])


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows the library's log messages and warnings on stderr, one line each, without repeats."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            _errors.setdefault(stream, stream.errors)
            stream.reconfigure(errors="replace")  # an encoding without our characters
    shown: set[str] = set()

    def show(label: str, message: str) -> None:
        if message not in shown:
            shown.add(message)
            _print_labelled(label, message)

    logger, handler = logging.getLogger("autolora"), _Handler(show)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            default = warnings.showwarning

            def warn(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
                if Path(filename).is_relative_to(_PACKAGE):
                    show("warning", str(message))
                else:
                    default(message, category, filename, lineno, *rest)

            warnings.showwarning = warn  # type: ignore[assignment]
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextmanager
def collect_log() -> Iterator[list[str]]:
    """Collects the library's log messages in a list; those still in it at the end are shown."""
    messages: list[str] = []
    logger = logging.getLogger("autolora")
    handlers = logger.handlers
    logger.handlers = [_Handler(lambda _, message: messages.append(message))]
    try:
        yield messages
    finally:
        logger.handlers = handlers
        for message in messages:
            logger.warning("%s", message)


class _Handler(logging.Handler):
    """Calls a function with the level and the message of each warning or error."""

    def __init__(self, receive: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        self._receive(record.levelname.lower(), record.getMessage().removeprefix(_PREFIX))


def _raise_again() -> None:
    raise  # rich calls this where it has caught the exception


def _print_labelled(label: str, message: str) -> None:
    from rich.text import Text

    prefix = Text.assemble(_PREFIX, (f"{label}: ", _STYLES.get(label, "")))
    console(sys.stderr).print(prefix.append(clean(message)))
