"""Strict checks of values that come from outside: type, range, length.

Each gives the value back or raises a ``ValueError`` that names the field. None of them echoes what
it was given, since that may be megabytes of anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

LARGEST = 2**53 - 1  # the largest whole number that every JSON reader holds exactly
LONGEST = 10**6  # characters of one record or environment; real ones have thousands

_PIECES = (16_000, 128_000, LONGEST)  # since each is copied; the first does for most


def whole(name: str, value: object, *, least: int = 0) -> int:
    """A whole number of at least ``least``; ``True`` is none."""
    if type(value) is not int or not least <= value <= LARGEST:
        raise ValueError(f"{name} must be a whole number from {least} to 2^53 - 1")
    return value


def real(name: str, value: object, *, signed: bool = False) -> float:
    """A finite number, not below zero unless ``signed``."""
    if isinstance(value, float):
        finite = math.isfinite(value)
    else:
        finite = type(value) is int and -LARGEST <= value <= LARGEST
    if not finite:
        raise ValueError(f"{name} must be a finite number")
    number = float(value)  # type: ignore[arg-type]  # finite means that it is a number
    if number < 0 and not signed:
        raise ValueError(f"{name} must not be negative")
    return number


def text(name: str, value: object, *, least: int = 1, most: int = 200) -> str:
    """Printable text: no line breaks and no terminal escapes get past this."""
    if not isinstance(value, str) or not value.isprintable() or not least <= len(value) <= most:
        raise ValueError(f"{name} must be printable text of {least} to {most} characters")
    return value


def flag(name: str, value: object) -> bool:
    """``True`` or ``False``, not what merely acts like it."""
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false")
    return value


def members(name: str, value: object, allowed: Collection[str]) -> Mapping[str, Any]:
    """An object with exactly the members ``allowed``."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object")
    if missing := [member for member in allowed if member not in value]:
        raise ValueError(f"{name} lacks {missing[0]!r}")
    if len(value) > len(allowed):
        raise ValueError(f"{name} may have only {', '.join(allowed)}")
    return value


def loads(json_text: str) -> Any:
    """JSON as its standard has it: no NaN, no member twice.

    Raises:
        ValueError: it is none, or too deep or too large to be read.
    """
    try:
        return _DECODER.decode(json_text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply or too large") from error


def entry(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at a character of a text, and where it ends.

    Only so much of the text is looked at as one value may have, whatever the rest is.

    Raises:
        ValueError: it is none, or longer than :data:`LONGEST`.
    """
    cause: Exception = ValueError()
    for most in _PIECES:
        piece = text[start : start + most]
        whole = len(piece) < most
        try:
            value, end = _DECODER.raw_decode(piece)
        except (ValueError, RecursionError, MemoryError) as error:
            cause = error
        else:
            if whole or end < len(piece):  # a number could go on behind the piece
                return value, start + end
        if whole:
            break
    else:
        raise ValueError(f"an entry is no JSON, or longer than {LONGEST:,} characters") from cause
    if isinstance(cause, ValueError):
        raise cause
    raise ValueError("nested too deeply or too large") from cause


def dumps(value: Any) -> str:
    """The one canonical text of a value: ASCII, compact, members in the order given."""
    return _ENCODER.encode(value)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a member twice")
    return value


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_not_json, object_pairs_hook=_without_duplicates)
