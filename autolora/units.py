"""Numbers as people read them: times, bytes, ratios, shares, counts."""

from __future__ import annotations

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def duration(nanoseconds: float | None) -> str:
    """A time with three digits and a unit.

    >>> duration(1234567), duration(850), duration(None)
    ('1.23 ms', '850 ns', '-')
    """
    if nanoseconds is None:
        return "-"
    for size, unit in _UNITS:
        if nanoseconds >= 0.9995 * size:
            return f"{_three_digits(nanoseconds / size)} {unit}"
    return f"{nanoseconds:.0f} ns"


def size(number: int) -> str:
    """A number of bytes with three digits and a binary unit.

    >>> size(850), size(2424832), size(3 * 2**30), size(0)
    ('850 B', '2.31 MiB', '3.00 GiB', '0 B')
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        value = number / 2**power
        if value >= 0.9995:
            return f"{_three_digits(value)} {unit}"
    return f"{number} B"


def wait(seconds: float) -> str:
    """A time of seconds to hours.

    >>> wait(0.42), wait(8.4), wait(95), wait(3900)
    ('0.4 s', '8 s', '1 min 35 s', '1 h 5 min')
    """
    if seconds < 2:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ratio(value: float | None) -> str:
    """A speed-up.

    >>> ratio(1.337)
    '1.34x'
    """
    return "-" if value is None else f"{value:.2f}x"


def percent(share: float | None) -> str:
    """A fraction as a percentage.

    >>> percent(0.614)
    '61 %'
    """
    return "-" if share is None else f"{100 * share:.0f} %"


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "layer"), count(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
