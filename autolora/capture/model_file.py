"""A Python file that holds a model: run it, find the model, and tell its author what went wrong.

The file is run on the meta device, so that nothing is allocated; what fails there is run again on
the CPU. Whatever the file raises becomes an :class:`AutoloraError` that shows the line in the file.
"""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from autolora.errors import AutoloraError

logger = logging.getLogger("autolora")

T = TypeVar("T")

INPUTS = "example_inputs"

_MODULE = "autolora_model_file"  # its __name__: what it does under `"__main__"` is not done
_USUAL = ("model", "build_model")
_NOT_MODELS = ("main", INPUTS)
_MOST = 2000  # characters shown of somebody else's error message


class UserCodeError(AutoloraError):
    """The file raised; the message names the exception and the line in the file."""


class ExampleInputs(Protocol):
    """What a model file offers to say which input its model gets."""

    def __call__(self, batch_size: int, seq_len: int) -> Any:
        """A tensor, or a tuple or dict of the arguments of the model's forward."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds.

    Args:
        path: of the file.
        model: on the meta device where it can be built there.
        example_inputs: the file's function of that name, None where it has none.
    """

    path: Path
    model: nn.Module
    example_inputs: ExampleInputs | None

    def inputs(self, batch_size: int, seq_len: int) -> Any:
        """What ``example_inputs`` gives, on whichever device."""
        make = self.example_inputs
        assert make is not None  # the caller has looked

        def made() -> Any:
            with as_user_error(self.path):
                return make(batch_size, seq_len)

        return _on_meta_or_cpu(self.path, INPUTS, made)


def load_model_file(path: Path, name: str | None) -> ModelFile:
    """Runs a model file and takes the model called ``name``, or the one that it evidently holds.

    Raises:
        AutoloraError: it cannot be read, raises, or holds no such model.
    """
    code = _compiled(path)

    def load() -> ModelFile:
        module = _executed(path, code)
        found = _named(path, module, name) if name else _evident(path, module)
        with as_user_error(path):
            model = found if isinstance(found, nn.Module) else found()
        if not isinstance(model, nn.Module):
            raise AutoloraError(
                f"{path.name}:{_name_of(found)} gave a {type(model).__name__}, not an nn.Module"
            )
        return ModelFile(path, model, _example_inputs(path, module))

    return _on_meta_or_cpu(path, name or "the model", load)


@contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turns what the file's code raises into a :class:`UserCodeError`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserCodeError(_story(error, path)) from error


def one_line(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    message = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {message[:200]}" if message else name


def _on_meta_or_cpu(path: Path, what: str, make: Callable[[], T]) -> T:
    try:
        with torch.device("meta"):
            return make()
    except UserCodeError as error:
        cause = one_line(error.__cause__ or error)
        logger.info("%s: %s fails on the meta device (%s); trying the CPU", path.name, what, cause)
    return make()


def _compiled(path: Path) -> CodeType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise AutoloraError(f"cannot read {path}: {error.strerror or error}") from error
    with as_user_error(path):
        return compile(source, str(path), "exec", dont_inherit=True)


def _executed(path: Path, code: CodeType) -> ModuleType:
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # dataclasses and pickle look a class's module up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it can import its neighbours, as a script can
    with as_user_error(path):
        exec(code, module.__dict__)
    return module


def _named(path: Path, module: ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise AutoloraError(f"{path.name} has no {name!r}{_candidates_of(module)}")
    found = vars(module)[name]
    if isinstance(found, nn.Module) or (callable(found) and not _required(found)):
        return found
    if callable(found):
        raise AutoloraError(
            f"{path.name}:{name} needs arguments ({', '.join(_required(found))}); "
            "TARGET must name an nn.Module or a function without required arguments"
            + _candidates_of(module)
        )
    raise AutoloraError(
        f"{path.name}:{name} is a {type(found).__name__}, neither an nn.Module nor a function that "
        f"returns one{_candidates_of(module)}"
    )


def _evident(path: Path, module: ModuleType) -> Any:
    """``model``, ``build_model``, the only module or the only suitable function of a file."""
    modules, functions = _modules(module), _functions(module)
    for name in _USUAL:
        if name in modules or name in functions:
            return vars(module)[name]
    for names in (modules, functions):
        if len(names) == 1:
            return vars(module)[names[0]]
    if not modules and not functions:
        raise AutoloraError(
            f"{path.name} holds no model: no torch.nn.Module, and no function without required "
            "arguments that could return one"
        )
    raise AutoloraError(
        f"{path.name} may hold several models; name one as {path.name}:NAME{_candidates_of(module)}"
    )


def _modules(module: ModuleType) -> list[str]:
    first = {
        id(value): name
        for name, value in reversed(vars(module).items())
        if isinstance(value, nn.Module)
    }
    return [name for name in vars(module) if name in first.values()]


def _functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == _MODULE
        and not name.startswith("_")
        and name not in _NOT_MODELS
        and not _required(value)
    ]


def _candidates_of(module: ModuleType) -> str:
    names = [*_modules(module), *(f"{name}()" for name in _functions(module))]
    return f"; candidates: {', '.join(names)}" if names else ""


def _required(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some built-in classes
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _name_of(found: Any) -> str:
    return f"{getattr(found, '__name__', 'model')}()"


def _example_inputs(path: Path, module: ModuleType) -> ExampleInputs | None:
    make = vars(module).get(INPUTS)
    if make is None or not callable(make):
        return None
    try:
        inspect.signature(make).bind(1, 1)
    except TypeError as error:
        raise AutoloraError(
            f"{path.name}:{INPUTS} must take (batch_size, seq_len): {error}"
        ) from None
    except ValueError:
        pass
    return make  # type: ignore[no-any-return]


def _story(error: BaseException, path: Path) -> str:
    """What was raised, and the deepest line of the file that led to it."""
    if isinstance(error, SystemExit):
        head = f"{path.name} ended the program (exit code {error.code!r}) instead of giving a model"
    elif isinstance(error, SyntaxError) and error.filename == str(path):
        where = f"\n  line {error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        return f"{path.name} is not valid Python: {error.msg}{where}"
    else:
        message = str(error).partition("\nException raised from")[0].strip()  # torch's C++ stack
        message = message if len(message) <= _MOST else message[:_MOST] + " …"
        head = f"{path.name} raised {type(error).__name__}" + (f": {message}" if message else "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if not frames:
        return head
    last = frames[-1]
    where = "" if last.name == "<module>" else f", in {last.name}"
    return f"{head}\n  line {last.lineno}{where}" + (f": {last.line}" if last.line else "")
