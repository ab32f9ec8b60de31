"""Times a layer and a small model: autolora beside other implementations of LoRA, and their limit.

    OMP_WAIT_POLICY=passive python tools/bench_peers.py [--environments FOLDER] [--json FILE]

The ways: PEFT, eager and compiled; loralib; LyCORIS, with and without ``bypass_mode``; litgpt's
``LoRALinear``; NeMo Automodel's ``LinearLoRA``, without Triton; on a GPU Unsloth's kernels; the
graphs of the fewest FLOPs; the fastest forward pass and then the fastest backward pass for it;
autolora, eager and compiled, for models with siblings and without; and the model without adapters.

What is installed runs in turn in this process. With ``--environments`` every other peer gets a
virtual environment in that folder and runs in a process of its own, in turn with PEFT, so that only
its ratio over PEFT compares with the others. All start with the same weights. *Differs* is the
largest relative difference from PEFT of Y and of all gradients (of a model: of the loss and of all
gradients); a way beyond the root of the dtype's epsilon computes something else and is marked.

*Limit* is the time of a layer over the least that this machine needs for it, see
``common/limit.py``. ``--steps`` shows what a layer's graph consists of.
"""

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.devices import device_option
from common.limit import Speeds, least_ns, timed_steps
from common.models import One, adapted, bare, llama
from common.passes import by_time_of_each_pass
from common.peers import PEERS, Missing, environment, replaced, why_not
from common.regimes import Regime
from common.results import samples, write
from common.timing import interleaved
from torch import nn

import autolora
from autolora.graphs.kinds import find_graph
from autolora.graphs.unmeasured import flops_graph
from autolora.nn.adapted import adapted_layers
from autolora.nn.choosing import pin
from autolora.timing.clock import measure_for
from autolora.timing.data import Data

REGIMES = ("float32", "bfloat16")
SHAPES = [(2048, 768, 768), (1024, 1024, 4096)]  # tokens, in, out
PINNED = ("fewest FLOPs", "forward, then backward")
OURS = ("autolora", "autolora compiled", "autolora, siblings", *PINNED)
WAYS = ("PEFT", "PEFT compiled", *PEERS, *OURS, "bare")


class Layer:
    """One layer on random numbers."""

    def __init__(self, regime, shape, device):
        tokens, i, o = shape
        torch.manual_seed(0)
        self.name, self.tokens = f"{tokens} × {i} → {o}", tokens
        self.base = One(nn.Linear(i, o, bias=False), regime.layout).to(device, regime.base)
        self.targets = ["layer"]
        self.X = torch.randn(tokens, i, device=device, dtype=regime.base, requires_grad=True)
        self.G = torch.randn(tokens, o, device=device, dtype=regime.base)

    def bare(self, model):
        """The layer without an adapter."""
        return model.train()

    def step(self, model):
        """Forward and backward; returns Y and the gradients beside the adapters'."""
        self.X.grad = None
        Y = model(self.X)
        Y.backward(self.G)
        return {"Y": Y, "dX": self.X.grad}


class Model:
    """A small Llama on random tokens."""

    def __init__(self, regime, tokens, device):
        batch = max(1, tokens // 512)
        made, batches = llama(batch, tokens // batch)
        self.name, self.tokens = f"Llama of 4 layers, {tokens} tokens", tokens
        self.base, self.ids = made.to(device, regime.base), batches[0].to(device)
        self.base.config.use_cache = False
        self.targets = "all-linear"

    def bare(self, model):
        """The model without adapters."""
        return bare(model)

    def step(self, model):
        """Forward and backward; returns the loss."""
        loss = model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        return {"loss": loss}


class Bench:
    """A subject made in several ways, which start with the same weights.

    Args:
        subject: a layer or a model.
        regime: of it.
        rank: of its adapters.
        options: of the command line.
        device: that it runs on.
    """

    def __init__(self, subject, regime, rank, options, device):
        self.subject, self.options, self.device = subject, options, device
        self.rank, self.models, self.adapters = rank, {}, {}
        subject.base.requires_grad_(False)
        self.plain = adapted(self.copied(subject.base), rank, regime.adapter, subject.targets)
        self.given = adapters_of(self.plain)
        for _, B in self.given.values():
            nn.init.normal_(B, std=0.02)

    def copied(self, model):
        """A copy with the frozen weights in common."""
        return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})

    def make(self, way):
        """Makes the model of a way."""
        if way == "bare":
            model, trained = self.subject.bare(self.copied(self.subject.base)), {}
        elif way in PEERS:
            model = self.copied(self.subject.base)
            trained = replaced(model, PEERS[way], self.given, 2 * self.rank)
            model.train()
        else:
            model = self.copied(self.plain)
            trained = adapters_of(model)
        if way in OURS:
            autolora.accelerate(model, siblings="siblings" in way)
        if way == "fewest FLOPs":
            pin(model, flops_graph)
        elif way == "forward, then backward":
            seconds = self.options.paper_seconds
            pin(model, cache(lambda each: by_time_of_each_pass(each, seconds, self.device)))
        self.models[way], self.adapters[way] = model, trained

    def tune(self, way):
        """Tunes the problems of a way as it runs; returns the records."""
        with autolora.record(self.models[way]) as problems:
            self.subject.step(self.models[way])
        return autolora.tune(
            problems, compiled=way.endswith("compiled"), effort=self.options.effort
        ).records

    def clear(self, way):
        """Drops the gradients of a way."""
        for pair in self.adapters[way].values():
            for parameter in pair:
                parameter.grad = None

    def results(self, way):
        """What a way computes: Y or the loss, and every gradient."""
        self.clear(way)
        found = self.subject.step(self.models[way])
        for path, (A, B) in self.adapters[way].items():
            found |= {f"dA of {path}": A.grad, f"dB of {path}": B.grad}
        return {name: tensor.detach().double().clone() for name, tensor in found.items()}


def adapters_of(model):
    """Path of a layer of PEFT in the model that was adapted → its A and B."""
    return {
        name.removeprefix("base_model.model."): (
            module.lora_A["default"].weight,
            module.lora_B["default"].weight,
        )
        for name, module in model.named_modules()
        if "default" in getattr(module, "lora_A", ())
    }


def bench(subject, regime_name, rank, ways, options, device):
    """Tunes and times the ways of one subject in this process; returns a row for each."""
    regime = Regime.of(regime_name)
    made = Bench(subject, regime, rank, options, device)
    for way in ways:
        made.make(way)
    tuned = {way: made.tune(way) for way in ways if way in OURS and way not in PINNED}
    for way in ways:
        if way.endswith("compiled"):
            torch._dynamo.config.recompile_limit = 64  # the models have their code in common
            made.models[way].compile()
    expected = made.results("PEFT")
    differs = {
        way: max(
            float((found - expected[name]).norm() / expected[name].norm())
            for name, found in made.results(way).items()
        )
        for way in ways
        if way != "bare"
    }
    times = interleaved(
        {way: lambda way=way: subject.step(made.models[way]) for way in ways},
        options.rounds,
        prepare=made.clear,
        measure=measure_for(device),
    )
    shared = {"subject": subject.name, "regime": regime_name, "rank": rank}
    rows = {
        way: shared
        | {
            "way": way,
            "differs": differs.get(way),
            "exact": way == "bare" or differs[way] <= torch.finfo(regime.base).eps ** 0.5,
            "version": PEERS[way].installed if way in PEERS else None,
            "reason": "",
            **found,
        }
        for way, found in samples(times, "PEFT").items()
    }
    for way, records in tuned.items():
        rows[way]["graphs"] = {str(record.problem): record.winner for record in records}
    if isinstance(subject, Layer) and "autolora" in ways:
        add_limits(rows, made, tuned["autolora"], options, device)
    return list(rows.values())


def add_limits(rows, made, records, options, device):
    """Adds the times over the limit of a layer, and the steps of the graph that autolora runs."""
    (layer,) = adapted_layers(made.models["autolora"])
    problem = layer.problem(made.subject.tokens)
    speeds = speeds_of(device, problem.dtype)
    limit = least_ns(problem, speeds) / 1e6
    for way, row in rows.items():
        if way != "bare":
            row["limit_ms"], row["over_limit"] = limit, row["ms"]["median"] / limit
    (winner,) = (record.winner for record in records)
    graph, data = find_graph(winner, problem), Data.random(problem, device)
    rows["autolora"]["steps"] = timed_steps(graph, data, speeds, max(3, options.rounds // 3))


@cache
def speeds_of(device, dtype):
    """The speed of this machine in a dtype."""
    return Speeds.measured(device, [dtype])


def elsewhere(way, subject, shape, regime, rank, options):
    """The rows of PEFT and a peer, from a process in the peer's own environment."""
    python = environment(options.environments, PEERS[way])
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "rows.json"
        command = [python, str(Path(__file__).resolve()), "--json", str(written)]
        command += ["--way", "PEFT", way, "--subject", subject, "--regime", regime]
        command += ["--rank", str(rank), "--rounds", str(options.rounds)]
        command += ["--device", options.device.type, "--shape", str(shape)]
        command += ["--tokens", str(options.tokens)] if options.tokens else []
        command += ["--threads", str(options.threads)] if options.threads else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Missing(said[-1])
        return json.loads(written.read_text(encoding="utf-8"))["rows"]


def rows_of(subject, shape, regime, rank, options, device):
    """The rows of all ways, in this process and others."""
    if subject == "layer":
        tokens, *sizes = SHAPES[shape]
        made = Layer(Regime.of(regime), (options.tokens or tokens, *sizes), device)
    else:
        made = Model(Regime.of(regime), options.tokens or 2048, device)
    barred = {way: why_not(PEERS[way], device) for way in options.way if way in PEERS}
    apart = [way for way, reason in barred.items() if reason or not PEERS[way].is_here]
    skipped = {*apart, *(() if subject == "model" else ["autolora, siblings"])}
    rows = bench(made, regime, rank, [w for w in options.way if w not in skipped], options, device)
    for way in apart:
        row = {"subject": made.name, "regime": regime, "rank": rank, "way": way}
        reason = barred[way] or ("" if options.environments else "is not installed")
        try:
            if not reason:
                _, found = elsewhere(way, subject, shape, regime, rank, options)
                row = {**found, "environment": "its own"}
        except Missing as error:
            reason = str(error)
        rows.append({**row, "reason": reason} if reason else row)
    return rows


def show(rows, steps):
    """Prints the rows of one subject."""
    first = rows[0]
    print(f"\n{first['subject']}, {first['regime']}, rank {first['rank']}")
    print(f"{'':24}{'ms':>10}{'over PEFT':>11}{'differs':>10}{'limit':>8}  ")
    for row in rows:
        if "ms" not in row:
            print(f"{row['way']:24}  {row['reason']}")
            continue
        ratio = row.get("over PEFT", {"median": 1.0})["median"]
        differs = "" if row["differs"] is None else f"{row['differs']:.1e}"
        limit = f"{row['over_limit']:.2f}x" if "over_limit" in row else ""
        notes = ["computes something else"] * (not row["exact"])
        notes += ["in a process of its own"] * ("environment" in row)
        print(
            f"{row['way']:24}{row['ms']['median']:>10.3f}{ratio:>10.3f}x{differs:>10}{limit:>8}  "
            + "; ".join(notes),
            flush=True,
        )
        for step in row.get("steps", ()) if steps else ():
            print(f"    {step['step']:40}{step['ms']:>9.3f} ms, limit {step['limit_ms']:.3f} ms")


def main() -> None:
    """Runs the subjects and prints a table for each."""
    parser = parser_for(__doc__)
    choice_of(parser, "--subject", ("layer", "model"))
    choice_of(parser, "--regime", REGIMES)
    choice_of(parser, "--way", WAYS)
    parser.add_argument("--shape", nargs="*", type=int, help="indices into the list of layers")
    parser.add_argument("--rank", nargs="*", type=int, default=[16])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, help="instead of the subject's own")
    parser.add_argument("--effort", default="normal", help="of autolora.tune")
    parser.add_argument("--paper-seconds", type=float, default=2.0, help="per graph and pass")
    device_option(parser, "cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--environments", type=Path, help="where peers are installed")
    parser.add_argument("--steps", action="store_true", help="of the graphs of layers")
    options = parsed(parser)
    options.way = list(dict.fromkeys(["PEFT", *options.way]))
    device, rows = options.device, []
    cases = [("layer", number) for number in options.shape or range(len(SHAPES))]
    for subject, shape in [*cases, ("model", 0)]:
        if subject not in options.subject:
            continue
        for regime in options.regime:
            for rank in options.rank:
                torch._dynamo.reset()
                with temporary_cache():
                    these = rows_of(subject, shape, regime, rank, options, device)
                show(these, options.steps)
                rows += these
                write(options.json, rows, device)


if __name__ == "__main__":
    main()
