"""A Python file or module that holds a model: runs it and finds the model.

The code is run on the meta device, so that nothing is allocated; what fails there is run again on
the CPU.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from autolora.capture.user_code import Code, UserCodeError, as_user_error, on_meta_or_cpu
from autolora.errors import AutoloraError

INPUTS = "example_inputs"

_MODULE = "autolora_model_file"  # its __name__, so that code under `"__main__"` is not run
_PREFERRED = ("model", "build_model")
_NOT_MODELS = ("main", INPUTS)


class NoModuleError(AutoloraError):
    """There is no such module; the message says which part of its name is not there."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a file or module holds.

    Args:
        model: on the meta device if it can be built there.
        inputs: its ``example_inputs(batch_size, seq_len)``, None if it has none. Returns a
            tensor, or a tuple or dict of the arguments of the model's forward, on any device.
    """

    model: nn.Module
    inputs: Callable[[int, int], Any] | None


def load_model_file(path: Path, name: str | None) -> ModelFile:
    """Runs a model file; its model is the one called ``name``, or the only one.

    Raises:
        AutoloraError: it cannot be read, raises, or holds no such model.
    """
    code = Code(path.name, (path,))
    compiled = _compiled(path, code)
    return _loaded(code, name, lambda: _executed(path, compiled, code))


def load_model_module(module: str, name: str | None) -> ModelFile:
    """Imports a module, from the current folder too; its model is as in a file.

    Raises:
        NoModuleError: there is no such module.
        AutoloraError: it raises, or holds no such model.
    """
    if not {"", str(Path.cwd())} & {*sys.path}:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    top = module.partition(".")[0]
    try:
        spec = find_spec(top)
    except ValueError:  # __main__, for one
        spec = None
    if spec is None:
        raise NoModuleError(f"No module named {top!r}")
    places = spec.submodule_search_locations or filter(None, [spec.origin])
    code, known = Code(module, tuple(map(Path, places))), set(sys.modules)

    def imported() -> ModuleType:
        for other in [each for each in sys.modules if f"{each}.".startswith(f"{top}.")]:
            if other not in known:
                del sys.modules[other]  # of a first attempt, on the meta device
        try:
            with as_user_error(code):
                return import_module(module)
        except UserCodeError as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
                raise NoModuleError(str(cause)) from cause
            raise

    return _loaded(code, name, imported)


def _loaded(code: Code, name: str | None, run: Callable[[], ModuleType]) -> ModelFile:
    """Finds the model in the module that ``run`` returns."""

    def load() -> ModelFile:
        module = run()
        found = _named(code, module, name) if name else _only_model(code, module)
        with as_user_error(code):
            model = found if isinstance(found, nn.Module) else found()
        if not isinstance(model, nn.Module):
            made_by = getattr(found, "__name__", "model")
            raise AutoloraError(
                f"{code.label}:{made_by}() gave a {type(model).__name__}, not an nn.Module"
            )
        return ModelFile(model, _example_inputs(code, module))

    return on_meta_or_cpu(code, name or "the model", load)


def _compiled(path: Path, code: Code) -> CodeType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise AutoloraError(f"cannot read {path}: {error.strerror or error}") from error
    with as_user_error(code):
        return compile(source, str(path), "exec", dont_inherit=True)


def _executed(path: Path, compiled: CodeType, code: Code) -> ModuleType:
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # dataclasses and pickle look a class's module up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it can import its neighbours, as a script can
    with as_user_error(code):
        exec(compiled, module.__dict__)
    return module


def _named(code: Code, module: ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise AutoloraError(f"{code.label} has no {name!r}{_candidates_of(module)}")
    found = vars(module)[name]
    if isinstance(found, nn.Module) or (callable(found) and not _required(found)):
        return found
    if callable(found):
        raise AutoloraError(
            f"{code.label}:{name} needs arguments ({', '.join(_required(found))}); TARGET must "
            "name an nn.Module, or a class or function that makes one without arguments"
            + _candidates_of(module)
        )
    raise AutoloraError(
        f"{code.label}:{name} is a {type(found).__name__}, neither an nn.Module nor a class or "
        f"function that makes one{_candidates_of(module)}"
    )


def _only_model(code: Code, module: ModuleType) -> Any:
    """``model``, ``build_model``, or the only module, else function, else class of a file."""
    modules, functions = _modules(module), _functions(module)
    for name in _PREFERRED:
        if name in modules or name in functions:
            return vars(module)[name]
    classes = [] if modules or functions else _classes(module)
    for names in (modules, functions, classes):
        if len(names) == 1:
            return vars(module)[names[0]]
    if not modules and not functions and not classes:
        raise AutoloraError(
            f"{code.label} holds no model: no torch.nn.Module, and no class or function without "
            "required arguments that could make one"
        )
    raise AutoloraError(
        f"{code.label} may hold several models; name one as {code.label}:NAME"
        + _candidates_of(module)
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
        if inspect.isfunction(value) and _is_own(module, name, value) and name not in _NOT_MODELS
    ]


def _classes(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and _is_own(module, name, value)
    ]


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
    """Whether a function or class is public, defined in the module, and needs no arguments."""
    return value.__module__ == module.__name__ and name[0] != "_" and not _required(value)


def _candidates_of(module: ModuleType) -> str:
    names = [*_modules(module), *(f"{name}()" for name in _functions(module))]
    names = names or _classes(module)
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


def _example_inputs(code: Code, module: ModuleType) -> Callable[[int, int], Any] | None:
    make = vars(module).get(INPUTS)
    if not callable(make):
        return None
    try:
        inspect.signature(make).bind(1, 1)
    except TypeError as error:
        raise AutoloraError(
            f"{code.label}:{INPUTS} must take (batch_size, seq_len): {error}"
        ) from None
    except ValueError:  # a built-in without a signature
        pass

    def inputs(batch_size: int, seq_len: int) -> Any:
        def call() -> Any:
            with as_user_error(code):
                return make(batch_size, seq_len)

        return on_meta_or_cpu(code, INPUTS, call)

    return inputs
