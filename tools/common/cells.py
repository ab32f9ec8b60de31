"""What the tables of the documents have in common: groups of rows, and cells."""

from __future__ import annotations

MIB = 2**20
_WORDS = {
    "compute_dtype": "`compute_dtype=torch.bfloat16`",
    "dropout": "dropout 0.1",
    "nf4": "NF4",
}


def grouped(rows, *keys):
    """Rows by the values of one key or several, in their order."""
    found = {}
    for row in rows:
        values = tuple(_hashable(row[key]) for key in keys)
        found.setdefault(values if len(keys) > 1 else values[0], []).append(row)
    return found


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


def regime(name):
    """A regime in the words of the documents."""
    return ", ".join(_WORDS.get(word, word) for word in name.split(", "))


def times(ratio):
    """A ratio of times."""
    return f"{ratio:.2f}x"


def quartiles(sample):
    """The median of paired ratios with the quartiles."""
    low, high = sample["quartiles"]
    return f"{times(sample['median'])} ({low:.2f} to {high:.2f})"


def slashed(values):
    """Values side by side."""
    return " / ".join(map(str, values))
