import os
import sys
from types import SimpleNamespace

import pytest
import torch
from records import make_record

from autolora.timing import conditions
from autolora.timing.conditions import (
    State,
    Ticks,
    before,
    cpu_clocks,
    disturbed,
    shares,
    since,
    throttle_reasons,
    ticks,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STAT = """\
cpu  1000 20 300 5000 70 6 40 50 900 0
cpu0 500 10 150 2500 35 3 20 25 450 0
intr 1 2 3
"""
CPUINFO = """\
processor\t: 0
cpu MHz\t\t: 2596.138
cache size\t: 1024 KB

processor\t: 1
cpu MHz\t\t: 3403.862
"""
ALWAYS = {"load_1min", "processors", "others_busy", "steal"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """The files of a made-up Linux; none of them is there until it is written."""
    for name, file in (("_STAT", "stat"), ("_CPUINFO", "cpuinfo"), ("_CPUS", "cpu")):
        monkeypatch.setattr(conditions, name, tmp_path / file)
    return tmp_path


# --- processors --------------------------------------------------------------------------------


def test_ticks_are_read_from_the_line_of_all_processors():
    assert ticks(STAT) == Ticks(busy=1000 + 20 + 300 + 6 + 40, stolen=50, total=6486)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3 4 5 6 7 8\n", "cpu  1 2 3\n", "cpu  a b c d\n"])
def test_other_text_has_no_ticks(text):
    assert ticks(text) is None


def state(busy, stolen, total):
    return State(Ticks(busy, stolen, total), 0.0, 0.0)


@pytest.mark.parametrize(
    ("end", "own", "others", "stolen"),
    [
        (state(500, 0, 2000), 5.0, 0.0, 0.0),  # all that was busy was this process
        (state(1500, 0, 2000), 5.0, 0.5, 0.0),
        (state(1500, 100, 2000), 0.0, 0.75, 0.05),
        (state(400, 0, 2000), 5.0, 0.0, 0.0),  # the kernel counted too coarsely
        (state(0, 0, 0), 0.0, None, None),  # no time has passed
        (State(None, 0.0, 0.0), 0.0, None, None),
    ],
)
def test_the_shares_of_others_and_of_the_host(monkeypatch, end, own, others, stolen):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert shares(state(0, 0, 0), State(end.ticks, own, 10.0)) == (others, stolen)


def test_a_system_without_counters_tells_no_share():
    nothing = State(None, 1.0, 1.0)
    assert shares(nothing, nothing) == shares(nothing, state(1, 1, 1)) == (None, None)


def test_clocks_of_cpuinfo():
    assert cpu_clocks(CPUINFO) == [2596.138, 3403.862]
    assert cpu_clocks("cpu MHz\t\t: 0.000\ncpu MHz : unknown\nmodel name : AMD\n") == []


def test_a_machine_that_tells_nothing_still_has_conditions(machine, monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    found = since(before(), CPU)
    assert found == {
        "load_1min": None,
        "processors": os.cpu_count(),
        "others_busy": None,
        "steal": None,
    }
    assert make_record(conditions=found).conditions == found


def test_a_machine_that_tells_all(machine, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 0, 0), raising=False)
    (machine / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    (machine / "cpuinfo").write_text(CPUINFO)
    governor = machine / "cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n")
    start = before()
    (machine / "stat").write_text("cpu  60000 0 30000 0 0 0 0 10000 0 0\n")
    found = since(start, CPU)
    assert found.pop("others_busy") == pytest.approx(0.9, abs=0.05)
    assert found == {
        "load_1min": 1.23,
        "processors": os.cpu_count(),
        "steal": 0.1,
        "cpu_clock_mhz": 3000,
        "cpu_governor": "performance",
    }


def test_clocks_are_read_elsewhere_where_cpuinfo_has_none(machine):
    for number, text in enumerate(["2000000\n", "3000000\n", "<unknown>\n", "0\n"]):
        folder = machine / f"cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(text)
    assert since(before(), CPU)["cpu_clock_mhz"] == 2500


def test_this_machine_can_be_read():
    found = since(before(), CPU)
    assert found.keys() >= ALWAYS
    for share in ("others_busy", "steal"):
        assert found[share] is None or 0 <= found[share] <= 1
    assert make_record(conditions=found).conditions == found


# --- GPUs --------------------------------------------------------------------------------------

ME, OTHER = os.getpid(), os.getpid() + 1


class NVMLError(Exception):
    pass


class Nvml:
    """Stands in for pynvml on a machine with two GPUs."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, processes=(ME,), samples=((ME, 90),), uuids=("GPU-first", "GPU-mine")):
        self.processes, self.samples, self.uuids = processes, samples, uuids
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.uuids:
            raise NVMLError("not found")
        return self.uuids.index(uuid)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {(0, 1): 100, (0, 2): 101, (1, 1): 1980, (1, 2): 2619}[handle, kind]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 40 + 10 * handle

    def nvmlDeviceGetPowerUsage(self, handle):
        return 611_400

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x4

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in self.processes]

    def nvmlDeviceGetProcessUtilization(self, handle, time_stamp):
        assert time_stamp > 1e15  # microseconds since 1970
        return [SimpleNamespace(pid=pid, smUtil=used) for pid, used in self.samples]


class Broken:
    """Every call raises, with ``init=False`` all but the first."""

    NVMLError = NVMLError

    def __init__(self, error, init=True):
        self.error, self.init = error, init

    def __getattr__(self, name):
        if name == "nvmlInit" and not self.init:
            return lambda: None

        def fail(*arguments):
            raise self.error

        return fail


@pytest.fixture
def gpu(monkeypatch):
    """What a GPU's conditions are with some pynvml; torch knows it by its UUID."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="mine")
    )

    def read(nvml):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        found = since(before(), GPU)
        assert make_record(conditions=found).conditions == found
        assert found.keys() >= ALWAYS
        return {n: v for n, v in found.items() if n not in ALWAYS and not n.startswith("cpu_")}

    return read


def test_a_gpu_is_found_by_its_uuid_and_read(gpu):
    nvml = Nvml()
    assert gpu(nvml) == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "temperature_c": 50,
        "power_w": 611,
        "throttle_reasons": "power cap",
        "gpu_other_processes": 0,
        "gpu_others_busy": 0.0,
    }
    assert nvml.open == 0


def test_a_part_of_a_gpu_has_a_uuid_of_another_kind(gpu):
    assert gpu(Nvml(uuids=("GPU-first", "MIG-mine")))["sm_clock_mhz"] == 1980


def test_a_gpu_that_nvml_does_not_know_is_left_out(gpu):
    nvml = Nvml(uuids=("GPU-first",))
    assert gpu(nvml) == {}
    assert nvml.open == 0


def test_other_processes_are_counted_and_their_use(gpu):
    samples = ((ME, 60), (OTHER, 20), (OTHER, 40), (ME, 50))
    found = gpu(Nvml(processes=(ME, OTHER), samples=samples))
    assert (found["gpu_other_processes"], found["gpu_others_busy"]) == (1, 0.3)


def test_use_that_cannot_be_told_apart_is_left_out(gpu):
    found = gpu(Nvml(processes=(OTHER,), samples=((OTHER, 99),)))  # that is this one, renumbered
    assert found["gpu_other_processes"] == 0
    assert "gpu_others_busy" not in found
    assert "gpu_other_processes" not in gpu(Nvml(processes=()))


def test_one_reading_that_fails_leaves_the_others(gpu):
    nvml = Nvml()
    nvml.nvmlDeviceGetPowerUsage = Broken(NVMLError("not supported")).anything
    assert gpu(nvml).keys() >= {"sm_clock_mhz", "temperature_c"}
    assert "power_w" not in gpu(nvml)


@pytest.mark.parametrize("error", [NVMLError("no"), OSError("no"), AttributeError("no")], ids=repr)
@pytest.mark.parametrize("init", [True, False])
def test_nvml_that_does_not_work_tells_nothing(gpu, error, init):
    assert gpu(Broken(error, init)) == {}


def test_nvml_that_is_not_installed_tells_nothing(gpu):
    assert gpu(None) == {}


def test_a_torch_that_does_not_know_uuids_tells_nothing(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    nvml = Nvml()
    assert gpu(nvml) == {}
    assert nvml.open == 0


def test_throttle_reasons_in_words():
    assert throttle_reasons(0) == throttle_reasons(0x1) == ""  # nothing, and idle
    assert throttle_reasons(0x44 | 1 << 60) == "power cap, hardware thermal slowdown"


def test_all_throttle_reasons_at_once_fit_a_record():
    make_record(conditions={"throttle_reasons": throttle_reasons(2**64 - 1)})


@pytest.mark.cuda
def test_a_real_gpu_can_be_read():
    pytest.importorskip("pynvml")
    start = before()
    torch.ones(1 << 20, device="cuda").sum().item()
    found = since(start, torch.device("cuda", 0))
    assert min(found["sm_clock_mhz"], found["temperature_c"]) > 0
    assert make_record(conditions=found).conditions == found


@pytest.mark.parametrize(
    ("others", "stolen", "device", "disturbs"),
    [
        (0.5, 0.0, "cpu", True),
        (0.0, 0.5, "cpu", True),
        (0.2, 0.2, "cpu", False),
        (None, None, "cpu", False),
        (0.9, 0.9, "cuda", False),
    ],
)
def test_what_others_take_disturbs(others, stolen, device, disturbs):
    found = {"others_busy": others, "steal": stolen, "processors": 2}
    assert disturbed(found, torch.device(device)) == disturbs
