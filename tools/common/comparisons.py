"""The tables of autolora beside the paper, other implementations, and itself once more."""

from __future__ import annotations

from itertools import combinations

from common.cells import MIB, grouped, regime, times

_GROUPS = {"llama": "layers of an 8B Llama", "tiny": "tiny layers (64→96)"}


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


def noise(rows):
    """One line for each group of problems: how often the tuner decides, and decides alike."""
    titles = ["undecided or disturbed", "decided to within", "other winner in another run"]
    yield ["problems", "runs", *titles, "slower by at most", "seconds of a run"]
    (groups,) = rows
    for name, title in _GROUPS.items():
        if not (runs := groups[name]):
            continue
        records = [record for run in runs for record in run["problems"].values()]
        decided = [each["within"] for each in records if not each["noisy"]]
        pairs = [other_winners(*pair) for pair in combinations(runs, 2)]
        losses = [loss for pair in pairs for loss in pair.values() if loss is not None]
        compared = sum(len(run["problems"]) for run, _ in combinations(runs, 2))
        seconds = [run["seconds"] for run in runs]
        yield [
            title,
            f"{len(runs)}",
            f"{len(records) - len(decided)} of {len(records)}",
            f"{max(decided, default=0.0):.1%}",
            f"{sum(map(len, pairs))} of {compared}",
            f"{max(losses, default=0.0):.1%}",
            f"{min(seconds):.0f} to {max(seconds):.0f}",
        ]


def other_winners(first, second):
    """The problems that two runs decided differently.

    Returns:
        Name → by how much the winner of the first is slower than that of the second, in the times
        of the second; None where it was not timed there.
    """
    found = {}
    for name, row in first["problems"].items():
        again = second["problems"].get(name)
        if again and row["winner"] != again["winner"]:
            times = again["median_ns"]
            slow = times.get(row["winner"])
            found[name] = slow / times[again["winner"]] - 1 if slow else None
    return found
