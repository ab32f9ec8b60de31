"""Ranks as torchrun starts them, on a made-up clock; some of them die or hang while they measure.

As a program: ``made_up_ranks.py FATE RANK tune ...`` is one rank, and that rank has that fate; or
all have, where it is that their process group is up before the command begins.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

SECONDS = 120.0  # after which what was waited for will not come any more
BEGUN, MEASURED = Path("begun"), Path("measured")


def made_up_clock(patch):
    """A machine on which one graph wins below 100 tokens, and another above."""
    from dataclasses import replace

    from autolora.graphs.space import find_graph
    from autolora.timing import conditions, kinds, measurement
    from autolora.timing.data import Data
    from autolora.timing.screen import Prediction

    def step(data, graph):
        few, many = crossing(data.problem)
        share = data.problem.tokens / 100
        times = {few: 3 * share**1.2, many: 3 * share**0.8}
        return lambda: 1e4 * times.get(graph.name, 10 * share)

    def predict(problem, *_):
        return [Prediction(find_graph(name, problem), 1e6) for name in crossing(problem)]

    patch(Data, "step", step)
    patch(Data, "floor", lambda data: lambda: 1.0)
    patch(conditions, "disturbed", lambda found, device: False)
    bench = replace(kinds.WORKBENCHES["layer"], predict=predict)
    patch(kinds, "WORKBENCHES", {"layer": bench})
    patch(measurement, "measure_for", lambda device: lambda run: run() or 1.0)


def crossing(problem):
    """The graphs that are fast for few and for many tokens."""
    from autolora.graphs.space import valid_graphs
    from autolora.graphs.unmeasured import flops_graph

    others = {"reference", flops_graph(problem).name}
    few, many = sorted(set(valid_graphs(problem)) - others)[:2]
    return few, many


def environ(rank, size, port, **more):
    """The variables that torchrun sets."""
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TMPDIR": str(Path.cwd()),  # where the locks are
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[2], *sys.path))),
    }
    return {**os.environ, **own, **more}


def run_as_ranks(source, variables):
    """Runs a program as ranks; what each printed last, as JSON, and its stderr.

    Args:
        source: of the program.
        variables: of each rank's environment, OMP_NUM_THREADS among them.
    """
    from forks import Fork, run_source

    port, size = free_port(), len(variables)
    ranks = [
        Fork(run_source, source, environment={**environ(rank, size, port), **own})
        for rank, own in enumerate(variables)
    ]
    try:
        said = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * size, said
    return [(json.loads(out.splitlines()[-1]), err) for out, err in said]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(words, fates=("", -1), size=2, threads="11"):
    """Starts the ranks of one run in the working folder."""
    from forks import Fork  # not for the ranks themselves

    port = free_port()
    return [
        Fork(
            run_rank,
            *fates,
            words,
            environment=environ(rank, size, port, OMP_NUM_THREADS=threads[rank]),
        )
        for rank in range(size)
    ]


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.02)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def play(fate, fated):
    """This process is a rank: its clock, its patience, and what happens to it."""
    import torch

    from autolora.cluster import liveness
    from autolora.timing import device, measurement
    from autolora.tuning import tuner

    made_up_clock(setattr)
    device._LOOK_SECONDS = 0.2
    liveness.HEARTBEAT_SECONDS = 0.2
    if fate.startswith("killed"):
        liveness.SILENT_SECONDS = 3.0
    if fate == "joined":
        torch.distributed.init_process_group("gloo")
    if fate == "stuck":
        liveness.STUCK_SECONDS, tuner.STUCK_TIMES = 3.0, 0.0
    own = int(os.environ["RANK"])
    measure, turn_on = measurement.measure_problem, tuner.turn_on

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def hang():
        threading.Event().wait()

    def measured(problem, *args, **options):
        if own == fated:
            BEGUN.touch()
            if fate == "killed late":
                until(lambda: lines(MEASURED))
            {"killed": kill, "killed late": kill, "stuck": hang}[fate]()
        record = measure(problem, *args, **options)
        with MEASURED.open("a", encoding="utf-8") as file:
            file.write(f"{problem}\n")
        return record

    def turn(place, *more):
        """The fated rank comes first."""
        if fate == "killed late":
            tempfile.tempdir = f"host-{own}"  # a host of its own, whose turns nobody else takes
            Path(tempfile.tempdir).mkdir(exist_ok=True)
        if fated >= 0 and own != fated:
            until(BEGUN.exists)
        return turn_on(place, *more)

    tuner.measure_problem, tuner.turn_on = measured, turn


def run_rank(fate, fated, words):
    from autolora.cli import main

    play(fate, int(fated))
    return main(words)


if __name__ == "__main__":
    sys.exit(run_rank(*sys.argv[1:3], sys.argv[3:]))
