"""The rules of this configuration: what each named sort of value may be.

The machinery behind a rule is in ``values``; which key obeys which rule is in ``schema``.
"""

from __future__ import annotations

from typing import Any

from lb_xdp.config.values import (
    STATUS,
    RefusedError,
    Rule,
    Shorthand,
    address,
    choice,
    duration,
    integer,
    or_later,
    text,
)
from lb_xdp.core.model import CheckKind, Mode, Protocol, XdpMode

NAME = text(
    "name",
    "a name of at most 63 letters, digits and `_.-`, the first a letter or digit",
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
)
# With `:`, since the name defaults to address:port.
BACKEND_NAME = text(
    "name",
    "a name of at most 63 letters, digits and `_.:-`, the first a letter or digit",
    r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}",
)
INTERFACE = text(
    "interface",
    "an interface name of at most 15 characters, without blanks, `/` and `:`",
    r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}",
)
SOCKET = text(
    "path",
    "an absolute path of at most 107 characters",  # sun_path, unix(7)
    r"/[ -~]{1,106}",
)
URL_PATH = text("path", "a path that starts with `/`, without blanks", r"/[!-~]{0,1023}")
HEADER = text("text", "a host name or address, with or without a port", r"[!-~]{1,255}")

PORT = integer(1, 0xFFFF)
SERVICE_PORT = or_later(PORT, "any")
WEIGHT = integer(0, 65535)
CONNECTIONS = integer(1, 1_000_000_000)
COUNT = integer(1, 100)

INTERVAL = duration(0.01, 3600)
TIMEOUT = duration(0.001, 3600)
SESSION_TIME = duration(1, 7 * 86400)

VIP = address("an IPv4 address such as 203.0.113.10")
HOST = address("an IPv4 address such as 10.0.0.11")
PROBE_HOST = address("an IPv4 address such as 10.0.0.11", anywhere=True)

PROTOCOL = choice(("tcp", "udp"), make=Protocol)
MODE = choice(("dsr", "nat"), later=("ipip", "gue", "fullnat"), make=Mode)
XDP_MODE = choice(("auto", "native", "generic"), make=XdpMode)
ALGORITHM = choice(("maglev",), later=("round_robin", "least_connections", "random", "source_hash"))
AFFINITY = choice(("none",), later=("client_ip", "client_prefix"))
CHECK = choice(("none", "tcp", "http"), make=CheckKind)


def _none_for(key: str, example: str) -> Shorthand:
    """Return the shorthand ``none`` of a mapping in which ``key: none`` says the same."""

    def convert(value: object) -> dict[str, Any]:
        if value != "none":
            raise RefusedError
        return {key: "none"}

    rule = Rule("mapping", f"`none`, or a mapping such as {example}", {"const": "none"}, convert)
    return Shorthand(dict, rule)


def _rise_and_fall(value: object) -> dict[str, Any]:
    count = COUNT.convert(value)
    return {"rise": count, "fall": count}


NO_METRICS = _none_for("listen", "`{listen: 127.0.0.1:9464}`")
NO_HEALTH = _none_for("type", "`{type: tcp}`")
BOTH_COUNTS = Shorthand(
    dict,
    Rule(
        "integer or mapping",
        f"{COUNT.allowed} for both, or `{{rise: 2, fall: 3}}`",
        COUNT.schema,
        _rise_and_fall,
    ),
)
ONE_STATUS = Shorthand(list, Rule("list", STATUS.allowed, STATUS.schema, lambda value: [value]))
