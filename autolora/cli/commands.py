"""What every command is made of: a parser whose complaints are short, and a module to carry it out.

That module is imported when the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from autolora.errors import AutoloraError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are short and end like every other error of ours."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the whole usage."""
        raise AutoloraError(f"{message} (see '{self.prog} --help')")


class FreeParser(Parser):
    """A parser that lets options stand before, between and behind what is no option."""

    _inside = False

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does it, which would else take only the first run of such words."""
        if self._inside:  # it is how argparse does that
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_command(
    commands: Any,
    name: str,
    usage: str,
    description: str,
    epilog: str = "",
    *,
    prog: str = "",
    run: str = "",
) -> Parser:
    """Adds a command to those of a parser.

    Args:
        commands: what ``add_subparsers`` gave.
        name: of the command.
        usage: its options, for the first line of its help.
        description: what it does.
        epilog: its examples.
        prog: what is typed to call it; ``autolora NAME`` unless given.
        run: the module that carries it out; ``autolora.cli.NAME`` unless given.
    """
    prog = prog or f"autolora {name}"
    parser = described(partial(commands.add_parser, name), prog, description, epilog)
    parser.usage = f"{prog} {usage}"
    parser.set_defaults(run=_later(run or f"autolora.cli.{name}"))
    return parser


def described(make: Callable[..., Parser], prog: str, description: str, epilog: str) -> Parser:
    """A parser whose help keeps the lines of its texts."""
    return make(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=26),
        allow_abbrev=False,
    )


def _later(module: str) -> Callable[[argparse.Namespace], int]:
    """The ``run`` of a command's module, imported when it is called: torch takes a second."""

    def run(given: argparse.Namespace) -> int:
        return import_module(module).run(given)  # type: ignore[no-any-return]

    return run
