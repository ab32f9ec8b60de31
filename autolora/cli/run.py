"""``autolora run``: a training script with its PEFT models accelerated."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

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
        report=options.report,
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
        atexit.register(_report, models, again, os.getpid())
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


def _report(models: ScriptModels, again: Sequence[str], process: int) -> None:
    """Says what was accelerated, unless this is a process that the script has forked."""
    if os.getpid() != process:
        return
    for line in models.summary():
        _say(f"autolora: {line}")
    if models.waits:
        _say(f"autolora: not tuned: {TOO_SHORT}")
    elif models.missed:
        _say(f"autolora: to tune what was not measured: {shlex.join(again)}")
    if models.kept:
        from autolora.nn.explanation import explain

        for model in models.kept:
            _say(str(explain(model)))


def _say(line: str) -> None:
    """Prints to stderr on the first rank, where that is possible."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(Exception):  # closed, or an object of the script's own
            print(clean(line), file=sys.stderr)  # without rich, which takes a while to import
