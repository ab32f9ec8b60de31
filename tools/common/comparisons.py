"""The tables of autolora beside the paper and beside other implementations."""

from __future__ import annotations

from common.cells import MIB, grouped, regime, times


def paper(rows):
    """One line for each row of the paper."""
    titles = ["the paper saves", "saved (quartiles of the time)", "overhead removed"]
    memory = ["saved bytes, PEFT → autolora", "peak"]
    both = "compiled, over compiled PEFT"
    yield ["dtype", "model, rank, tokens", "blocks", *titles, "by FLOPs alone", both, *memory]
    for row in rows:
        ways = row["ways"]
        ours, peft = ways["autolora"], ways["peft"]
        over = ours["over peft"]
        low, high = (1 - 1 / each for each in over["quartiles"])
        compiled = ways.get("autolora compiled", {}).get("over peft compiled")
        yield [
            row["dtype"],
            f"{row['model']}, {row['rank']}, {row['batch']} × {row['length']}",
            f"{row['depth']} of {row['of_blocks']}",
            f"{row['paper_saved']:.2%}",
            f"**{ours['saved']:.2%}** ({low:.1%} to {high:.1%})",
            f"{ours['overhead_removed']:.0%}",
            f"{ways['flops']['saved']:.2%}",
            f"{1 - 1 / compiled['median']:.2%}" if compiled else "–",
            *(f"{mib(peft[key])} → {mib(ours[key])}" for key in ("saved_bytes", "peak_bytes")),
        ]


def mib(number):
    """Bytes that may not be known."""
    return "–" if number is None else f"{number / MIB:,.1f} MiB"


def peers(rows):
    """One line for each way to train; a column for each subject and regime."""
    columns = list(grouped(rows, "subject", "regime"))
    yield ["over PEFT", *(f"{subject}, {regime(name)}" for subject, name in columns)]
    for way, these in grouped(rows, "way").items():
        found = {(row["subject"], row["regime"]): _peer(row) for row in these}
        yield [way, *(found.get(each, "–") for each in columns)]


def _peer(row):
    """A figure, or why there is none."""
    if "ms" not in row:
        return row["reason"]
    ratio = row["over PEFT"]["median"] if row["way"] != "PEFT" else 1.0
    limit = f", {row['over_limit']:.2f} of the limit" if "over_limit" in row else ""
    return f"{times(ratio)}{limit}{'' if row['exact'] else ' (computes something else)'}"
