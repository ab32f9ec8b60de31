"""A Python file that holds a model: runs it and finds the model.

The file is run on the meta device, so that nothing is allocated; what fails there is run again on
the CPU. Whatever it raises becomes an :class:`AutoloraError` that shows the line in the file.
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
from typing import Any, TypeVar

import torch
from torch import nn

from autolora.errors import AutoloraError, one_line

logger = logging.getLogger("autolora")

T = TypeVar("T")

INPUTS = "example_inputs"

_MODULE = "autolora_model_file"  # its __name__, so that code under `"__main__"` is not run
_PREFERRED = ("model", "build_model")
_NOT_MODELS = ("main", INPUTS)
_BESIDE = "tune_model.py"  # a file outside a package that imports the model from it
_LONGEST = 2000  # characters shown of the file's error message


class UserCodeError(AutoloraError):
    """The file raised; the message names the exception and the line in the file."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds.

    Args:
        model: on the meta device if it can be built there.
        inputs: the file's ``example_inputs(batch_size, seq_len)``, None if it has none. Returns a
            tensor, or a tuple or dict of the arguments of the model's forward, on any device.
    """

    model: nn.Module
    inputs: Callable[[int, int], Any] | None


def load_model_file(path: Path, name: str | None) -> ModelFile:
    """Runs a model file; its model is the one called ``name``, or the only one.

    Raises:
        AutoloraError: it cannot be read, raises, or holds no such model.
    """
    code = _compiled(path)

    def load() -> ModelFile:
        module = _executed(path, code)
        found = _named(path, module, name) if name else _only_model(path, module)
        with as_user_error(path):
            model = found if isinstance(found, nn.Module) else found()
        if not isinstance(model, nn.Module):
            made_by = getattr(found, "__name__", "model")
            raise AutoloraError(
                f"{path.name}:{made_by}() gave a {type(model).__name__}, not an nn.Module"
            )
        return ModelFile(model, _example_inputs(path, module))

    return _on_meta_or_cpu(path, name or "the model", load)


@contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turns what the file's code raises into a :class:`UserCodeError`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserCodeError(_described(error, path)) from error


def summary_of(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    return ": ".join(filter(None, (type(error).__name__, one_line(error))))


def _on_meta_or_cpu(path: Path, what: str, make: Callable[[], T]) -> T:
    try:
        with torch.device("meta"):
            return make()
    except UserCodeError as error:
        cause = summary_of(error.__cause__ or error)
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


def _only_model(path: Path, module: ModuleType) -> Any:
    """``model``, ``build_model``, or the only module or the only suitable function of a file."""
    modules, functions = _modules(module), _functions(module)
    for name in _PREFERRED:
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
    """The first name of each nn.Module."""
    first: dict[int, str] = {}
    for name, value in vars(module).items():
        if isinstance(value, nn.Module):
            first.setdefault(id(value), name)
    return list(first.values())


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


def _example_inputs(path: Path, module: ModuleType) -> Callable[[int, int], Any] | None:
    make = vars(module).get(INPUTS)
    if not callable(make):
        return None
    try:
        inspect.signature(make).bind(1, 1)
    except TypeError as error:
        raise AutoloraError(
            f"{path.name}:{INPUTS} must take (batch_size, seq_len): {error}"
        ) from None
    except ValueError:  # a built-in without a signature
        pass

    def inputs(batch_size: int, seq_len: int) -> Any:
        def call() -> Any:
            with as_user_error(path):
                return make(batch_size, seq_len)

        return _on_meta_or_cpu(path, INPUTS, call)

    return inputs


def _described(error: BaseException, path: Path) -> str:
    """What was raised, the deepest line of the file that led to it, and what to do if known."""
    if isinstance(error, SystemExit):
        head = f"{path.name} ended the program (exit code {error.code!r}) instead of giving a model"
    elif isinstance(error, SyntaxError) and error.filename == str(path):
        where = f"\n  line {error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        return f"{path.name} is not valid Python: {error.msg}{where}"
    else:
        message = str(error).partition("\nException raised from")[0].strip()  # torch's C++ stack
        message = message if len(message) <= _LONGEST else message[:_LONGEST] + " …"
        head = f"{path.name} raised {type(error).__name__}" + (f": {message}" if message else "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if frames:
        last = frames[-1]
        where = "" if last.name == "<module>" else f", in {last.name}"
        head += f"\n  line {last.lineno}{where}" + (f": {last.line}" if last.line else "")
    relative = isinstance(error, ImportError) and "relative import" in str(error)
    return f"{head}\n{_instead_of_relative(path)}" if relative else head


def _instead_of_relative(path: Path) -> str:
    """How to name a model that a file of a package holds."""
    folder = path.resolve().parent
    parts = [folder.name, path.stem] if path.stem != "__init__" else [folder.name]
    while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
        folder = folder.parent
        parts.insert(0, folder.name)
    return (
        f"TARGET is run as a file of its own, outside its package. Write {folder.parent / _BESIDE} "
        f"with the line\n  from {'.'.join(parts)} import NAME\n(and example_inputs, if the file "
        "has it), where NAME is the model or a function that builds it; then TARGET is "
        f"{_BESIDE}:NAME"
    )
