"""Times layers with one X, forward + backward: PEFT's, tuned one by one, and run together.

    OMP_WAIT_POLICY=passive python tools/bench_siblings.py [--regime float32 ...] [--json FILE]
    OMP_WAIT_POLICY=passive python tools/bench_siblings.py --model smollm2 ...

Without ``--model`` the layers are those of one block: q, k and v, or gate and up, in several sizes.
With it whole training steps are timed: the model accelerated with siblings and without. All
variants run in turn in this process, on the same data, and are tuned first, into a temporary cache
file; figures are medians of paired ratios. ``--compiled`` compiles the layers of all variants.
"""

from __future__ import annotations

import copy
import time
from itertools import cycle
from statistics import geometric_mean, median

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.models import adapted, bare, llama, minilm, smollm2, vit
from common.regimes import OF_MODELS, Regime
from common.results import samples, write
from common.timing import interleaved
from torch import nn

import autolora
from autolora.problem import Siblings
from autolora.timing.statistics import paired

SHAPES = [  # tokens, in, outs
    (512, 576, (576, 192, 192)),
    (512, 576, (1536, 1536)),
    (2048, 768, (768, 768, 768)),
    (2048, 768, (2048, 2048)),
]
RANKS = [8, 16, 64]
REGIMES = [*OF_MODELS, "dropout, float32", "dropout, bfloat16, float32 adapters, compute_dtype"]
MODELS = {
    "smollm2": (smollm2, 2, 256),
    "minilm": (minilm, 16, 64),
    "llama": (llama, 4, 512),
    "vit": (vit, 8, None),
}


class Block(nn.Module):
    """Layers with one X."""

    def __init__(self, in_features, outs):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(in_features, o, bias=False) for o in outs)

    def forward(self, x):
        """X → every Y."""
        return [layer(x) for layer in self.layers]


def joined(records):
    """How many of the records of siblings were won by running together."""
    together = [r for r in records if isinstance(r.problem, Siblings)]
    return sum(r.winner.startswith("together") for r in together), len(together)


def accelerated(plain, regime, *, siblings):
    """A copy of a model along measured graphs, with siblings or without."""
    model = copy.deepcopy(plain)
    autolora.accelerate(model, compute_dtype=regime.compute, siblings=siblings)
    return model


def compared(times):
    """The ratios of what ran in turn, and the median milliseconds of each."""
    return {
        "over_apart": paired(times["apart"], times["siblings"])[0],
        "over_peft": paired(times["peft"], times["siblings"])[0],
        "bare_over_peft": paired(times["peft"], times["bare"])[0],
        "ms": {key: round(median(taken) / 1e6, 3) for key, taken in times.items()},
        "samples": samples(times, "peft", "apart"),
    }


def bench_layers(name, shape, rank, rounds, compiled):
    """Tunes and times the layers of one block, eager or compiled; returns its figures."""
    regime = Regime.of(name)
    tokens, in_features, outs = shape
    torch.manual_seed(0)
    block = Block(in_features, outs).to(regime.base)
    plain = adapted(copy.deepcopy(block), rank, regime.adapter, **regime.lora)
    for parameter_name, parameter in plain.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.02)
    models = {"peft": plain, "bare": block.requires_grad_(False)}
    for key, together in (("apart", False), ("siblings", True)):
        models[key] = accelerated(plain, regime, siblings=together)
    X = torch.randn(tokens, in_features, dtype=regime.base, requires_grad=True)
    gradients = [torch.randn(tokens, o, dtype=regime.base) for o in outs]

    def step(key):
        with regime.context():
            outputs = models[key](X)
        torch.autograd.backward(outputs, gradients)

    def clear(key):
        X.grad = None
        models[key].zero_grad(set_to_none=True)

    begin = time.perf_counter()
    with autolora.record(models["siblings"]) as problems:
        step("siblings")
    records = autolora.tune(problems, compiled=compiled).records
    tuning = time.perf_counter() - begin
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64  # the models have their code in common
        for model in models.values():
            model.compile()
    steps = {key: lambda key=key: step(key) for key in models}
    times = interleaved(steps, rounds, warmup=3, prepare=clear)
    winners = [r.winner for r in records if isinstance(r.problem, Siblings)]
    return {
        "regime": name,
        "tokens": tokens,
        "in": in_features,
        "outs": outs,
        "rank": rank,
        "compiled": compiled,
        **compared(times),
        "tuning_s": round(tuning, 1),
        "graph": winners[0] if winners else "one by one",
    }


def trained(models, batches, step, steps):
    """The losses of models over some steps of AdamW, each on the same batches."""
    losses = {key: [] for key in models}
    for key, model in models.items():
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
        for _, batch in zip(range(steps), cycle(batches), strict=False):
            optimizer.zero_grad()
            losses[key].append(step(key, batch))
            optimizer.step()
    return losses


def bench_model(name, regime_name, rank, rounds, steps):
    """Tunes and times the training step of one model; returns its figures."""
    regime = Regime.of(regime_name)
    make, size, length = MODELS[name]
    made, batches = make(size, length)
    floor = bare(copy.deepcopy(made).to(regime.base))
    if name == "vit":
        batches = [{k: v.to(regime.base) if v.is_floating_point() else v for k, v in b.items()}
                   for b in batches]  # fmt: skip
    plain = adapted(made.to(regime.base), rank, regime.adapter, **regime.lora)
    models = {"peft": plain, "bare": floor}
    for key, together in (("apart", False), ("siblings", True)):
        models[key] = accelerated(plain, regime, siblings=together)
    turn = {key: cycle(batches) for key in models}

    def step(key, batch=None):
        batch = next(turn[key]) if batch is None else batch
        arguments = batch if isinstance(batch, dict) else {"input_ids": batch, "labels": batch}
        with regime.context():
            loss = models[key](**arguments).loss
        loss.backward()
        return loss.item()

    tuning, found = {}, []
    for key in ("apart", "siblings"):
        with autolora.record(models[key]) as problems:
            step(key)
        begin = time.perf_counter()
        found = autolora.tune(problems).records
        tuning[key] = round(time.perf_counter() - begin, 1)
    times = interleaved(
        {key: lambda key=key: step(key) for key in models},
        rounds,
        prepare=lambda key: models[key].zero_grad(set_to_none=True),
    )
    layers = autolora.explain(models["siblings"]).layers
    alike = {key: models[key] for key in ("peft", "apart", "siblings")}
    losses = trained(alike, batches, step, steps)
    return {
        "model": name,
        "regime": regime_name,
        "rank": rank,
        **compared(times),
        "tuning_s": tuning,
        "together": joined(found),
        "joint_layers": len({e.name for e in layers if isinstance(e.problem, Siblings)}),
        "losses": losses,
    }


def show_model(row):
    """Prints the figures of one model."""
    won, posed = row["together"]
    losses = row["losses"]
    apart = {
        key: max(abs(one - other) for one, other in zip(values, losses["apart"], strict=True))
        for key, values in losses.items()
    }
    print(
        f"{row['model']}, {row['regime']}, rank {row['rank']}: siblings over one by one "
        f"{row['over_apart']:.3f}x, over PEFT {row['over_peft']:.3f}x (bare "
        f"{row['bare_over_peft']:.3f}x); {row['joint_layers']} layers run together, {won} of "
        f"{posed} problems won so; "
        f"tuning {row['tuning_s']} s\n   ms {row['ms']}\n   largest difference of the losses "
        f"of {len(losses['apart'])} steps from one by one: PEFT {apart['peft']:.2e}, siblings "
        f"{apart['siblings']:.2e}; the last is {losses['siblings'][-1]:.4f}",
        flush=True,
    )


def show_layers(rows, name):
    """Prints the rows of one regime and their means."""
    over = [row["over_apart"] for row in rows]
    print(
        f"{name}: over one by one geometric mean {geometric_mean(over):.3f}x, worst "
        f"{min(over):.3f}x; tuning at most {max(row['tuning_s'] for row in rows):.1f} s",
        flush=True,
    )


def main() -> None:
    """Runs the blocks, or the models."""
    parser = parser_for(__doc__)
    parser.add_argument("--model", nargs="*", choices=list(MODELS), default=[])
    choice_of(parser, "--regime", REGIMES)
    parser.add_argument("--rank", nargs="*", type=int)
    parser.add_argument("--shape", nargs="*", type=int, help="indices into the list of shapes")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20, help="of training, for the losses")
    parser.add_argument("--compiled", action="store_true", help="compile the layers (no models)")
    options = parsed(parser)
    rows = []
    for name in options.model:
        for regime in options.regime:
            for rank in options.rank or [16]:
                with temporary_cache():
                    row = bench_model(name, regime, rank, options.rounds, options.steps)
                rows.append(row)
                show_model(row)
                write(options.json, rows)
    if options.model:
        return
    shapes = [SHAPES[index] for index in options.shape or range(len(SHAPES))]
    with temporary_cache():
        for name in options.regime:
            print(
                f"\n{name}\n   X → siblings{'rank':>19}{'one by one':>11}{'PEFT':>11}{'bare':>11}"
            )
            these = []
            for shape in shapes:
                for rank in options.rank or RANKS:
                    row = bench_layers(name, shape, rank, options.rounds, options.compiled)
                    these.append(row)
                    write(options.json, rows + these)
                    title = f"{row['tokens']} × {row['in']} → {', '.join(map(str, row['outs']))}"
                    ratios = (row[key] for key in ("over_apart", "over_peft", "bare_over_peft"))
                    words = "".join(f"{ratio:>10.3f}x" for ratio in ratios)
                    print(f"   {title:28}{rank:>5}{words}  {row['graph']}", flush=True)
            show_layers(these, name)
            rows += these


if __name__ == "__main__":
    main()
