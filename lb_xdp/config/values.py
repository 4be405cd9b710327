"""The single values of a configuration: what each may be, and how it is read.

A ``Rule`` is the one place that says what a value may be: the reader, the sentence in messages and
in the reference, and the JSON Schema for editors. It refuses to look at other values beside its
own: ``check`` does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lb_xdp.config.wording import did_you_mean, not_allowed, not_available, one_of, show
from lb_xdp.core.durations import DURATION_PATTERN, format_duration, parse_duration_s
from lb_xdp.core.model import Listen, StatusRange

MAX_PORT = 0xFFFF

PROBLEM = "lb_xdp"  # the type of pydantic errors whose message is already in plain words


class RefusedError(ValueError):
    """A value is refused. The text is the whole message; empty means: say what is allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What one value may be. ``convert`` raises RefusedError; ``schema`` is JSON Schema."""

    kind: str
    allowed: str
    schema: Mapping[str, Any]
    convert: Callable[[object], object]

    def read(self, value: object) -> Any:
        """Return ``value`` as the model wants it; raises RefusedError with the whole message."""
        try:
            return self.convert(value)
        except RefusedError as refusal:
            raise RefusedError(str(refusal) or not_allowed(value, self.allowed)) from None

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_in_pydantic(self.read))

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


@dataclass(frozen=True, slots=True, eq=False)
class Shorthand:
    """A short spelling of a mapping or list: what is no ``full`` goes through the rule."""

    full: type
    rule: Rule

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def expand(value: object) -> object:
            return value if isinstance(value, self.full) else self.rule.read(value)

        return core_schema.no_info_before_validator_function(_in_pydantic(expand), handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [dict(self.rule.schema), handler(schema)]}


def _in_pydantic(read: Callable[[object], object]) -> Callable[[object], object]:
    def validate(value: object) -> object:
        try:
            return read(value)
        except RefusedError as refusal:
            # The message goes in as data: pydantic would take braces in it for its own.
            raise PydanticCustomError(PROBLEM, "{message}", {"message": str(refusal)}) from None

    return validate


def integer(first: int, last: int) -> Rule:
    """Return the rule for an integer from ``first`` to ``last``."""

    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise RefusedError
        return value

    allowed = f"an integer from {first} to {last}"
    return Rule("integer", allowed, {"type": "integer", "minimum": first, "maximum": last}, convert)


def text(kind: str, allowed: str, pattern: str) -> Rule:
    """Return the rule for text that fully matches ``pattern`` (ASCII)."""
    compiled = re.compile(pattern, re.ASCII)

    def convert(value: object) -> str:
        if not isinstance(value, str) or compiled.fullmatch(value) is None:
            raise RefusedError
        return value

    return Rule(kind, allowed, {"type": "string", "pattern": f"^(?:{pattern})$"}, convert)


def choice(words: Sequence[str], *, make: Callable[[str], object] = str) -> Rule:
    """Return the rule for one of ``words``, which ``make`` turns into the model's value."""
    allowed = one_of(words)

    def convert(value: object) -> object:
        if not isinstance(value, str):
            raise RefusedError
        if value in words:
            return make(value)
        hint = did_you_mean(value, words)
        raise RefusedError(not_allowed(value, f"{allowed};{hint}" if hint else allowed))

    return Rule("word", allowed, {"enum": list(words)}, convert)


def duration(shortest_s: float, longest_s: float) -> Rule:
    """Return the rule for a duration within two bounds, both included."""
    bounds = f"from {format_duration(shortest_s)} to {format_duration(longest_s)}"

    def convert(value: object) -> float:
        seconds = parse_duration_s(value) if isinstance(value, str) else value
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise RefusedError
        if not shortest_s <= seconds <= longest_s:
            raise RefusedError(f"{show(value)} is not allowed; a duration {bounds}")
        return float(seconds)

    json = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": DURATION_PATTERN}]}
    spelled = f"a duration {bounds}, such as 500ms, 2s, 15min, 3h, or a number of seconds"
    return Rule("duration", spelled, json, convert)


def _listen(value: object) -> Listen | None:
    if value == "none":
        return None
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if (
        not colon
        or re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII) is None
        or int(port) > MAX_PORT
    ):
        raise RefusedError
    try:
        if host.startswith("[") and host.endswith("]"):
            return Listen(str(IPv6Address(host[1:-1])), int(port))
        return Listen(str(IPv4Address(host)), int(port))
    except AddressValueError:
        raise RefusedError from None


def _status(value: object) -> StatusRange:
    written = value if isinstance(value, str) else show(value)
    match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", written, re.ASCII)
    if match is None:
        raise RefusedError
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    if first > last:
        raise RefusedError(f"{show(value)} is not allowed; the smaller status comes first")
    return StatusRange(first, last)


def _share(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", value, re.ASCII):
        share: float = float(value[:-1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = value
    else:
        raise RefusedError
    if not 0 <= share <= 1:
        raise RefusedError
    return float(share)


def _no_priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError
    if value != 0:
        raise RefusedError(not_available(value, "0"))
    return value


def or_word(rule: Rule, word: str, meaning: object) -> Rule:
    """Return ``rule`` widened by ``word``, which is read as ``meaning``."""

    def convert(value: object) -> object:
        return meaning if value == word else rule.convert(value)

    schema = {"anyOf": [dict(rule.schema), {"const": word}]}
    return Rule(f"{rule.kind} or word", f"{rule.allowed}, or {word}", schema, convert)


LISTEN = Rule(
    "address:port",
    "an address and a port, such as 127.0.0.1:9464 or [::1]:9464, or none",
    {"type": "string", "pattern": r"^(none|.+:[0-9]+)$"},
    _listen,
)
STATUS = Rule(
    "status",
    "a status from 100 to 599 or a range such as 200-299, or a list of these",
    {
        "anyOf": [
            {"type": "integer", "minimum": 100, "maximum": 599},
            {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
        ]
    },
    _status,
)
SHARE = Rule(
    "share",
    "a number from 0 to 1, or from 0% to 100%",
    {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string"}]},
    _share,
)
PRIORITY = Rule("integer", "0", {"const": 0}, _no_priority)
