"""The command line: the only room that prints or reads ``sys.argv``.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 a winner of the cache has
drifted, or a file is invalid or differs from another, 2 an error that the user can fix, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from autolora.errors import AutoloraError

DRIFTED = INVALID = DIFFERENT = 1
FAILED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` defaults to ``sys.argv[1:]``."""
    from autolora.cli.output.console import log_to_stderr, print_error, print_status
    from autolora.cli.parser import parse

    try:
        with log_to_stderr():
            try:
                options = parse(sys.argv[1:] if argv is None else argv)
            except AutoloraError:
                if os.environ.get("RANK", "0") == "0":
                    raise
                return FAILED  # under torchrun only rank 0 reports wrong arguments
            code = options.run(options)
            sys.stdout.flush()
    except AutoloraError as error:
        print_error(str(error))
        return FAILED
    except KeyboardInterrupt:
        print_status("autolora: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else int(code())  # a program, whose errors are its own
