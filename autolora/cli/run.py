"""``autolora run``: a training script with its PEFT models accelerated."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from autolora.cli import FAILED
from autolora.cli.output.console import clean, print_error, restore_encoding
from autolora.cli.script import NotFound, Script
from autolora.errors import AutoloraError
from autolora.integrations import BUDGET, TOO_SHORT
from autolora.integrations.models import ScriptModels


def run(options: Namespace) -> Callable[[], int]:
    """The program that the command runs, once its arguments are known to be right."""
    named = options.script if options.module is None else options.module
    if options.script and options.module is not None:
        raise AutoloraError("give either a script or -m MODULE")
    named = named[1:] if named[:1] == ["--"] else named
    if not named:
        raise AutoloraError(
            "no script given: autolora run [options] SCRIPT [arguments], or -m MODULE [arguments]"
        )
    if options.budget is not None and not options.tune:
        raise AutoloraError("--budget is for tuning in the first steps: add --tune")
    script = Script(named[0], named[1:], options.module is not None)
    script.check()
    models = ScriptModels(
        compute_dtype=options.compute_dtype,
        objective=options.objective,
        max_saved_bytes=options.max_saved_bytes,
        budget=(options.budget or BUDGET) if options.tune else None,
        report=options.report or options.report_json is not None,
        told=_say,
    )
    again = ["autolora", "run", *([] if options.tune else ["--tune"]), *options.argv[1:]]

    def program() -> int:
        restore_encoding()
        logger = logging.getLogger("autolora")  # what it says is not for the script's own handlers
        logger.addHandler(_Handler())
        logger.propagate = False
        whole = ExitStack()  # until the process ends: threads may go on after the script's end
        whole.enter_context(models.accelerated())
        atexit.register(script.end)  # what is registered first is called last
        atexit.register(whole.close)
        atexit.register(_report, models, again, os.getpid(), options)
        try:
            script.run()
        except NotFound as error:
            print_error(str(error))
            return FAILED
        return 0

    return program


class _Handler(logging.Handler):
    """Says what autolora logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Says one record, with its traceback if it has one."""
        _say(self.format(record))


def _report(models: ScriptModels, again: Sequence[str], process: int, options: Namespace) -> None:
    """Says what was accelerated, unless this is a process that the script has forked."""
    if os.getpid() != process:
        return
    summary = models.summary()
    for line in summary:
        _say(f"autolora: {line}")
    if models.waits:
        _say(f"autolora: not tuned: {TOO_SHORT}")
    elif models.missed:
        _say(f"autolora: to tune what was not measured: {shlex.join(again)}")
    found = []
    if models.kept:
        from autolora.nn.explanation import explain

        found = [explain(model) for model in models.kept]
    if options.report:
        for each in found:
            _say(str(each))
    if options.report_json is not None and _is_first():
        _write(options.report_json, "; ".join(summary), [each.to_json() for each in found])


def _write(path: str, usage: str, models: Sequence[dict[str, Any]]) -> None:
    """Writes what ran, and the layers of all models, for ``autolora report --results``."""
    document: dict[str, Any] = {"usage": usage, "layers": [], "left": []}
    for number, model in enumerate(models, start=1):
        before = f"model {number}: " * (len(models) > 1)
        for kind in ("layers", "left"):
            document[kind] += [{**each, "name": before + each["name"]} for each in model[kind]]
    try:
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        _say(
            f"autolora: cannot write the report {path}: {getattr(error, 'strerror', None) or error}"
        )


def _is_first() -> bool:
    """Whether this is the only rank or the first one."""
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    """Prints to stderr on the first rank, where that is possible."""
    if _is_first():
        with suppress(Exception):  # closed, or an object of the script's own
            print(clean(line), file=sys.stderr)  # without rich, which takes a while to import
