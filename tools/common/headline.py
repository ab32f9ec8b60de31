"""The table of the README: what runs, over PEFT, beside the same without adapters."""

from __future__ import annotations

from statistics import geometric_mean

from common.cells import grouped, regime, times

# Layers of these kinds; whole models show how plain ones are trained.
_LAYERS = ("dropout, float32", "dropout, bfloat16", "nf4, bfloat16", "DoRA, bfloat16")
_MODELS = {"llama": "4-layer Llama", "smollm2": "SmolLM2-135M"}


def headline(rows):
    """One line for each whole training step, and for some kinds of layers the mean of the cases."""
    yield ["forward and backward pass", "over PEFT", "without adapters"]
    found = {tool: grouped(these, "regime") for tool, these in grouped(rows, "tool").items()}
    for name, these in found.get("bench_model", {}).items():
        for row in these:
            yield [f"{_MODELS[row['model']]}, {regime(name)}", *_medians(row, "autolora", "floor")]
    for name, these in found.get("bench_compiled", {}).items():
        for row in these:
            title = f"{_MODELS[row['model']]} compiled, over compiled PEFT, {regime(name)}"
            yield [title, *_medians(row, "autolora", "bare", " compiled")]
    for name, these in found.get("bench_experts", {}).items():
        ratios = ((row["over_peft"], row["bare_over_peft"]) for row in these)
        yield [f"experts of a mixture, mean of {len(these)} sizes, {regime(name)}", *_means(ratios)]
    for name, these in found.get("bench_layer", {}).items():
        if name in _LAYERS:
            ratios = ((row["speedup"], row["ms"]["peft"] / row["ms"]["floor"]) for row in these)
            yield [f"linear layer, mean of {len(these)} sizes, {regime(name)}", *_means(ratios)]


def _medians(row, ours, bare, way=""):
    """How much faster two ways are than PEFT."""
    found = (row["samples"][f"{each}{way}"][f"over peft{way}"] for each in (ours, bare))
    return [times(each["median"]) for each in found]


def _means(ratios):
    """The geometric means of several pairs."""
    return [times(geometric_mean(each)) for each in zip(*ratios, strict=True)]
