"""The words behind options: each function makes a value of one, or says what is allowed."""

from __future__ import annotations

import argparse
import re

from autolora.errors import AutoloraError
from autolora.objective import bytes_from

DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float64": "float64",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}


MOST = 2**31 - 1


def count(text: str) -> int:
    """A whole number of at least 1, and not one that no tensor has room for."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST}, not {text!r}")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Several of these, separated by commas."""
    try:
        return tuple(dict.fromkeys(count(part) for part in text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers from 1 to {MOST}, separated by commas, not {text!r}"
        ) from None


def positive(text: str) -> float:
    """A number above 0, not infinite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def probability(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text!r}")
    return value


def saved_bytes(text: str) -> int:
    """A number of bytes, or one of K, M or G."""
    try:
        return bytes_from(text)
    except AutoloraError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def dtype(text: str) -> str:
    """The full name of a dtype, from that or its abbreviation."""
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(DTYPES)}, not {text!r}")
    return DTYPES[text]


def modules(text: str) -> str | list[str]:
    """A name or several become a list, as in PEFT; what has a regular expression's signs is one."""
    if text == "all-linear" or re.search(r"[][*+?(){}|^$\\]", text):
        return text
    return [name.strip() for name in text.split(",")]
