import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from records import CPU, H100

import autolora.environment
from autolora.environment import Environment, cpu_name

ROOT = Path(autolora.environment.__file__).parents[1]

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: {model}
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
cpu family\t: 25
model\t\t: 99
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""


def test_of_a_cpu_is_what_torch_says():
    here = Environment.of("cpu")
    assert here == Environment.of(torch.device("cpu"))
    assert here.device == "cpu"
    assert here.units == torch.get_num_threads()
    assert here.torch == str(torch.__version__)
    assert here.capability == torch.backends.cpu.get_cpu_capability()
    assert here.float32_matmul_precision == torch.get_float32_matmul_precision()
    assert here.blas


def test_settings_of_the_process_are_read_anew():
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert Environment.of("cpu").float32_matmul_precision == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def run_python(code):
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_of_a_cpu_starts_no_cuda_and_knows_the_newer_precision_setting():
    done = run_python(
        "import torch\n"
        "from autolora.environment import Environment\n"
        "Environment.of('cpu')\n"
        "assert not torch.cuda.is_initialized()\n"
        "if hasattr(getattr(torch.backends.mkldnn, 'matmul', None), 'fp32_precision'):\n"
        "    torch.backends.mkldnn.matmul.fp32_precision = 'bf16'\n"
        "    assert Environment.of('cpu').float32_matmul_precision == 'bf16'\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_module_does_not_import_torch():
    done = run_python("import sys, autolora.environment; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
def test_of_a_cuda_device_is_what_torch_says():
    here = Environment.of("cuda")
    properties = torch.cuda.get_device_properties(0)
    assert here == Environment.of("cuda:0")
    assert here.device_name == properties.name
    assert here.units == properties.multi_processor_count
    assert here.capability == "{}.{}".format(*torch.cuda.get_device_capability(0))


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, not 'meta'"):
        Environment.of("meta")


def test_a_vague_brand_is_told_apart_by_its_numbers():
    name = cpu_name(EPYC.format(model=17))
    assert name == "AMD EPYC (cpu family 25, model 17, stepping 1)"
    assert name != cpu_name(EPYC.format(model=1))


def test_arm_has_a_name_without_a_brand():
    assert cpu_name(GRAVITON) == "Arm (implementer 0x41, part 0xd40, variant 0x1, revision 1)"


@pytest.mark.parametrize("text", ["", "processor: 0\n", "\x00\xff"])
def test_a_cpuinfo_that_says_nothing_is_no_name(text):
    with pytest.raises(ValueError, match="no CPU model"):
        cpu_name(text)


def test_without_cpuinfo_there_is_a_name_all_the_same(monkeypatch):
    monkeypatch.setattr(autolora.environment, "_CPUINFO", Path("/no/such/file"))
    assert autolora.environment._cpu_name.__wrapped__()


@pytest.mark.parametrize("environment", [CPU, H100])
def test_json_gives_the_environment_back(environment):
    copy = Environment.from_json(json.loads(json.dumps(environment.to_json())))
    assert copy == environment
    assert copy.id == environment.id


def test_the_id_depends_on_every_field_and_never_changes():
    others = {field.name: "other" for field in fields(Environment)} | {"units": 3}
    ids = {replace(CPU, **{name: value}).id for name, value in others.items()}
    assert len(ids | {CPU.id}) == len(others) + 1
    assert CPU.id == "fd7862f7e6c4"  # files refer to environments by it


@pytest.mark.parametrize(
    "changes",
    [
        {"units": 0},
        {"units": True},
        {"units": 2.0},
        {"units": 2**53},
        {"torch": None},
        {"blas": ""},
        {"device_name": "x" * 201},
        {"device_name": "\x1b[31mred"},
        {"device_name": "two\nlines"},
        {"capability": 9.0},
        {"clock": 1},
    ],
)
def test_json_that_is_no_environment_is_refused(changes):
    with pytest.raises(ValueError, match="environment"):
        Environment.from_json({**CPU.to_json(), **changes})


@pytest.mark.parametrize("value", [None, [], "cpu", 1, {}, {"device": "cpu"}])
def test_other_json_is_refused(value):
    with pytest.raises(ValueError, match="must have the fields"):
        Environment.from_json(value)
