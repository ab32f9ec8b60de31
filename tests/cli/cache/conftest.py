import io
import sys

import pytest
from commands import Completed
from records import CPU, H100

from autolora.cli import main
from autolora.cli.cache import environments


@pytest.fixture
def autolora(capsys, tmp_path, monkeypatch):
    """Runs ``autolora cache``, with what it is given on standard input."""
    monkeypatch.chdir(tmp_path)

    def autolora(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(("cache", *map(str, words)))
        return Completed(code, *capsys.readouterr())

    return autolora


@pytest.fixture
def machine(monkeypatch):
    """A machine with the environments CPU and H100."""
    monkeypatch.setattr(environments, "local_environments", lambda: [CPU, H100])
    monkeypatch.setattr("autolora.cli.cache.path.local_environments", lambda: [CPU, H100])
