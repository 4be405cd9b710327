"""The values by which a probe's question is written: payloads, headers, patterns, commands.

Rules, as in ``values``, of more than a word. It refuses to look at files and at other keys.
"""

from __future__ import annotations

import re
from typing import Final

from lb_xdp.config.values import RefusedError, Rule
from lb_xdp.config.wording import quote

MAX_PAYLOAD_BYTES: Final = 4096
MAX_ARGUMENTS: Final = 64
MAX_HEADERS: Final = 32

_HEX: Final = "hex:"
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~\t]{0,1022}[!-~])?)?", re.ASCII)
_OURS: Final = {
    "host": "use `host_header`",
    "connection": "use `reuse`",
    "content-length": "a probe sends no body",
    "transfer-encoding": "a probe sends no body",
}


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise RefusedError
    return value


def _payload(value: object) -> bytes:
    if not isinstance(value, str):
        raise RefusedError
    if value.startswith(_HEX):
        try:
            octets = bytes.fromhex(value.removeprefix(_HEX))
        except ValueError:
            raise RefusedError from None
    else:
        try:
            octets = value.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, which YAML's escapes can spell
            raise RefusedError from None
    if not 0 < len(octets) <= MAX_PAYLOAD_BYTES:
        raise RefusedError
    return octets


def _regex(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_PAYLOAD_BYTES:
        raise RefusedError
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"{quote(value)} is not allowed; as a regular expression: {error}"
        raise RefusedError(message) from None
    return value


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        raise RefusedError
    names = set[str]()
    for name, content in value.items():
        if _TOKEN.fullmatch(name) is None:
            raise RefusedError(f"{quote(name)} is not allowed; the name of a header")
        if name.lower() in _OURS:
            raise RefusedError(f"{quote(name)} is not allowed; {_OURS[name.lower()]}")
        if name.lower() in names:
            raise RefusedError(f"{quote(name)} is given twice; case does not count")
        if not isinstance(content, str) or _VALUE.fullmatch(content) is None:
            message = f"the value of {quote(name)} is not allowed; one line of ASCII text, quoted"
            raise RefusedError(message)
        names.add(name.lower())
    return tuple(value.items())


def _command(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 <= len(value) <= MAX_ARGUMENTS:
        raise RefusedError
    if not all(isinstance(word, str) and "\0" not in word for word in value):
        raise RefusedError("arguments are text without NUL; quote numbers")
    if value and not value[0].startswith("/"):
        raise RefusedError(f"{quote(value[0])} is not allowed; the program's absolute path")
    return tuple(value)


SWITCH = Rule("switch", "true or false", {"type": "boolean"}, _switch)
PAYLOAD = Rule(
    "text",
    f"text, or octets such as `hex:0d0a`; at most {MAX_PAYLOAD_BYTES:,} octets",
    {"type": "string", "minLength": 1},
    _payload,
)
REGEX = Rule("text", "a regular expression of Python", {"type": "string", "minLength": 1}, _regex)
HEADERS = Rule(
    "mapping",
    f"at most {MAX_HEADERS} names and values, such as `{{Authorization: Bearer x}}`",
    {"type": "object", "additionalProperties": {"type": "string"}},
    _headers,
)
COMMAND = Rule(
    "list",
    f"a list such as [/usr/local/bin/probe, --fast], of at most {MAX_ARGUMENTS}",
    {"type": "array", "items": {"type": "string"}, "maxItems": MAX_ARGUMENTS},
    _command,
)
