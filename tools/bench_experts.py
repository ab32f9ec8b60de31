"""Times a mixture's experts, forward + backward: PEFT's path and the tuned graphs.

    OMP_WAIT_POLICY=passive python tools/bench_experts.py [--regime float32 ...] [--json FILE]
    OMP_WAIT_POLICY=passive python tools/bench_experts.py --model qwen3_moe ...

Without ``--model`` each row is one module of experts of Qwen3-MoE with adapters on both weights,
run by one of transformers' implementations: PEFT's, accelerated, and bare, in turn in this process,
on the same data, tuned first into a temporary cache file. With it whole training steps of a small
model of 4 layers are timed, and the losses of 20 steps compared. Figures are medians of paired
ratios.
"""

from __future__ import annotations

import copy
import time
from itertools import cycle
from statistics import geometric_mean, median

import peft
import torch
import transformers
from common.arguments import choice_of, parsed, parser_for, temporary_cache
from common.devices import device_option, step_measure
from common.memory import peak_bytes
from common.models import mixture
from common.regimes import Regime
from common.results import samples, write
from common.timing import interleaved
from torch import nn
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import autolora
from autolora.problem import IMPLEMENTATIONS
from autolora.timing.statistics import paired

CASES = [  # experts, top-k, hidden, inner, tokens, rank
    (16, 4, 512, 256, 512, 8),
    (64, 8, 512, 192, 512, 8),
    (128, 8, 1024, 384, 1024, 8),
    (16, 4, 512, 256, 4096, 8),
    (64, 8, 512, 192, 4096, 8),
    (16, 4, 512, 256, 512, 64),
    (64, 8, 512, 192, 512, 64),
]
REGIMES = ("float32", "bfloat16", "bfloat16, float32 adapters")
MOST_GATHERED = 2**32  # bytes of weights that batched_mm copies for its rows
MODELS = ("qwen3_moe", "mixtral", "gpt_oss")


class Holder(nn.Module):
    """A model of one module of experts, which PEFT can adapt."""

    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def forward(self, x, ids, weights):
        """X → Y, given the experts of each token and their weights."""
        return self.experts(x, ids, weights)


def adapted(model, names, rank, dtype):
    """A model with adapters on stacked weights, whose B is not zero, in training."""
    targets = [f"experts.{name}" for name in names]
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_parameters=targets, target_modules=[]
    )
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def seconds_for(experts):
    """Of one comparison: PEFT's slowest paths take seconds a step."""
    return 30 if experts < 100 else 60


def bench_case(case, regime_name, implementation, options):
    """Tunes and times one module of experts; returns its figures."""
    experts, top_k, hidden, inner, tokens, rank = case
    device = options.device
    regime = Regime.of(regime_name)
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=hidden,
        moe_intermediate_size=inner,
        num_experts=experts,
        num_experts_per_tok=top_k,
    )
    config._experts_implementation = implementation
    module = Holder(Qwen3MoeExperts(config)).to(device, regime.base)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    bare = copy.deepcopy(module).requires_grad_(False)
    plain = adapted(module, ["gate_up_proj", "down_proj"], rank, regime.adapter)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    models = {"peft": plain, "autolora": fast, "bare": bare}
    like = {"dtype": regime.base, "device": device}
    X = torch.randn(tokens, hidden, **like, requires_grad=True)
    logits = torch.randn(tokens, experts, device=device)
    chosen, ids = torch.topk(torch.softmax(logits, -1), top_k)
    weights = (chosen / chosen.sum(-1, keepdim=True)).to(regime.base)
    G = torch.randn(tokens, hidden, **like)

    def step(key):
        models[key](X, ids, weights).backward(G)

    def clear(key):
        X.grad = None
        models[key].zero_grad(set_to_none=True)

    begin = time.perf_counter()
    with autolora.record(plain) as problems:
        step("peft")
    # at the load that this step showed
    records = autolora.tune(list(problems.calls), effort=options.effort).records
    tuning = time.perf_counter() - begin
    times = interleaved(
        {key: lambda key=key: step(key) for key in models},
        options.rounds,
        prepare=clear,
        seconds=seconds_for(experts),
        measure=step_measure(device),
    )
    peaks = {}
    for key in ("peft", "autolora"):
        clear(key)
        peaks[key] = peak_bytes(lambda key=key: step(key), device)
    return {
        "case": case,
        "regime": regime_name,
        "implementation": implementation,
        "over_peft": paired(times["peft"], times["autolora"])[0],
        "bare_over_peft": paired(times["peft"], times["bare"])[0],
        "ms": {key: round(median(taken) / 1e6, 2) for key, taken in times.items()},
        "samples": samples(times, "peft"),
        "peak_bytes": peaks,
        "tuning_s": round(tuning, 1),
        "graphs": {f"{r.problem.in_features}→{r.problem.out_features}": r.winner for r in records},
    }


def bench_model(name, regime_name, implementation, options):
    """Tunes and times the training step of a small model; returns its figures."""
    regime, device, rank = Regime.of(regime_name), options.device, options.rank
    made, batches = mixture(name)
    made, batches = made.to(device), [batch.to(device) for batch in batches]
    made.set_experts_implementation(implementation)
    bare = copy.deepcopy(made).to(regime.base).requires_grad_(False).train()
    bare.get_input_embeddings().register_forward_hook(lambda _, given, Y: Y.requires_grad_())
    plain = adapted(made.to(regime.base), ["gate_up_proj", "down_proj"], rank, regime.adapter)
    fast = copy.deepcopy(plain)
    autolora.accelerate(fast)
    models = {"peft": plain, "autolora": fast, "bare": bare}
    turn = {key: cycle(batches) for key in models}

    def step(key, batch=None):
        batch = next(turn[key]) if batch is None else batch
        loss = models[key](input_ids=batch, labels=batch).loss
        loss.backward()
        return loss.item()

    begin = time.perf_counter()
    with autolora.record(fast) as problems:
        step("autolora")
    autolora.tune(problems, effort=options.effort)
    tuning = time.perf_counter() - begin
    times = interleaved(
        {key: lambda key=key: step(key) for key in models},
        options.rounds,
        prepare=lambda key: models[key].zero_grad(set_to_none=True),
        measure=step_measure(device),
    )
    losses = {}
    for key in ("peft", "autolora"):
        optimizer = torch.optim.AdamW(
            [p for p in models[key].parameters() if p.requires_grad], lr=5e-4
        )
        losses[key] = []
        for _, batch in zip(range(options.steps), cycle(batches), strict=False):
            optimizer.zero_grad()
            losses[key].append(step(key, batch))
            optimizer.step()
    return {
        "model": name,
        "regime": regime_name,
        "implementation": implementation,
        "rank": rank,
        "over_peft": paired(times["peft"], times["autolora"])[0],
        "bare_over_peft": paired(times["peft"], times["bare"])[0],
        "ms": {key: round(median(taken) / 1e6, 1) for key, taken in times.items()},
        "samples": samples(times, "peft"),
        "tuning_s": round(tuning, 1),
        "losses": losses,
    }


def show(row):
    """Prints one row."""
    experts, top_k, hidden, inner, tokens, rank = row["case"]
    peaks = [f"{(row['peak_bytes'][key] or 0) / 2**20:.0f}" for key in ("peft", "autolora")]
    print(
        f"{experts:>4} top {top_k} {hidden}/{inner} {tokens:>5} tokens rank {rank:<3}"
        f"{row['implementation']:>12}{row['over_peft']:>9.3f}x bare {row['bare_over_peft']:.3f}x"
        f"  ms {row['ms']}  peak MiB {' → '.join(peaks)}  tuned in {row['tuning_s']} s  "
        + "; ".join(f"{key} {graph}" for key, graph in row["graphs"].items()),
        flush=True,
    )


def case_of(text):
    """A case: its number in the list, or its sizes."""
    sizes = tuple(map(int, text.split("x")))
    return sizes if len(sizes) == len(CASES[0]) else CASES[int(text)]


def gathered(case, regime_name):
    """Bytes of the weights that batched_mm copies for its rows."""
    _, top_k, hidden, inner, tokens, _ = case
    return tokens * top_k * 2 * inner * hidden * (4 if regime_name == "float32" else 2)


def main() -> None:
    """Runs the modules of experts, or the models."""
    parser = parser_for(__doc__)
    choice_of(parser, "--regime", REGIMES)
    choice_of(parser, "--implementation", IMPLEMENTATIONS)
    parser.add_argument("--model", nargs="*", choices=MODELS, default=[])
    text = "indices into the list of cases, or sizes in their order such as 16x4x512x256x512x8"
    parser.add_argument("--case", nargs="*", type=case_of, help=text)
    parser.add_argument("--rank", type=int, default=16, help="of the models")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--effort", default="normal", help="of autolora.tune")
    device_option(parser)
    parser.add_argument("--steps", type=int, default=20, help="of training, for the losses")
    options = parsed(parser)
    rows = []
    for name in options.model:
        for regime in options.regime:
            for implementation in options.implementation:
                with temporary_cache():
                    row = bench_model(name, regime, implementation, options)
                rows.append(row)
                pairs = zip(*row["losses"].values(), strict=True)
                apart = max(abs(one - other) for one, other in pairs)
                print(
                    f"{name}, {regime}, {implementation}: {row['over_peft']:.3f}x (bare "
                    f"{row['bare_over_peft']:.3f}x) ms {row['ms']}; tuned in {row['tuning_s']} s; "
                    f"the losses of {options.steps} steps differ by at most {apart:.1e}, the last "
                    f"is {row['losses']['peft'][-1]:.4f}",
                    flush=True,
                )
                write(options.json, rows)
    if options.model:
        return
    cases = options.case or CASES
    for regime in options.regime:
        print(f"\n{regime}")
        for implementation in options.implementation:
            found = []
            for case in cases:
                if implementation == "batched_mm" and gathered(case, regime) > MOST_GATHERED:
                    continue
                with temporary_cache():
                    found.append(bench_case(case, regime, implementation, options))
                show(found[-1])
                write(options.json, rows + found)
            rows += found
            if found:
                over = [row["over_peft"] for row in found]
                print(
                    f"  {implementation}: geometric mean {geometric_mean(over):.3f}x, worst "
                    f"{min(over):.3f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
