"""What a request may say: each value's reader and its JSON Schema, from one declaration.

A reader takes what stood in JSON, or the text of a query, and returns our value or raises
``ValueError`` with what is allowed. It refuses to compare values with the gateway's state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from lb_xdp.core.durations import DURATION_PATTERN, format_duration, parse_duration_s

_DECIMAL = r"-?[0-9]{1,16}(\.[0-9]{1,9})?"


@dataclass(frozen=True, slots=True)
class Field:
    """One value. ``read`` gets it as JSON has it; ``from_text`` makes that of a query's text."""

    meaning: str
    schema: Mapping[str, Any]
    read: Callable[[object], Any]
    from_text: Callable[[str], object] = str


Fields = Mapping[str, Field]


def text(meaning: str, longest: int, *, pattern: str = "", example: str = "") -> Field:
    """Return the field for text of 1 to ``longest`` characters that fully matches ``pattern``."""
    allowed = f"text of 1 to {longest} characters" + (f" such as {example}" if example else "")

    def read(value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= longest:
            raise ValueError(allowed)
        if pattern and re.fullmatch(pattern, value, re.ASCII) is None:
            raise ValueError(allowed)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text that UTF-8 can hold: there is half a surrogate pair") from None
        return value

    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": longest}
    return Field(meaning, schema | ({"pattern": f"^(?:{pattern})$"} if pattern else {}), read)


def line(meaning: str, longest: int) -> Field:
    """Return the field for text, perhaps none, that stays on one line and is fit to be shown."""

    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > longest or not value.isprintable():
            raise ValueError(f"printable text on one line, at most {longest} characters")
        return value

    return Field(meaning, {"type": "string", "maxLength": longest}, read)


def choice(meaning: str, words: Sequence[str], make: Callable[[str], Any] = str) -> Field:
    """Return the field for one of ``words``."""

    def read(value: object) -> Any:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return make(value)

    return Field(meaning, {"enum": list(words)}, read)


def choices(meaning: str, words: Sequence[str], make: Callable[[str], Any] = str) -> Field:
    """Return the field for a set of ``words`` with commas between them."""

    def read(value: object) -> frozenset[Any]:
        written = value.split(",") if isinstance(value, str) else [""]
        if not set(written) <= set(words):
            raise ValueError(f"one or several, with commas between them, of {', '.join(words)}")
        return frozenset(map(make, written))

    either = "|".join(map(re.escape, words))
    return Field(meaning, {"type": "string", "pattern": f"^({either})(,({either}))*$"}, read)


def integer(meaning: str, first: int, last: int) -> Field:
    """Return the field for an integer from ``first`` to ``last``."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise ValueError(f"an integer from {first} to {last}")
        return value

    def from_text(written: str) -> object:
        return int(written) if re.fullmatch(r"-?[0-9]{1,12}", written, re.ASCII) else written

    schema = {"type": "integer", "minimum": first, "maximum": last}
    return Field(meaning, schema, read, from_text)


def number(meaning: str, first: float, last: float) -> Field:
    """Return the field for a number from ``first`` to ``last``."""

    def read(value: object) -> float:
        found = _number(value)
        if found is None or not first <= found <= last:
            raise ValueError(f"a number from {first:.0f} to {last:.0f}")
        return float(found)

    def from_text(written: str) -> object:
        return float(written) if re.fullmatch(_DECIMAL, written, re.ASCII) else written

    schema = {"type": "number", "minimum": first, "maximum": last}
    return Field(meaning, schema, read, from_text)


def duration(meaning: str, shortest_s: float, longest_s: float) -> Field:
    """Return the field for a duration as in the file, or a number of seconds."""
    bounds = f"{format_duration(shortest_s)} to {format_duration(longest_s)}"
    allowed = f"a duration from {bounds} such as 90s or 2h, or a number of seconds"

    def read(value: object) -> float:
        seconds = parse_duration_s(value) if isinstance(value, str) else _number(value)
        if seconds is None or not shortest_s <= seconds <= longest_s:
            raise ValueError(allowed)
        return float(seconds)

    number = {"type": "number", "minimum": shortest_s, "maximum": longest_s}
    return Field(
        meaning, {"anyOf": [number, {"type": "string", "pattern": DURATION_PATTERN}]}, read
    )


def _number(value: object) -> float | None:
    """Return a number of JSON as it is, None for anything else; true and false are no numbers."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def share(meaning: str) -> Field:
    """Return the field for a share: 0 to 1, or 0% to 100%."""
    pattern = r"[0-9]{1,3}(\.[0-9]{1,6})?%"

    def read(value: object) -> float:
        if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII):
            value = float(value[:-1]) / 100
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise ValueError("a number from 0 to 1, or from 0% to 100%")
        return float(number)

    number = {"type": "number", "minimum": 0, "maximum": 1}
    return Field(meaning, {"anyOf": [number, {"type": "string", "pattern": f"^{pattern}$"}]}, read)


def network(meaning: str) -> Field:
    """Return the field for an address or a prefix of either family."""

    def read(value: object) -> Any:
        try:
            # A number would be taken for an address as well, and a zone has no place in a table.
            return ip_network(value if isinstance(value, str) and "%" not in value else "")
        except ValueError:
            raise ValueError(
                "an address such as 192.0.2.7, or a prefix such as 192.0.2.0/24"
            ) from None

    return Field(meaning, {"type": "string"}, read)


def object_schema(fields: Fields) -> dict[str, Any]:
    """Return the schema of a JSON object of these fields, none of them required."""
    return {
        "type": "object",
        "properties": {
            name: {**field.schema, "description": field.meaning} for name, field in fields.items()
        },
        "additionalProperties": False,
    }
