"""Times a whole compiled training step: PEFT's model and its accelerated copy, eager and compiled.

    OMP_WAIT_POLICY=passive python tools/bench_compiled.py [--model llama] [--json FILE]

``llama`` is a 4-layer Llama of hidden 512 on random tokens, ``smollm2`` the pretrained
SmolLM2-135M, ``minilm`` a pretrained BERT on real reviews and ``llama-8b-block`` one decoder layer
of the size of Llama-3-8B's; ``tiny`` shows whether this tool works. Seven models, or the ``--ways``
given, run in turn in this process: PEFT and autolora, eager and compiled by torch.compile in its
default mode; autolora compiled without siblings (``apart``), and with eager records alone
(``other``); and the compiled model without adapters (``bare``). With ``--blocks`` each block is
compiled by itself, which takes seconds where the whole takes minutes. autolora is tuned first, into
a temporary cache file, eager and compiled. Figures are medians of paired ratios; the loss of the
first step of each is printed too.
"""

from __future__ import annotations

import copy
import time
from itertools import cycle
from statistics import median

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.devices import device_option, step_measure
from common.models import adapted, bare, llama, llama_8b_block, minilm, smollm2, tiny_llama
from common.regimes import OF_MODELS, Regime
from common.results import samples, write
from common.timing import interleaved
from torch import nn

import autolora
from autolora.timing.clock import peak_memory
from autolora.timing.statistics import paired

MODELS = {
    "llama": (llama, 4, 512),
    "smollm2": (smollm2, 2, 256),
    "minilm": (minilm, 16, 64),
    "llama-8b-block": (llama_8b_block, 1, 2048),
    "tiny": (tiny_llama, 1, 8),
}
BEFORE = ("peft", "autolora", "peft compiled", "other compiled", "bare compiled")
AFTER = ("autolora compiled", "apart compiled")  # what reads compiled records


def step(model, batch, context):
    """Forward and backward of one batch; returns the loss."""
    arguments = batch if isinstance(batch, dict) else {"input_ids": batch, "labels": batch}
    with context:
        loss = model(**arguments).loss
    loss.backward()
    return loss.item()


def compile_in_place(model, blocks):
    """Compiles a model, or each of its blocks."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for part in max(lists, key=len) if blocks else [model]:
        part.compile()


def bench(name, regime_name, options):
    """Tunes and times one model in one regime; returns its figures."""
    regime, device, ways = Regime.of(regime_name), options.device, options.ways
    make, size, length = MODELS[name]
    size, length = options.batch_size or size, options.seq_len or length
    made, batches = make(size, length)
    batches = [_onto(batch, device) for batch in batches]
    made.to(device)
    made.config.use_cache = False  # of keys and values, whose layer's number would be a guard
    floor = bare(copy.deepcopy(made).to(regime.base))
    plain = adapted(made.to(regime.base), options.rank, regime.adapter)
    models = {}
    for key in ways:
        models[key] = floor if key == "bare compiled" else copy.deepcopy(plain)
        if key not in ("peft", "peft compiled", "bare compiled"):
            together = key != "apart compiled"
            autolora.accelerate(models[key], compute_dtype=regime.compute, siblings=together)
    tuning, first, losses = {}, {}, {}
    turn = {key: cycle(batches) for key in models}

    def one(key):
        losses.setdefault(key, []).append(
            step(models[key], next(turn[key]), regime.context(device.type))
        )

    def start(key):
        begin = time.perf_counter()
        if key.endswith("compiled"):
            compile_in_place(models[key], options.blocks)
        one(key)
        first[key] = time.perf_counter() - begin

    def tune(key):
        if key not in models:
            return []
        begin = time.perf_counter()
        with regime.context(device.type):
            # each model reads the cache at its first step; only the one that is tuned reads it anew
            result = autolora.tune(
                models[key],
                tokens=size * length,
                compiled=key.endswith("compiled"),
                effort=options.effort,
            )
        tuning[key.partition(" ")[2] or "eager"] = time.perf_counter() - begin
        return result.records

    def clear(key):
        models[key].zero_grad(set_to_none=True)

    records = tune("autolora")
    for key in filter(models.__contains__, BEFORE):
        start(key)
    records = tune("autolora compiled") or records
    for key in filter(models.__contains__, AFTER):
        start(key)
    steps = {key: lambda key=key: one(key) for key in models}
    times = interleaved(steps, options.rounds, prepare=clear, measure=step_measure(device))
    peaks = {}
    for key in models:
        clear(key)
        peaks[key] = peak_memory(steps[key], device)
    ours = next((key for key in ("autolora compiled", "autolora") if key in models), None)
    seen = autolora.explain(models[ours]).layers if ours else []

    def over(base, key):
        return round(paired(times[base], times[key])[0], 4) if {base, key} <= times.keys() else None

    return {
        "model": name,
        "regime": regime_name,
        "tokens": size * length,
        "rank": options.rank,
        "ms": {key: round(median(taken) / 1e6, 2) for key, taken in times.items()},
        "over_peft": {key: over("peft", key) for key in models},
        "over_apart": over("apart compiled", "autolora compiled"),
        "over_peft_compiled": {key: over("peft compiled", key) for key in models},
        "first_step_s": {key: round(taken, 2) for key, taken in first.items()},
        "tuning_s": {key: round(taken, 1) for key, taken in tuning.items()},
        "problems": len(records),
        "won_by_peft": sum(record.winner == record.reference for record in records),
        "exact": sum(layer.reason == "exact" for layer in seen),
        "choices": len(seen),
        "samples": samples(times, "peft", "peft compiled", "apart compiled"),
        "peak_bytes": peaks,
        "losses": {key: values[:3] for key, values in losses.items()},
    }


def _onto(batch, device):
    """A batch on a device."""
    if isinstance(batch, dict):
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return batch.to(device)


def main() -> None:
    """Runs the models and regimes and prints a table for each."""
    parser = parser_for(__doc__)
    choice_of(parser, "--model", MODELS, ["llama", "smollm2", "minilm"])
    choice_of(parser, "--regime", OF_MODELS)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--effort", default="normal", help="of autolora.tune")
    parser.add_argument("--blocks", action="store_true", help="compile block by block")
    choice_of(parser, "--ways", BEFORE + AFTER)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seq-len", type=int)
    device_option(parser)
    options = parsed(parser)
    rows = []
    for name in options.model:
        for regime in options.regime:
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64  # the models have their code in common
            with temporary_cache():
                row = bench(name, regime, options)
            rows.append(row)
            show(row)
            write(options.json, rows)


def show(row):
    """Prints the figures of one model and regime."""
    tuned = ", ".join(f"{mode} in {taken} s" for mode, taken in row["tuning_s"].items())
    print(
        f"\n{row['model']}, {row['regime']}: {row['tokens']} tokens, rank {row['rank']}; tuned "
        f"{tuned} ({row['problems']} problems, {row['won_by_peft']} won by PEFT's graph; "
        f"{row['exact']} of {row['choices']} choices exact); compiled with siblings over without: "
        f"{_times(row['over_apart'])}"
    )
    print(f"{'':20}{'step ms':>10}{'over PEFT':>11}{'over PEFT compiled':>20}{'compiling s':>13}")
    for key, ms in sorted(row["ms"].items(), key=lambda pair: -pair[1]):
        print(
            f"{key:20}{ms:10.1f}{_times(row['over_peft'][key]):>11}"
            f"{_times(row['over_peft_compiled'][key]):>20}{row['first_step_s'][key]:13.1f}"
            f"   loss {row['losses'][key][0]:.5f}",
            flush=True,
        )


def _times(ratio):
    return "-" if ratio is None else f"{ratio:.3f}x"


if __name__ == "__main__":
    main()
