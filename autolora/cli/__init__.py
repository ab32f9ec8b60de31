"""The command line: the only room that prints or reads ``sys.argv``.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a winner of the cache has
drifted, or a file is not valid or differs from another, 2 something the user can mend, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from autolora.errors import AutoloraError

DRIFTED = INVALID = DIFFERENT = 1
MENDABLE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; ``argv`` is ``sys.argv[1:]`` unless given."""
    from autolora.cli.output.console import listening, say_error, say_interrupted
    from autolora.cli.parser import parse

    try:
        with listening():
            try:
                options = parse(sys.argv[1:] if argv is None else argv)
            except AutoloraError:
                if os.environ.get("RANK", "0") == "0":
                    raise
                return MENDABLE  # under torchrun: rank 0 was given the same words, and says so
            code: int = options.run(options)
            sys.stdout.flush()
            return code
    except AutoloraError as error:
        say_error(str(error))
        return MENDABLE
    except KeyboardInterrupt:
        say_interrupted()
        return INTERRUPTED
    except BrokenPipeError:  # whoever read us has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
