"""Times the models of the paper "Run LoRA Run" as it does: PEFT's beside autolora's.

    OMP_WAIT_POLICY=passive python tools/bench_paper.py [--row 0 3] [--compiled] [--json FILE]

What is timed is what the paper times: ``model(**batch).loss.backward()``, forward and backward of
a whole model in training, with adapters on every linear layer but the head, all of one dtype.
*Saved* is 1 - t / t_PEFT; the paper's figure for its GPU stands beside it. All ways run in turn in
this process: PEFT, autolora, the graphs of the fewest FLOPs, and the model without adapters; with
``--compiled`` also PEFT, autolora and the bare model compiled. *Overhead* is the share of what
adapters cost that is gone.

The models have their published sizes and random weights. The paper trains Llama2-7b whole; here 2
blocks of it are timed, and rank, length and batch are a choice. On the CPU batch and depth are cut,
and every table says so. Where the depth is cut, the vocabulary is cut likewise, so that the head
has about its share of the whole model's time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import transformers
from common.arguments import parsed, parser_for, temporary_cache
from common.memory import kept_bytes, peak_bytes
from common.models import adapted, bare
from common.results import samples, write
from common.timing import interleaved

import autolora
from autolora.graphs.unmeasured import flops_graph
from autolora.nn.choosing import pin
from autolora.timing.clock import measure_for

MIB = 2**20
COMPILED = ("peft compiled", "autolora compiled", "bare compiled")


@dataclass(frozen=True)
class Row:
    """A row of the paper's tables.

    Args:
        model: its name.
        dtype: of weights, adapters and computation.
        rank: of the adapters.
        length: tokens of a sequence.
        paper: per cent saved over PEFT.
        made: the class of the model and of its configuration.
        sizes: arguments of the configuration.
        vocabulary: number of tokens, 0 for images.
        blocks: of the published model.
        most: blocks that are timed at most, on any device.
    """

    model: str
    dtype: str
    rank: int
    length: int
    paper: float
    made: tuple[type, type]
    sizes: dict[str, int | float | bool]
    vocabulary: int
    blocks: int
    most: int = 24


LLAMA = (transformers.LlamaForCausalLM, transformers.LlamaConfig)
ROBERTA = (transformers.RobertaForMaskedLM, transformers.RobertaConfig)
OPT_350M = {
    "hidden_size": 1024,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}
ROBERTA_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
OF_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
LLAMA_250M = {
    "hidden_size": 768,
    "intermediate_size": 2560,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "use_cache": False,
}
LLAMA2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "use_cache": False,
}
VIT = (transformers.ViTForImageClassification, transformers.ViTConfig)
OPT = (transformers.OPTForCausalLM, transformers.OPTConfig)
BF16, F32 = "bfloat16", "float32"
LARGE = {**ROBERTA_LARGE, **OF_ROBERTA}
ROWS = [
    Row("OPT-350M", BF16, 128, 512, 28.29, OPT, OPT_350M, 50272, 24),
    Row("RoBERTa-large", BF16, 128, 512, 22.66, ROBERTA, LARGE, 50265, 24),
    Row("Llama-250M", BF16, 128, 2048, 17.81, LLAMA, LLAMA_250M, 32100, 24),
    Row("Llama-250M", F32, 256, 2048, 15.99, LLAMA, LLAMA_250M, 32100, 24),
    Row("ViT-base", F32, 32, 197, 14.37, VIT, {"num_labels": 1000}, 0, 12),
    Row("RoBERTa-base", F32, 128, 512, 11.88, ROBERTA, OF_ROBERTA, 50265, 12),
    Row("Llama2-7b", BF16, 128, 2048, 21.47, LLAMA, LLAMA2_7B, 32000, 32, most=2),
]
LEAST_VOCABULARY = 256


def made(row, depth, batch, device, length=None):
    """The model of a row with some of its blocks, and a batch of random inputs."""
    kind, config = row.made
    words = max(LEAST_VOCABULARY, row.vocabulary * depth // row.blocks)
    vocabulary = {"vocab_size": words} if row.vocabulary else {}
    torch.manual_seed(0)
    model = kind(config(num_hidden_layers=depth, **vocabulary, **row.sizes))
    dtype = getattr(torch, row.dtype)
    if row.vocabulary:
        ids = torch.randint(5, words, (batch, length or row.length))  # after the special tokens
        inputs = {"input_ids": ids, "labels": ids}
    else:
        images = torch.randn(batch, 3, 224, 224).to(dtype)
        labels = torch.randint(0, model.config.num_labels, (batch,))
        inputs = {"pixel_values": images, "labels": labels}
    return model.to(device, dtype), {name: each.to(device) for name, each in inputs.items()}


def step(model, inputs):
    """Forward and backward of one batch; returns the loss."""
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def sharing(model):
    """A copy with the frozen weights in common."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def tuned(model, inputs, effort, compiled):
    """Tunes a model for what one step of it shows; returns the records."""
    with autolora.record(model) as problems:
        step(model, inputs)
    return autolora.tune(problems, compiled=compiled, effort=effort).records


def bench(row, depth, batch, options, device):
    """Tunes and times a row of the paper; returns its figures."""
    model, inputs = made(row, depth, batch, device, options.length)
    model.requires_grad_(False)
    floor = bare(sharing(model))
    dtype = getattr(torch, row.dtype)
    head = {} if row.vocabulary else {"exclude_modules": ["classifier"]}
    plain = adapted(model, row.rank, dtype, **head)
    models = {"peft": plain, "autolora": sharing(plain), "flops": sharing(plain), "bare": floor}
    if options.compiled:
        models |= {key: sharing(floor if key[:4] == "bare" else plain) for key in COMPILED}
    for key, each in models.items():
        if key.startswith(("autolora", "flops")):
            autolora.accelerate(each, siblings=key != "flops")
    pin(models["flops"], flops_graph)
    records = {"autolora": tuned(models["autolora"], inputs, options.effort, False)}
    if options.compiled:
        key = "autolora compiled"
        records[key] = tuned(models[key], inputs, options.effort, True)
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64  # the models have their code in common
        for key in COMPILED:
            models[key].compile()

    def clear(key):
        models[key].zero_grad(set_to_none=True)

    losses = {}
    for key, each in models.items():
        torch.manual_seed(0)  # of dropout
        clear(key)
        losses[key] = step(each, inputs)
    runs = {key: partial(step, each, inputs) for key, each in models.items()}
    times = interleaved(runs, options.rounds, prepare=clear, measure=measure_for(device))
    kept, peaks = {}, {}
    for key, each in models.items():
        clear(key)
        kept[key] = kept_bytes(lambda each=each: each(**inputs).loss, each.parameters())
        peaks[key] = peak_bytes(runs[key], device)
    ms = {key: median(taken) / 1e6 for key, taken in times.items()}

    def figures(key):
        base, least = (f"{way} compiled" * key.endswith("compiled") or way
                       for way in ("peft", "bare"))  # fmt: skip
        return {
            "saved": 1 - median(t / p for t, p in zip(times[key], times["peft"], strict=True)),
            "overhead_removed": (ms[base] - ms[key]) / (ms[base] - ms[least]),
            "saved_bytes": kept[key],
            "peak_bytes": peaks[key],
            "loss": losses[key],
        }

    found = samples(times, *(base for base in ("peft", "peft compiled") if base in times))
    return {
        "model": row.model,
        "dtype": row.dtype,
        "rank": row.rank,
        "length": (row.vocabulary and options.length) or row.length,
        "batch": batch,
        "depth": depth,
        "of_blocks": row.blocks,
        "paper_saved": round(row.paper / 100, 4),
        "ways": {key: found[key] | figures(key) for key in models},
        "graphs": {
            key: {str(each.problem): {"chosen": each.winner, "by_flops": each.flops_choice}
                  for each in taken}
            for key, taken in records.items()
        },
    }  # fmt: skip


def show(row):
    """Prints the figures of one row."""
    cut = row["depth"] < row["of_blocks"]
    print(
        f"\n{row['model']}, {row['dtype']}, rank {row['rank']}, {row['batch']} × {row['length']} "
        f"tokens, {row['depth']} of {row['of_blocks']} blocks{' (depth cut)' * cut}; the paper "
        f"saves {row['paper_saved']:.2%} with all blocks and a large batch on a GPU\n"
        f"{'':20}{'ms':>10}{'saved':>9}{'overhead':>10}{'saved MiB':>11}{'peak MiB':>10}"
        f"{'loss':>10}"
    )
    for key, way in row["ways"].items():
        peak = "–" if way["peak_bytes"] is None else f"{way['peak_bytes'] / MIB:.1f}"
        print(
            f"{key:20}{way['ms']['median']:>10.2f}{way['saved']:>9.2%}"
            f"{-way['overhead_removed']:>+10.0%}{way['saved_bytes'] / MIB:>11.1f}{peak:>10}"
            f"{way['loss']:>10.4f}",
            flush=True,
        )
    for key, graphs in row["graphs"].items():
        for problem, graph in graphs.items():
            print(f"  {key}: {problem}: {graph['chosen']}\n    by FLOPs: {graph['by_flops']}")


def main() -> None:
    """Runs the rows and prints a table for each."""
    on_gpu = torch.cuda.is_available()
    names = "; ".join(f"{n}: {row.model} {row.dtype}" for n, row in enumerate(ROWS))
    parser = parser_for(__doc__)
    parser.add_argument("--row", nargs="*", type=int, default=range(len(ROWS)), help=names)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--depth", type=int, help="blocks; all on a GPU, 2 on the CPU")
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--length", type=int, help="of a text in tokens, instead of the paper's")
    parser.add_argument("--effort", default="normal", help="of autolora.tune")
    parser.add_argument("--compiled", action="store_true", help="compiled models as well")
    options = parsed(parser)
    device, rows = torch.device("cuda" if on_gpu else "cpu"), []
    for number in options.row:
        row = ROWS[number]
        depth = min(row.blocks, options.depth or (row.most if on_gpu else 2))
        with temporary_cache():
            rows.append(bench(row, depth, options.batch, options, device))
        show(rows[-1])
        write(options.json, rows, device)


if __name__ == "__main__":
    main()
