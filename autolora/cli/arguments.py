"""The words behind options: each function makes a value of one, or says what is allowed."""

from __future__ import annotations

import argparse
import re

from autolora.capture.tokens import MOST, Tokens
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

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_AGES = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


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


def tokens(text: str) -> Tokens:
    """Token counts, separated by commas, and ranges of them."""
    try:
        return Tokens.of(text)
    except AutoloraError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("tokens ")) from None


def seconds(text: str) -> float:
    """A time as people write it: ``90``, ``60s``, ``5m``, ``1h``, ``1.5h``."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text.strip().lower())
    value = 0.0 if match is None else float(match[1]) * _SECONDS[match[2]]
    if not value:
        raise argparse.ArgumentTypeError(
            f"must be a time above 0, such as 90, 60s, 5m or 1h, not {text!r}"
        )
    return value


def age(text: str) -> float:
    """Seconds, of an age as people write it: ``12h``, ``90d``, ``4w``."""
    match = re.fullmatch(r"([0-9]{1,5}(?:\.[0-9]{1,9})?)([hdw])", text.strip().lower())
    value = 0.0 if match is None else float(match[1]) * _AGES[match[2]]
    if not value:
        raise argparse.ArgumentTypeError(f"must be an age, such as 12h, 90d or 4w, not {text!r}")
    return value


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
