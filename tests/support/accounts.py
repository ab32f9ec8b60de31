"""Folders that several accounts share, and acting as one of these; only root can."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

OPEN = tempfile.gettempdir()  # before a test points it elsewhere

needs_root = pytest.mark.skipif(
    not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can act as others"
)


@contextlib.contextmanager
def shared_folder(mode=0o777):
    """A folder that others than its owner may use."""
    with tempfile.TemporaryDirectory(dir=OPEN) as name:
        folder = Path(name)
        folder.chmod(mode)
        yield folder


@contextlib.contextmanager
def as_user(number):
    """What is done as the user, and the group, of a number."""
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
