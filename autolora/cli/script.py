"""Running a Python script or module as ``python`` would, in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import CodeType, ModuleType, TracebackType
from typing import Any

from autolora.errors import AutoloraError


@dataclass(frozen=True, slots=True)
class Script:
    """A program, ready to run.

    Args:
        file: its main module.
        name: what it is called in ``sys.argv``.
        arguments: the others there.
        loader: of the main module.
        spec: of the main module, None for a file that is run by its name.
        interrupted: whether Ctrl-C has ended it.
    """

    file: str
    name: str
    arguments: tuple[str, ...]
    loader: Any
    spec: ModuleSpec | None = None
    interrupted: Event = field(default_factory=Event)

    @classmethod
    def of_file(cls, file: str, arguments: Sequence[str]) -> Script:
        """The script in a file, as ``python file`` finds it.

        Raises:
            AutoloraError: it cannot be read.
        """
        path = str(Path(file).absolute())
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise AutoloraError(f"cannot run {file}: {error.strerror}") from None
        _first_on_path(Path(file).resolve().parent)
        return cls(path, file, tuple(arguments), SourceFileLoader("__main__", path))

    @classmethod
    def of_module(cls, module: str, arguments: Sequence[str]) -> Script:
        """A module, or the ``__main__`` of a package, as ``python -m module`` finds it.

        Raises:
            AutoloraError: there is none, or it has no code.
        """
        _first_on_path(Path.cwd())
        spec = _spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            module = f"{module}.__main__"
            spec = _spec(module)
        if spec is None or not hasattr(spec.loader, "get_code"):
            raise AutoloraError(
                f"there is no module {module} to run, neither here nor among the installed ones"
            )
        file = spec.origin or module
        return cls(file, file, tuple(arguments), spec.loader, spec)

    def run(self) -> None:
        """Runs the program as ``__main__``; what it raises is raised.

        If that ends the process, the traceback begins in the program, as if ``python`` ran it.
        """
        main = ModuleType("__main__")
        main.__dict__.update(
            __file__=self.file,
            __loader__=self.loader,
            __spec__=self.spec,
            __package__=self.spec.parent if self.spec else None,
            __builtins__=__builtins__,
        )
        sys.argv[:] = [self.name, *self.arguments]
        sys.modules["__main__"] = main
        try:
            exec(self._code(), main.__dict__)
        except BaseException as error:
            sys.excepthook = _without_ours(sys.excepthook)
            if isinstance(error, KeyboardInterrupt):
                self.interrupted.set()
            raise

    def end(self) -> None:
        """Ends an interrupted process by the signal, as Python does; for the end of its exit."""
        if self.interrupted.is_set():
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:
                    stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    def _code(self) -> CodeType:
        if self.spec is not None:
            return self.loader.get_code(self.spec.name)  # type: ignore[no-any-return]
        source = Path(self.file).read_bytes()
        return compile(source, self.file, "exec", dont_inherit=True)


def _spec(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except (ImportError, ValueError):
        return None


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
