"""``torchrun -m autolora tune``: real processes that share the work, die, hang or disagree."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import MODEL, QUICK
from made_up_clock import Clock
from made_up_ranks import MEASURED, crossing, environ, free_port, lines, made_up_clock, start
from rank_clusters import ranks
from small_llama import SIZES

from autolora import TimingCache
from autolora.cli import main, tune
from autolora.cli.output.ranks import _PrefixedStream, print_thread_note
from autolora.cli.targets import device_of
from autolora.cluster.liveness import FAILED
from autolora.environment import Environment

TUNE = ("tune", "model.py", *QUICK)
DEADLINE = 150


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")


def end(processes):
    """The exit code and output of each rank."""
    try:
        completed = [process.communicate(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, completed, strict=True)]


def torchrun(*words):
    """Two ranks, started by torchrun itself."""
    variables = environ(0, 1, 0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del variables[name]
    variables.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), *words]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def flat(text):
    return " ".join(text.split())


def wanted(path, *tokens):
    """The problems of the model, as one process finds them, at other counts."""
    found = {record.problem.at(1) for record in TimingCache.load(path).records}
    assert len(found) == 2
    return {problem.at(count) for problem in found for count in tokens}


# ---- sharing


def test_ranks_do_what_one_process_does_in_each_environment(path, monkeypatch):
    """Two ranks share one environment, a third has its own; a range of tokens grows in both."""
    words = (*TUNE, "--tokens", "50:200", "--json")
    completed = end(start(words, size=3, threads="112"))
    assert [code for code, *_ in completed] == [0, 0, 0], completed
    assert [out for _, out, _ in completed[1:]] == ["", ""]
    shared = TimingCache.load(path).records
    with monkeypatch.context() as patched:
        made_up_clock(patched.setattr)
        assert main([*words, "--cache", "alone.json"]) == 0
    alone = {record.problem: record for record in TimingCache.load("alone.json").records}
    assert {problem.tokens for problem in alone} > {50, 64, 128, 200}  # some were added
    units = {record.environment.units for record in shared}
    assert units == {1, 2}
    for number in units:
        mine = {r.problem: r for r in shared if r.environment.units == number}
        assert mine.keys() == alone.keys()
        for problem, record in mine.items():
            assert record.winner == alone[problem].winner
            assert record.winner == crossing(problem)[problem.tokens > 100]
    times = {line: lines(MEASURED).count(line) for line in lines(MEASURED)}
    assert times == {str(problem): 2 for problem in alone}  # once in each environment
    document = json.loads(completed[0][1])
    assert [rank["state"] for rank in document["ranks"]] == ["finished"] * 3
    first, second, third = (rank["measured"] for rank in document["ranks"])
    assert (first + second, third) == (len(alone), len(alone))
    assert len(document["records"]) == len(alone)
    assert {rank["environment"] for rank in document["ranks"]} == set(document["environments"])
    assert completed[1][2].splitlines()
    assert all(line.startswith("rank 1: ") for line in completed[1][2].splitlines())


def test_under_torchrun_and_once_more(path):
    run = torchrun("-m", "autolora", *TUNE)
    assert run.returncode == 0, run.stderr
    assert "2 problems measured in" in flat(run.stdout)
    assert re.search(r"2 ranks shared the work: \d by rank 0, \d by rank 1\.", flat(run.stdout))
    assert run.stdout.count("Cache: ") == 1
    assert "1 thread per rank, since torchrun sets OMP_NUM_THREADS=1" in run.stderr
    measured = TimingCache.load(path).records
    assert len(measured) == 2
    quiet = [replace(record, effort="quick", conditions={}) for record in measured]
    before = TimingCache(quiet, "quiet.json").save().read_bytes()
    (code, out, _), (other, nothing, _) = end(
        start((*TUNE, "--cache", "quiet.json"), ("joined", -1))
    )
    assert (code, other, nothing) == (0, 0, "")
    assert "0 problems measured, 2 already in the cache" in flat(out)
    assert lines(MEASURED) == []
    assert Path("quiet.json").read_bytes() == before


def test_ranks_find_the_same_problems_in_a_module_with_arguments(
    path, tmp_path, monkeypatch, capsys
):
    """Of a model whose inputs are made from its configuration; one layer of it gets none."""
    pytest.importorskip("transformers")
    Path("llamas").mkdir()
    Path("llamas/__init__.py").touch()
    Path("llamas/sizes.py").write_text(f"SIZES = {SIZES!r}", encoding="utf-8")
    Path("llamas/model.py").write_text(
        "import sys\n"
        "from torch import nn\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from .sizes import SIZES\n"
        "class Llama(LlamaForCausalLM):\n"
        "    def __init__(self):\n"
        "        super().__init__(LlamaConfig(**SIZES))\n"
        "        self.model.spare = nn.Linear(32, int(sys.argv[1]))\n",
        encoding="utf-8",
    )
    target = ("llamas.model:Llama", "--target-modules", "o_proj,down_proj,spare")
    completed = end(start(("tune", *target, *QUICK, "--", "40")))
    assert [code for code, *_ in completed] == [0, 0], completed
    assert "layer model.spare: not called in a run on inputs made from" in completed[0][2]
    problems = {record.problem for record in TimingCache.load(path).records}
    assert sorted(lines(MEASURED)) == sorted(map(str, problems))  # each by one of the ranks
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sizes = ("--rank", "2", "--batch-size", "2", "--seq-len", "8")
    assert main(["explain", *target, *sizes, "--json", "--", "40"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    known = [problem.to_json() for problem in problems]
    assert len(layers) == 2 + 2 + 2  # the spare one with and without the gradient of its input
    assert all(layer["problem"] in known for layer in layers)
    assert all(problem in [layer["problem"] for layer in layers] for problem in known)


# ---- losing ranks


@pytest.mark.parametrize(
    ("fate", "words"), [("killed", "stopped responding"), ("stuck", "did not finish")]
)
def test_a_lost_rank_costs_what_it_has_in_hand(path, fate, words):
    """The stuck one has its turn on the device, and never gives it back."""
    first, second = start((*TUNE, "--tokens", "8,16"), (fate, 1))
    try:
        out, err = first.communicate(timeout=DEADLINE)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert first.returncode == 2, err
    assert "A rank was lost: 3 problems measured" in flat(out)
    assert "1 still to do" in flat(out)
    assert f"{words} with a problem in hand, which is not measured" in flat(out)
    done = {record.problem for record in TimingCache.load(path).records}
    assert len(done) == 3
    assert {str(problem) for problem in done} == set(lines(MEASURED))
    (left,) = wanted(path, 8, 16) - done
    assert left.tokens == 16  # the dearest come first


def test_without_rank_0_the_others_write_what_they_have(path):
    (gone, *_), (code, out, err) = end(start((*TUNE, "--tokens", "8,16"), ("killed late", 0)))
    assert (gone, code, out) == (-9, 2, "")
    done = {str(record.problem) for record in TimingCache.load(path).records}
    assert done == set(lines(MEASURED))
    assert 1 <= len(done) <= 3
    assert f"rank 0 is lost; what this rank measured is in {path}" in err


def test_torchrun_ends_all_when_one_has_died_and_nothing_is_lost(path):
    script = str(Path(__file__).parents[1] / "support/made_up_ranks.py")
    run = torchrun(script, "killed late", "1", *TUNE, "--tokens", "8,9,10,11,12,13,14,15")
    assert run.returncode != 0
    told = len(re.findall(r"\d+/16  measured", run.stderr))
    kept = len(TimingCache.load(path).records)
    assert 1 <= told <= kept < 16
    assert f"Interrupted: {kept} problem" in flat(run.stdout)


# ---- what all ranks agree on


def test_a_wrong_option_is_told_by_rank_0_alone(capsys, monkeypatch):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(["tune", "model.py", "--effort", "huge"]) == 2
        assert capsys.readouterr().err.count("autolora: error: ") == (rank == "0")


def test_bad_input_is_told_once(path):
    completed = end(start(("tune", "missing.py", *QUICK)))
    assert [(code, out) for code, out, _ in completed] == [(2, ""), (2, "")]
    everything = "".join(err for *_, err in completed)
    assert everything.count("error: no such file: missing.py") == 1
    assert everything.count("autolora: error:") == 1
    assert "Traceback" not in everything
    assert not path.exists()


@pytest.fixture
def as_rank(monkeypatch):
    """Makes this process one of several ranks that share a store."""

    def play(cluster):
        @contextmanager
        def joined():
            yield cluster

        monkeypatch.setattr(tune, "joined", joined)

    return play


def test_only_rank_0_shows_estimates(autolora, path, as_rank):
    first, second = ranks(2, Clock())
    as_rank(second)
    completed = autolora(*TUNE, "--effort", "estimate")
    assert (completed.code, completed.out) == (0, "")
    as_rank(first)
    completed = autolora(*TUNE, "--effort", "estimate")
    assert completed.code == 0
    assert completed.out.startswith("Estimates")
    assert not path.exists()


@pytest.mark.parametrize("theirs", [False, True])
def test_a_rank_says_what_concerns_it_alone(autolora, as_rank, theirs):
    first, second = ranks(2, Clock())
    message = "no such file: missing.py"
    if theirs:
        first.end(FAILED, message)
    else:
        first.publish_known([])
    first.leave()
    as_rank(second)
    completed = autolora("tune", "missing.py", *QUICK)
    assert completed.code == 2
    assert completed.out == ""
    assert completed.err == ("" if theirs else f"rank 1: autolora: error: {message}\n")


def test_each_rank_takes_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in (None, "cuda"):
        assert [device_of(name, local).index for local in range(6)] == [0, 1, 2, 3, 0, 1]
    assert [device_of("cuda:1", local).index for local in range(3)] == [1, 1, 1]
    assert device_of("cpu", 3) == torch.device("cpu")


def test_a_line_says_which_rank_wrote_it(tmp_path):
    path = tmp_path / "said"
    with path.open("w", encoding="utf-8") as stream:
        named = _PrefixedStream(stream, "rank 3: ")
        named.write("one\ntwo ")
        stream.flush()
        assert path.read_text(encoding="utf-8") == "rank 3: one\n"  # lines of two do not mix
        named.write("words\n")
        named.write("three")
        named.end()
    assert lines(path) == ["rank 3: one", "rank 3: two words", "rank 3: three"]


@pytest.mark.parametrize(
    ("device", "variable", "threads", "told"),
    [
        ("cpu", "1", 1, True),
        ("cpu", "2", 1, False),
        ("cpu", "1", 2, False),
        ("cuda", "1", 1, False),
    ],
)
def test_threads_are_told_of(monkeypatch, capsys, device, variable, threads, told):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    print_thread_note(torch.device(device))
    assert ("1 thread per rank" in capsys.readouterr().err) == told


def test_what_others_tuned_is_one_line_for_each_environment(capsys):
    from autolora.cli.output.ranks import print_shares
    from autolora.cluster.share import Share

    cpu = Environment.of("cpu")
    gpu = Environment("cuda", "NVIDIA A100", "8.0", 108, "2.13.0", "cublas of CUDA 13.0", "high")
    shares = [
        Share(0, "one", "cpu", cpu, 3, 1.0, False, "finished", ""),
        Share(1, "one", "cpu", cpu, 4, 1.0, True, "dead", ""),
        Share(2, "two", "cuda:0", gpu, 5, 1.0, False, "finished", ""),
        Share(3, "two", "cuda:1", gpu, 3, 1.0, False, "finished", ""),
        Share(4, "three", "", None, 0, 0.0, False, "failed", "no such file: model.py"),
    ]
    print_shares(shares)
    completed = flat(capsys.readouterr().out)
    assert "2 ranks shared the work: 3 by rank 0, 4 by rank 1." in completed
    assert (
        "Rank 1 on one (cpu) stopped responding with a problem in hand, which is not measured."
        in completed
    )
    assert "2 ranks on NVIDIA A100 tuned 8 problems for their own environment." in completed
    assert "Rank 4 on three could not take part: no such file: model.py" in completed
