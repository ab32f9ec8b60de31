"""The tables of the documents: rows of results to cells, one function for each table.

Every function takes the rows of one machine, and gives the lines of a table as lists of cells, the
heading first.
"""

from __future__ import annotations

from statistics import fmean, geometric_mean, median, stdev

from common.cells import MIB, grouped, quartiles, regime, slashed, times
from common.comparisons import noise, paper, peers
from common.headline import headline


def layers(rows):
    """One line for each regime: means and worst cases over shapes and ranks."""
    yield ["regime", "speed-up over PEFT", "worst case", "bare", "over the choice by FLOPs"]
    for name, these in grouped(rows, "regime").items():
        speedups, over = ([row[key] for row in these] for key in ("speedup", "over_flops"))
        bare = geometric_mean(row["ms"]["peft"] / row["ms"]["floor"] for row in these)
        means = (geometric_mean(speedups), min(speedups), bare, geometric_mean(over))
        first, *others = map(times, means)
        yield [regime(name), f"**{first}**", *others]


def models(rows):
    """One line for each model and regime."""
    titles = ["step over PEFT (quartiles)", "LoRA overhead removed", "bare", "losses differ"]
    yield ["model", "regime", *titles]
    for row in rows:
        found = row["samples"]
        yield [
            f"{row['model']}, {row['tokens']} tokens, rank {row['rank']}",
            regime(row["regime"]),
            quartiles(found["autolora"]["over peft"]),
            f"{row['overhead_removed']:.0%}",
            quartiles(found["floor"]["over peft"]),
            f"{row['largest_difference']:.1e}",
        ]


def compiled(rows):
    """One line for each model and regime, over the compiled PEFT."""
    shown = {
        "autolora compiled": "autolora compiled (quartiles)",
        "apart compiled": "without siblings",
        "other compiled": "with eager records alone",
        "bare compiled": "no adapters",
        "autolora": "autolora, not compiled",
    }
    yield ["model", "regime", *shown.values()]
    for row in rows:
        samples = row["samples"]
        found = (samples[key]["over peft compiled"] if key in samples else None for key in shown)
        cells = (quartiles(each) if each else "–" for each in found)
        yield [row["model"], regime(row["regime"]), *cells]


def siblings(rows):
    """One line for each shape; a column for each regime, with a figure for each rank."""
    ranks = sorted({row["rank"] for row in rows})
    rows = [{**row, "column": (row["compiled"], row["regime"])} for row in rows]
    columns = list(grouped(rows, "column"))
    titles = [f"{'compiled, ' * compiled}{regime(name)}" for compiled, name in columns]
    yield [f"X → siblings, ranks {slashed(ranks)}", *titles]
    for shape, these in grouped(rows, "tokens", "in", "outs").items():
        tokens, in_features, outs = shape
        found = {(row["column"], row["rank"]): f"{row['over_apart']:.2f}" for row in these}
        cells = (slashed(found.get((each, rank), "–") for rank in ranks) for each in columns)
        yield [f"{tokens} × {in_features} → {', '.join(map(str, outs))}", *cells]


def siblings_models(rows):
    """One line for each model and regime."""
    yield ["model", "regime", "rank", "over one by one (quartiles)", "over PEFT", "bare"]
    for row in rows:
        found = row["samples"]
        ratios = (
            found["siblings"]["over apart"],
            found["siblings"]["over peft"],
            found["bare"]["over peft"],
        )
        yield [row["model"], regime(row["regime"]), str(row["rank"]), *map(quartiles, ratios)]


def experts(rows):
    """One line for each case; a column for each regime, with the module without adapters."""

    def ratios(row):
        return f"{times(row['over_peft'])} ({times(row['bare_over_peft'])})"

    return _experts(rows, ratios)


def experts_memory(rows):
    """One line for each case: the peak of memory of a step, PEFT's and autolora's."""

    def peaks(row):
        found = (row["peak_bytes"][key] for key in ("peft", "autolora"))
        return " → ".join("–" if each is None else f"{each / MIB:,.0f} MiB" for each in found)

    return _experts(rows, peaks)


def _experts(rows, cell):
    several = len({row["implementation"] for row in rows}) > 1
    columns = list(grouped(rows, "regime", "implementation"))
    titles = [f"{regime(name)}{f', {by}' * several}" for name, by in columns]
    yield ["experts, top-k, hidden/inner, tokens, rank", *titles]
    for case, these in grouped(rows, "case").items():
        number, top_k, hidden, inner, tokens, rank = case
        found = {(row["regime"], row["implementation"]): cell(row) for row in these}
        title = f"{number}, {top_k}, {hidden}/{inner}, {tokens}, {rank}"
        yield [title, *(found.get(each, "–") for each in columns)]


def experts_models(rows):
    """One line for each model and regime."""
    yield ["model", "regime", "step over PEFT (quartiles)", "without adapters", "losses differ"]
    for row in rows:
        pairs = zip(*row["losses"].values(), strict=True)
        found = (quartiles(row["samples"][key]["over peft"]) for key in ("autolora", "bare"))
        apart = max(abs(one - other) for one, other in pairs)
        yield [row["model"], regime(row["regime"]), *found, f"{apart:.1e}"]


def experts_regret(rows):
    """One line for each problem."""
    yield ["problem", "regret", "graphs", "over PEFT", "tuned in"]
    for row in rows:
        counts = (f"{row['graphs']}", times(row["over_peft"]), f"{row['tuning_s']:.0f} s")
        yield [row["problem"], f"{row['regret']:.3f}", *counts]


def run(rows):
    """One line for each regime, over the script alone."""
    titles = ["peak of memory, alone → `autolora run`", "losses differ"]
    yield ["regime", "`autolora run`", "one line", *titles]
    for row in rows:
        if "ways" in row:
            alone, launched, line = row["ways"].values()
            ratios = (times(alone["step_s"] / way["step_s"]) for way in (launched, line))
            peaks = (f"{way['peak_mib']:,.0f}" for way in (alone, launched))
            apart = max(way["largest_difference"] for way in (launched, line))
            yield [regime(row["regime"]), *ratios, f"{' → '.join(peaks)} MiB", f"{apart:.1e}"]


def tuner(rows):
    """One line for each way to choose: its regrets and what it takes."""
    ways = {
        "tuner": "tuner",
        "busy": "tuner beside a busy process",
        "exhaustive": "every valid graph",
        "flops": "least FLOPs",
        "paper": "forward, then backward",
        "PEFT": "PEFT's graph",
    }
    yield ["", "median regret", "worst", "seconds for a problem"]
    for name, title in ways.items():
        found = [row["regret"][name] for row in rows]
        worst = max(rows, key=lambda row, name=name: row["regret"][name])
        noise = f" ± {worst['noise'][name]:.3f}" * (name != "exhaustive")
        seconds = [row["seconds"][name] for row in rows if name in row["seconds"]]
        taken = f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else "0"
        yield [title, f"{median(found):.3f}", f"{max(found):.3f}{noise}", taken]


def tuner_counts(rows):
    """One line: the regret of interpolated choices."""
    found = [row["regret"] for row in rows]
    within = sum(each <= 1.03 for each in found)
    yield ["token counts not tuned", "within 3 % of the best", "median regret", "worst"]
    yield [f"{len(found)}", f"{within}", f"{median(found):.3f}", f"{max(found):.3f}"]


def finetune(rows):
    """One line for each dtype and dropout: mean ± standard deviation over the seeds."""
    titles = ["final loss, PEFT", "autolora", "held-out accuracy, PEFT", "autolora", "step"]
    yield ["", *titles]
    groups = grouped(rows, "dtype", "compute_dtype", "dropout")
    for (dtype, compute, dropout), these in groups.items():
        values = [
            [row[key][name] for row in these]
            for key in ("final_loss", "accuracy")
            for name in ("peft", "autolora")
        ]
        spreads = (stdev(each) if len(each) > 1 else 0.0 for each in values)
        means = [f"{fmean(v):.3f} ± {s:.3f}" for v, s in zip(values, spreads, strict=True)]
        title = f"{dtype}{', compute_dtype' * bool(compute)}, dropout {dropout:g}"
        yield [regime(title), *means, times(fmean(row["speedup"] for row in these))]


def saved_bytes(rows):
    """One line for each regime, in MiB."""
    yield ["regime", "PEFT", "untuned", '`objective="memory"`']
    for row in rows:
        found = (row[key]["bytes"] / MIB for key in ("peft", "default", "leanest"))
        yield [regime(row["regime"]), *(f"{each:.2f}" for each in found)]


def adapter_gain(rows):
    """One line for each dtype and size of the adapter: the gain of Y along each graph."""
    routes = list(grouped(rows, "route"))
    yield ["dtype", "‖s·BA‖/‖W‖", *(f"`{each}`" for each in routes)]
    for (dtype, size), these in grouped(rows, "dtype", "size").items():
        found = {row["route"]: f"{row['gain_Y']:.3f}" for row in these}
        yield [dtype, f"{size:.0e}".replace("e-0", "e-"), *(found[each] for each in routes)]


def dispatch(rows):
    """One line for each figure."""
    (found,) = rows
    tiny, added = found["tiny"], found["import_ms"]
    yield ["", ""]
    for name, us in found["dispatch_us"].items():
        yield [f"look-up and dispatch on a hit, {name}", f"{us['least']:.1f} µs a call"]
    over = tiny["samples"]["autolora"]["over peft"]
    yield ["1 token, 64→64, forward + backward, over PEFT (quartiles)", quartiles(over)]
    low, high = added["quartiles"]
    spread = f"{added['median']:.0f} ms ({low:.0f} to {high:.0f})"
    yield ["`import autolora` adds to `import torch` (quartiles)", spread]


def faults(rows):
    """One line for each requirement."""
    yield ["required", "found"]
    for row in rows:
        yield [row["demanded"], f"{row['found']}{'' if row['met'] else ' (**not met**)'}"]


def scaling(rows):
    """One line for each number of records."""
    looks = ["opening and the first look-up", "another look-up", "one again"]
    yield ["records", "file", *looks, "memory", "publishing one", "the first of a process"]
    for row in rows:
        if "records" in row:
            yield [
                f"{row['records']:,}",
                f"{row['bytes'] / 1e6:.2f} MB",
                f"{row['open_ms']:.1f} ms",
                f"{row['other_us']:.0f} µs",
                f"{row['again_us']:.0f} µs",
                f"{row['memory_bytes'] / 1e6:.1f} MB",
                f"{row['publish_ms']:.1f} ms",
                f"{row['publish_first_ms']:.0f} ms",
            ]


# what a document calls a table → the function that makes it, and the benchmarks that it shows
TABLES = {
    "headline": (headline, "models", "compiled", "experts", "layers"),
    "layers": (layers, "layers"),
    "layers_bfloat16": (layers, "layers_bfloat16"),
    "models": (models, "models"),
    "compiled": (compiled, "compiled", "compiled_blocks"),
    "compiled_smollm2": (compiled, "compiled_smollm2"),
    "siblings": (siblings, "siblings"),
    "siblings_compiled": (siblings, "siblings_compiled"),
    "siblings_dropout": (siblings, "siblings_dropout"),
    "siblings_models": (siblings_models, "siblings_models", "siblings_others"),
    "experts": (experts, "experts"),
    "experts_memory": (experts_memory, "experts"),
    "experts_others": (experts, "experts_eager", "experts_batched"),
    "experts_models": (experts_models, "experts_models"),
    "experts_regret": (experts_regret, "experts_regret"),
    "run": (run, "run"),
    "tuner": (tuner, "tuner"),
    "noise": (noise, "noise"),
    "tuner_counts": (tuner_counts, "tuner_counts"),
    "finetune": (finetune, "finetune", "finetune_bfloat16"),
    "saved_bytes": (saved_bytes, "saved_bytes"),
    "adapter_gain": (adapter_gain, "adapter_gain"),
    "dispatch": (dispatch, "dispatch"),
    "faults": (faults, "faults"),
    "paper": (paper, "paper"),
    "peers": (peers, "peers"),
    "scaling": (scaling, "scaling"),
}
