import logging
import os

# Before any library of the hub is imported: tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from autolora.nn import defaults, dispatch, strict, unmeasured
from autolora.timing import clock, conditions, measurement


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Every test has a cache file of its own, and no memory of another test's."""
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "timings.v1.json"))
    monkeypatch.setattr("platformdirs.site_cache_dir", lambda *_, **__: str(tmp_path / "site"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "user"))
    dispatch.refresh()
    for variable in (defaults.VARIABLE, defaults.LIMIT_VARIABLE, strict.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(strict, "_told", None)
    defaults.forget_warnings()
    strict._meaning.cache_clear()
    unmeasured.forget_notices()
    torch.manual_seed(0)
    yield
    dispatch.refresh()


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch):
    """The tuner's clock: every call is run, all take as long, and no test hangs on noise."""
    monkeypatch.setattr(conditions, "disturbed", lambda found, device: False)
    monkeypatch.setattr(measurement, "measure_for", lambda device: lambda run: (run(), 1e6)[1])


@pytest.fixture
def real_clock(monkeypatch):
    monkeypatch.setattr(measurement, "measure_for", clock.measure_for)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "timings.v1.json"


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]
