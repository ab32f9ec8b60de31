"""The table of the README: what runs, over PEFT, beside the same without adapters."""

from __future__ import annotations

from statistics import geometric_mean

from common.cells import grouped, regime, times

_MODELS = {"llama": "4-layer Llama", "smollm2": "SmolLM2-135M"}


def headline(rows):
    """One line for each whole training step, and for each kind of layer the mean of its cases."""
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
        yield [f"mixture's experts, mean of {len(these)}, {regime(name)}", *_means(ratios)]
    for name, these in found.get("bench_layer", {}).items():
        ratios = ((row["speedup"], row["ms"]["peft"] / row["ms"]["floor"]) for row in these)
        yield [f"linear layer, mean of {len(these)}, {regime(name)}", *_means(ratios)]


def _medians(row, ours, bare, way=""):
    """How much faster two ways are than PEFT."""
    found = (row["samples"][f"{each}{way}"][f"over peft{way}"] for each in (ours, bare))
    return [times(each["median"]) for each in found]


def _means(ratios):
    """The geometric means of several pairs."""
    return [times(geometric_mean(each)) for each in zip(*ratios, strict=True)]
