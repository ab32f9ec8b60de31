"""A clock that the test moves."""


class Clock:
    """Moves when told to.

    Args:
        now: its first reading, in seconds.
    """

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now

    def pause(self, seconds):
        """What takes the place of ``time.sleep``."""
        self.now += seconds
