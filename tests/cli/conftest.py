from pathlib import Path

import pytest
from commands import MODEL, Said

from autolora.cli import main


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")

    def say(*words: str) -> Said:
        code = main(words)
        return Said(code, *capsys.readouterr())

    return say
