"""The one exception for what the user can mend."""


class AutoloraError(Exception):
    """Something was asked for that cannot be done; the message says what was given and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


class MissError(AutoloraError):
    """In strict mode: a layer was called with a problem for which nothing was measured here.

    The message names the problem, the closest record with the fields that differ, the files that
    were asked, and the command that would measure it.
    """


def one_line(message: object, most: int = 200) -> str:
    """A message on one line, at most so many characters, without terminal escapes."""
    words = " ".join(str(message).split())
    return "".join(c if c.isprintable() else "?" for c in words)[:most]
