import gc
import logging
import os
import sys
from collections import Counter

# Before any library of the hub is imported: tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is: what several processes of tests would take from each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from tracing_backend import Backend

from autolora.nn import advice, choosing, defaults, strict
from autolora.timing import clock, conditions, device, measurement

# Laws hold on a busy machine too: nothing is judged by the time that it takes.
settings.register_profile(
    "busy", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")


def pytest_collection_modifyitems(items):
    """Skips what needs a CUDA device where there is none, and puts files of few tests first.

    These are the ones whose tests take long: no process should be left alone with one at the end.
    """
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_xdist_auto_num_workers(config):
    """A process for each core; none but this one for a single file."""
    files = any(".py" in argument for argument in config.args)
    return 0 if files else min(4, len(os.sched_getaffinity(0)))


def pytest_collection_finish():
    """What the imports made stays to the end: no collection of garbage need look through it.

    Most of what the tests make stays too, in caches, and the whole is looked through less often.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)


@pytest.fixture(scope="session", autouse=True)
def _warm_forks():
    if "forks" in sys.modules:
        sys.modules["forks"].warm()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Every test has a cache file of its own, and no memory of another test's."""
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "timings.v1.json"))
    monkeypatch.setattr("platformdirs.site_cache_dir", lambda *_, **__: str(tmp_path / "site"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "user"))
    choosing.refresh()
    for variable in (defaults.VARIABLE, defaults.LIMIT_VARIABLE, strict.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(strict, "_told", None)
    defaults.forget_warnings()
    strict._meaning.cache_clear()
    strict.forget_notices()
    advice.forget_advice()
    # torch.manual_seed also queues calls for devices not in use, each with a formatted stack
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    yield
    choosing.refresh()


@pytest.fixture(autouse=True)
def _own_turns(tmp_path, monkeypatch):
    """No test waits for a process that measures on this machine, nor that for a test."""
    monkeypatch.setattr(device, "gettempdir", lambda: str(tmp_path))


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch):
    """The tuner's clock: every call is run, all take as long, and no test hangs on noise."""
    monkeypatch.setattr(conditions, "disturbed", lambda found, device: False)
    monkeypatch.setattr(measurement, "measure_for", lambda device: lambda run: (run(), 1e6)[1])


@pytest.fixture
def real_clock(monkeypatch):
    monkeypatch.setattr(measurement, "measure_for", clock.measure_for)


@pytest.fixture
def compile_anew():
    """No code that another test has compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend(compile_anew):
    return Backend()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "timings.v1.json"


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]
