"""``autolora run``: a training script with its PEFT models accelerated."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from autolora.cli.output.console import clean
from autolora.cli.script import Script
from autolora.errors import AutoloraError
from autolora.integrations import BUDGET
from autolora.integrations.models import ScriptModels


def run(options: Namespace) -> Callable[[], int]:
    """The program that the command runs, once its arguments are known to be right."""
    named = options.script if options.module is None else options.module
    if options.script and options.module is not None:
        raise AutoloraError("give either a script or -m MODULE")
    if not named:
        raise AutoloraError(
            "no script given: autolora run [options] SCRIPT [arguments], or -m MODULE [arguments]"
        )
    if options.budget is not None and not options.tune:
        raise AutoloraError("--budget is for tuning in the first steps: add --tune")
    made = Script.of_file if options.module is None else Script.of_module
    script = made(named[0], named[1:])
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
        atexit.register(script.end)  # what is registered first is called last
        atexit.register(_report, models, again, os.getpid())
        with models.accelerated():
            script.run()
        return 0

    return program


def _report(models: ScriptModels, again: Sequence[str], process: int) -> None:
    """Says what was accelerated, unless this is a process that the script has forked."""
    if os.getpid() != process:
        return
    for line in models.summary():
        _say(f"autolora: {line}")
    if models.missed:
        _say(f"autolora: to tune what was not measured: {shlex.join(again)}")
    if models.kept:
        from autolora.nn.explanation import explain

        for model in models.kept:
            _say(str(explain(model)))


def _say(line: str) -> None:
    """Prints to stderr on the first rank, where that is still open."""
    if os.environ.get("RANK", "0") == "0" and sys.stderr is not None and not sys.stderr.closed:
        print(clean(line), file=sys.stderr)  # without rich, which takes a while to import
