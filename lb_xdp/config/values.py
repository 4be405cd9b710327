"""The single values of a configuration: what each may be, and how it is read.

A ``Rule`` is the one place that says what a value may be: the reader, the sentence in messages and
in the reference, and the JSON Schema for editors. It refuses to look at other values beside its
own: ``check`` does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lb_xdp.config.durations import DURATION_PATTERN, format_duration, parse_duration_s
from lb_xdp.config.wording import did_you_mean, not_allowed, not_available, one_of, show
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


def choice(words: Sequence[str], *, later: Sequence[str] = (), make: type = str) -> Rule:
    """Return the rule for one of ``words``; those in ``later`` are known but not available yet."""
    allowed = one_of(words)

    def convert(value: object) -> object:
        if not isinstance(value, str):
            raise RefusedError
        if value in words:
            return make(value)
        if value in later:
            raise RefusedError(not_available(value, allowed))
        hint = did_you_mean(value, (*words, *later))
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


def _ipv4(value: object, allowed: str) -> IPv4Address:
    """Read an IPv4 address; one of version 6 is told apart from nonsense."""
    if not isinstance(value, str):
        raise RefusedError
    try:
        address = ip_address(value)
    except ValueError:
        raise RefusedError from None
    if isinstance(address, IPv6Address):
        raise RefusedError(f"{show(value)}: IPv6 is not available in this version; {allowed}")
    return address


_UNFIT = (
    (IPv4Network("0.0.0.0/8"), "is no host's address (0.0.0.0/8)"),
    (IPv4Network("127.0.0.0/8"), "is a loopback address, which never leaves its host"),
    (IPv4Network("224.0.0.0/4"), "is a multicast address"),
    (IPv4Network("255.255.255.255/32"), "is the broadcast address"),
)
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", re.ASCII)


def address(allowed: str, *, anywhere: bool = False) -> Rule:
    """Return the rule for an IPv4 address: of a host, unless it may be ``anywhere``."""

    def convert(value: object) -> IPv4Address:
        if isinstance(value, str) and _HOST_NAME.fullmatch(value):
            raise RefusedError(
                f"{show(value)}: host names are not available in this version; {allowed}"
            )
        found = _ipv4(value, allowed)
        for network, reason in () if anywhere else _UNFIT:
            if found in network:
                raise RefusedError(f"{found} {reason}; {allowed}")
        return found

    return Rule("address", allowed, {"type": "string", "format": "ipv4"}, convert)


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


def or_later(rule: Rule, word: str) -> Rule:
    """Return ``rule``, which a later version will widen by ``word``."""

    def convert(value: object) -> object:
        if value == word:
            raise RefusedError(not_available(value, rule.allowed))
        return rule.convert(value)

    return Rule(rule.kind, rule.allowed, rule.schema, convert)


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
