"""The rules of this configuration: what each named sort of value may be.

The machinery behind a rule is in ``values``; which key obeys which rule is in ``schema``.
"""

from __future__ import annotations

from typing import Any

from lb_xdp.config.addresses import LABEL, address, address_or_name, prefix
from lb_xdp.config.values import (
    STATUS,
    RefusedError,
    Rule,
    Shorthand,
    choice,
    duration,
    integer,
    or_word,
    text,
)
from lb_xdp.core.hosts import ANYWHERE, HOSTS, ROUTED
from lb_xdp.core.model import (
    ANY_PORT,
    IPV4,
    IPV6,
    Affinity,
    Algorithm,
    CheckKind,
    Initial,
    Mode,
    NoBackend,
    OnBackendDown,
    Panic,
    Protocol,
    Via,
    XdpMode,
)

NAME = text(
    "name",
    "a name of at most 63 letters, digits and `_.-`, the first a letter or digit",
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
)
# With `:`, since the name defaults to 10.0.0.11:80 or [2001:db8::11]:80.
BACKEND_NAME = text(
    "name",
    "a name of at most 63 letters, digits and `_.:-`, the first a letter or digit",
    # The default of a long host name has the length that it has.
    r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}|\[[0-9a-f:]{2,45}\]:[0-9]{1,5}|[a-z0-9_.-]{58,253}(:[0-9]{1,5})?",
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
FILE = text("path", "an absolute path", r"/[ -~]{1,1023}")
GROUP = text("name", "the name of a group of this host", r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
URL_PATH = text("path", "a path that starts with `/`, without blanks", r"/[!-~]{0,1023}")
HEADER = text("text", "a host name or address, with or without a port", r"[!-~]{1,255}")

METHOD = text("word", "a method in capitals, such as GET, HEAD or OPTIONS", r"[A-Z]{1,20}")
DNS_NAME = text(
    "name", "a host name such as www.example.net", rf"(?=.{{1,253}}$){LABEL}(?:\.{LABEL})*"
)
DNS_QUERY = text(
    "name",
    "a name such as www.example.net, or `.`",
    rf"(?=.{{1,254}}$)(?:{LABEL}(?:\.{LABEL})*\.?|\.)",
)
DNS_ANSWER = text("text", "a record such as 192.0.2.1, of at most 255 characters", r"[ -~]{1,255}")
DNS_TYPE = choice(("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"))
GRPC_SERVICE = text("text", "a name such as package.Service, or empty", r"[!-~]{0,255}")

PORT = integer(1, 0xFFFF)
SERVICE_PORT = or_word(PORT, "any", ANY_PORT)
WEIGHT = integer(0, 65535)
CONNECTIONS = integer(1, 1_000_000_000)
COUNT = integer(1, 100)
FLAPS = integer(2, 1000)
PRIORITY = integer(0, 255)
LEAST = integer(1, 16_000)
FLOW_ENTRIES = integer(16, 1 << 24)

INTERVAL = duration(0.01, 3600)
TIMEOUT = duration(0.001, 3600)
SESSION_TIME = duration(1, 7 * 86400)
FLOW_TIME = duration(1, 7 * 86400)
CHANGE_TIME = duration(0, 86400)
DNS_TIME = duration(1, 86400)
FLAP_TIME = duration(1, 86400)
DETECT_TIME = duration(1, 86400)
DETECT_FLOWS = integer(1, 1_000_000)

VIP = address("an address such as 203.0.113.10 or 2001:db8::10", ROUTED)
HOST = address("an address such as 10.0.0.11 or 2001:db8::11", HOSTS)
BACKEND_HOST = address_or_name(
    "an address such as 10.0.0.11 or 2001:db8::11, or a host name such as web.internal.example",
    HOSTS,
)
DNS_SERVER = address("an address such as 10.0.0.53 or 2001:db8::53", ANYWHERE)
PROBE_HOST = address("an address such as 10.0.0.11 or 2001:db8::11", ANYWHERE)
SNAT_ADDRESS = address("an address such as 10.0.0.5 or 2001:db8::5", ROUTED)
TUNNEL_IPV4 = prefix(IPV4, 8, "172.16.0.0/16")
TUNNEL_IPV6 = prefix(IPV6, 8, "100::/64")

PROTOCOL = choice(tuple(Protocol), make=Protocol)
MODE = choice(tuple(Mode), make=Mode)
XDP_MODE = choice(tuple(XdpMode), make=XdpMode)
ALGORITHM = choice(tuple(Algorithm), make=Algorithm)
AFFINITY = choice(tuple(Affinity), make=Affinity)
FLOWS = choice(("auto", "none"), make=lambda word: word == "auto")
NO_BACKEND = choice(tuple(NoBackend), make=NoBackend)
PANIC = choice(tuple(Panic), make=Panic)
ON_BACKEND_DOWN = choice(tuple(OnBackendDown), make=OnBackendDown)
CHECK = choice(tuple(CheckKind), make=CheckKind)
INITIAL = choice(tuple(Initial), make=Initial)
VIA = choice(tuple(Via), make=Via)


def _none_for(key: str, example: str) -> Shorthand:
    """Return the shorthand ``none`` of a mapping in which ``key: none`` says the same."""

    def convert(value: object) -> dict[str, Any]:
        if value != "none":
            raise RefusedError
        return {key: "none"}

    rule = Rule("mapping", f"`none`, or a mapping such as {example}", {"const": "none"}, convert)
    return Shorthand(dict, rule)


def _mapping_only(_value: object) -> dict[str, Any]:
    raise RefusedError


def _rise_and_fall(value: object) -> dict[str, Any]:
    count = COUNT.convert(value)
    return {"rise": count, "fall": count}


def _none(value: object) -> None:
    if value != "none":
        raise RefusedError


NO_DETECT = Shorthand(
    dict,
    Rule("mapping", "`none`, or a mapping such as `{eject: true}`", {"const": "none"}, _none),
)
NO_METRICS = _none_for("listen", "`{listen: 127.0.0.1:9464}`")
NO_HEALTH = _none_for("type", "`{type: tcp}`")
FALLBACK = Shorthand(
    dict,
    Rule(
        "mapping",
        "a mapping such as `{host: 10.0.0.99, port: 80}`",
        {"not": {}},  # nothing but a mapping, which is described beside it
        _mapping_only,
    ),
)
DAMPING = Shorthand(
    dict,
    Rule(
        "mapping",
        "a mapping such as `{changes: 6, within: 1min}`, or `{}` for the defaults",
        {"not": {}},  # nothing but a mapping, which is described beside it
        _mapping_only,
    ),
)
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
