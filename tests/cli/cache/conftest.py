import io
import sys

import pytest
from commands import Said
from records import CPU, H100

from autolora.cli import main
from autolora.cli.cache import environments


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Runs ``autolora cache``, with what it is given on standard input."""
    monkeypatch.chdir(tmp_path)

    def say(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(("cache", *map(str, words)))
        return Said(code, *capsys.readouterr())

    return say


@pytest.fixture
def machine(monkeypatch):
    """A machine with the environments CPU and H100."""
    monkeypatch.setattr(environments, "local_environments", lambda: [CPU, H100])
    monkeypatch.setattr("autolora.cli.cache.path.local_environments", lambda: [CPU, H100])
