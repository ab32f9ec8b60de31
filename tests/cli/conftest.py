from pathlib import Path

import pytest
from commands import MODEL, Completed

from autolora.cli import main


@pytest.fixture
def autolora(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")

    def autolora(*words: str) -> Completed:
        code = main(words)
        return Completed(code, *capsys.readouterr())

    return autolora
