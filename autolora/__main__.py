"""``python -m autolora``."""

import sys

from autolora.cli import main

if __name__ == "__main__":
    sys.exit(main())
