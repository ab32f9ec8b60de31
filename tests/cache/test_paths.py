import os
import subprocess
import sys
from pathlib import Path

import platformdirs

from autolora.cache.files import disk
from autolora.cache.files.paths import default_path, search_path

ROOT = Path(disk.__file__).parents[3]


def test_the_search_path(monkeypatch, tmp_path):
    site = Path(platformdirs.site_cache_dir("autolora")) / "timings.v1.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("AUTOLORA_CACHE", raising=False)
    assert default_path() == Path(platformdirs.user_cache_dir("autolora")) / "timings.v1.json"
    assert tmp_path in default_path().parents
    assert search_path() == [default_path(), site]
    entries = ["", "/a/b.json", "~/c.json", " ", "/a/b.json", "~no-such-user/d.json"]
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep.join(entries))
    own = [Path("/a/b.json"), tmp_path / "c.json", Path("~no-such-user/d.json")]
    assert search_path() == [*own, site]
    monkeypatch.setenv("AUTOLORA_CACHE", os.pathsep)
    assert search_path() == [default_path(), site]


def test_reading_a_cache_imports_nothing_heavy():
    code = (
        "import sys, autolora.cache.lookup.lookup\n"
        "autolora.cache.lookup.lookup.Lookup().layers\n"
        "heavy = {'torch', 'rich', 'transformers', 'peft', 'numpy', 'filelock'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
