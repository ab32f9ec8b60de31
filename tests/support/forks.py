"""Python processes that begin with torch and transformers imported: forks of one that has them."""

import atexit
import os
import sys
import tempfile
import threading
from multiprocessing import forkserver, get_context
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(  # not PEFT, of which some forks import another version
    [
        "torch.distributed",
        "autolora.cli.tune",
        "transformers.models.llama.modeling_llama",
        "accelerate",
        "bitsandbytes",
    ]
)


def warm():
    """Starts the imports, while others go on."""
    forkserver.ensure_running()


class Fork:
    """A process that calls a function, as far like :class:`subprocess.Popen` as tests need it.

    Args:
        function: of a module; what it returns is the exit code, as for :func:`sys.exit`.
        arguments: of the function.
        environment: all its variables; OMP_NUM_THREADS as well takes effect.
    """

    def __init__(self, function, *arguments, environment):
        self._said = tempfile.TemporaryDirectory()
        self._process = _CONTEXT.Process(
            target=_call, args=(self._said.name, str(Path.cwd()), environment, function, arguments)
        )
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"a process has not ended within {timeout} s")

    def communicate(self, timeout=None):
        """Its output and its errors, once it has ended."""
        self.wait(timeout)
        out, err = (Path(self._said.name, name) for name in ("out", "err"))
        return out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")

    def kill(self):
        self._process.kill()


def _call(said, folder, environment, function, arguments):
    for name, descriptor in (("out", 1), ("err", 2)):
        with Path(said, name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.exit(function(*arguments))


def run_command(*words):
    """Runs a command of autolora, with all that Python does at the end of a program."""
    from autolora.cli import main

    try:
        return main(words)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()


def run_source(source):
    """Runs Python source as a program."""
    exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
