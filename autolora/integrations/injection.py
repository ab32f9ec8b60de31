"""Seeing each model of PEFT as it is made, in code that knows nothing of autolora."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_HOME = "peft.tuners.tuners_utils"  # of the method that all ways of making a model call


@contextmanager
def each_model(made: Callable[[Any], None]) -> Iterator[None]:
    """Calls ``made(model)`` whenever PEFT has put adapters into a model, until the block ends.

    ``get_peft_model``, ``PeftModel.from_pretrained``, ``inject_adapter_in_model`` and the
    ``add_adapter`` of PEFT and of transformers all do that by one method. PEFT is not imported
    here: if it is imported in the block, the method is replaced then.
    """
    with ExitStack() as undo:
        if _HOME in sys.modules:
            _replace(sys.modules[_HOME], made, undo)
        else:
            finder = _Finder(lambda module: _replace(module, made, undo))
            sys.meta_path.insert(0, finder)
            undo.callback(finder.remove)
        yield


def _replace(module: ModuleType, made: Callable[[Any], None], undo: ExitStack) -> None:
    tuner = module.BaseTuner
    original = tuner.inject_adapter

    @functools.wraps(original)
    def inject_adapter(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, model, *args, **kwargs)
        made(model)
        return result

    tuner.inject_adapter = inject_adapter
    undo.callback(setattr, tuner, "inject_adapter", original)


class _Finder(MetaPathFinder):
    """Finds the module of the method as ever, and calls ``loaded`` once it is there."""

    def __init__(self, loaded: Callable[[ModuleType], None]) -> None:
        self.loaded = loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of the path, with a loader that says when the module is loaded."""
        if fullname != _HOME:
            return None
        self.remove()
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.loaded(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def remove(self) -> None:
        """Finds nothing from now on."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
