"""Running a Python script or module as ``python`` would, in this process."""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from autolora.errors import AutoloraError

_NO_MODULE = "there is no module {} to run, neither here nor among the installed ones"


class NotFound(AutoloraError):
    """There is no such module to run."""


@dataclass(slots=True)
class Script:
    """A program, ready to run.

    Args:
        name: of a file; or of a module, as ``python -m`` takes it.
        arguments: of the program.
        is_module: whether it is a module.
    """

    name: str
    arguments: Sequence[str]
    is_module: bool = False
    _interrupted: bool = False

    def check(self) -> None:
        """Checks that there is such a program, as far as none of its code need be run.

        Raises:
            AutoloraError: there is none, or its file cannot be read.
        """
        if self.is_module:
            top = self.name.partition(".")[0]
            if PathFinder.find_spec(top, [str(Path.cwd()), *sys.path[1:]]) is None:
                raise NotFound(_NO_MODULE.format(self.name))
            return
        try:
            with Path(self.name).open("rb"):
                pass
        except OSError as error:
            raise AutoloraError(f"cannot run {self.name}: {error.strerror}") from None

    def run(self) -> None:
        """Runs the program as ``__main__``; what it raises is raised.

        If that ends the process, the traceback begins in the program, as if ``python`` ran it.

        Raises:
            NotFound: there is no such module in its package.
        """
        main = ModuleType("__main__")
        main.__dict__.update(__builtins__=builtins, __annotations__={}, __cached__=None)
        sys.argv[:] = ["-m" if self.is_module else self.name, *self.arguments]
        try:
            code = self._module(main) if self.is_module else self._file(main)
            sys.modules["__main__"] = main
            exec(code, main.__dict__)
        except NotFound:
            raise
        except BaseException as error:
            sys.excepthook = _without_ours(sys.excepthook)
            self._interrupted = isinstance(error, KeyboardInterrupt)
            raise

    def end(self) -> None:
        """Ends an interrupted process by the signal, as Python does; for the end of its exit."""
        if self._interrupted:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # a stream of the script's own
                    stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    def _file(self, main: ModuleType) -> CodeType:
        """The code of a file; says in ``main`` where it is from."""
        file = str(Path(self.name).absolute())
        _first_on_path(Path(self.name).resolve().parent)
        main.__dict__.update(__file__=file, __loader__=SourceFileLoader("__main__", file))
        return compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)

    def _module(self, main: ModuleType) -> CodeType:
        """The code of a module, whose packages are imported; says in ``main`` where it is from."""
        _first_on_path(Path.cwd())
        name, spec = self.name, _spec(self.name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = _spec(name)
        loader: Any = None if spec is None else spec.loader
        if spec is None or not hasattr(loader, "get_code"):
            raise NotFound(_NO_MODULE.format(name))
        main.__dict__.update(
            __file__=spec.origin,
            __loader__=loader,
            __spec__=spec,
            __package__=spec.parent,
            __cached__=spec.cached,
        )
        sys.argv[0] = spec.origin or name
        return loader.get_code(name)  # type: ignore[no-any-return]


def _spec(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return None
        raise  # a package of the module lacks something else


def _first_on_path(folder: Path) -> None:
    """Replaces the folder of this program in ``sys.path`` by that of another."""
    if not sys.flags.safe_path:
        sys.path[0] = str(folder)


def _without_ours(hook: Callable[..., object]) -> Callable[..., object]:
    """A hook for uncaught exceptions that leaves out the frames of this package."""
    package = str(Path(__file__).parents[1]) + os.sep

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        inside = trace
        while inside is not None and not inside.tb_frame.f_code.co_filename.startswith(package):
            inside = inside.tb_next  # what started this program
        while inside is not None and inside.tb_frame.f_code.co_filename.startswith(package):
            inside = inside.tb_next
        hook(kind, error.with_traceback(inside), inside)

    return shown
