"""Durations as people write them (``500ms``, ``2s``, ``15min``, ``3h``) and as seconds.

It refuses to judge which durations make sense where: that is for whoever reads one.
"""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
}

DURATION_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,20})? ?(ms|s|m|min|h)$"
_DURATION = re.compile(DURATION_PATTERN, re.ASCII)


def parse_duration_s(text: str) -> float | None:
    """Return the seconds that ``text`` stands for, or None where it is no duration.

    A unit must be given: a bare number is for the caller, who knows that it means seconds.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    unit = match.group(2)
    return float(Decimal(text.removesuffix(unit).rstrip()) * _UNITS[unit])


def format_duration(seconds: float) -> str:
    """Return the shortest exact spelling of ``seconds``, which must not be negative.

    ``parse_duration_s`` turns it back into the very same float.
    """
    exact = Decimal(repr(seconds))
    for unit in ("h", "min", "s"):
        count = exact / _UNITS[unit]
        if exact and count == count.to_integral_value():
            return f"{count:.0f}{unit}"
    count = exact * 1000
    if exact < 1 and count == count.to_integral_value():
        return f"{count:.0f}ms"
    return f"{exact:f}s"
