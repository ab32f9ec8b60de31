"""The one exception for what the user can mend."""


class AutoloraError(Exception):
    """Something was asked for that cannot be done; the message says what was given and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """
