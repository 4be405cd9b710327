"""The shape of the YAML: which keys there are, their defaults and what they mean.

pydantic stays in this package: ``convert`` turns these models into the dataclasses of
``lb_xdp.core.model``. What involves more than one value is ``check``'s part. The JSON Schema and
docs/configuration.md are generated from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import isclass
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from lb_xdp.config import asking, rules
from lb_xdp.config.tree import Loc
from lb_xdp.config.values import LISTEN, SHARE, STATUS
from lb_xdp.core.check import StatusRange
from lb_xdp.core.model import (
    Address,
    Affinity,
    Algorithm,
    CheckKind,
    Initial,
    Listen,
    Mode,
    NoBackend,
    OnBackendDown,
    Panic,
    Protocol,
    Via,
    XdpMode,
)


@dataclass(frozen=True, slots=True)
class Otherwise:
    """What the reference gives as the default, where that is no fixed value."""

    words: str


class Section(BaseModel):
    """A mapping of the file: no keys but its own, and nobody changes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _key(meaning: str, default: object = ..., **bounds: int) -> Any:
    """Return a key's description. ``default`` is spelled as in YAML and read by the key's rule."""
    checked = default is not None and default is not ...
    return Field(default, description=meaning, validate_default=checked, **bounds)  # type: ignore[call-overload]  # Field is typed for defaults of the final type


class Api(Section):
    """How commands reach the daemon."""

    socket: Annotated[
        str | None, rules.SOCKET, Otherwise("`/run/lb-xdp/<gateway.name>/api.sock`")
    ] = _key("unix socket of the API", None)
    group: Annotated[str | None, rules.GROUP, Otherwise("none")] = _key(
        "may use the socket, as root may; all that commands do, it may do", None
    )
    listen: Annotated[Listen | None, LISTEN] = _key(
        "serves the API over TCP as well, with TLS and tokens", "none"
    )
    certificate: Annotated[str | None, rules.FILE, Otherwise("none")] = _key(
        "file with the certificate of `listen` and those that vouch for it (PEM); required "
        "unless that is a loopback address",
        None,
    )
    key: Annotated[str | None, rules.FILE, Otherwise("none")] = _key(
        "file with the certificate's private key (PEM), without a password and closed to others "
        "(0640)",
        None,
    )
    tokens: Annotated[str | None, rules.FILE, Otherwise("none")] = _key(
        "file with the tokens that `listen` takes, a line `NAME:read:SHA256` or "
        "`NAME:write:SHA256` each, closed to others (0640); required with `listen`",
        None,
    )


class Metrics(Section):
    """Where the daemon can be watched."""

    listen: Annotated[Listen | None, LISTEN] = _key(
        "serves /metrics, /healthz and /readyz; `none` turns them off", "127.0.0.1:9464"
    )


class TunnelSources(Section):
    """Where the outer source addresses of `ipip` and `gue` are taken from, one for each flow."""

    ipv4: Annotated[IPv4Network, rules.TUNNEL_IPV4] = _key(
        "for backends with an IPv4 address; reverse path filters there must let it in",
        "172.16.0.0/16",
    )
    ipv6: Annotated[IPv6Network, rules.TUNNEL_IPV6] = _key(
        "for backends with an IPv6 address", "100::/64"
    )


class FlowTable(Section):
    """Where flows are recorded while that is needed, and how long they may be silent."""

    entries: Annotated[int, rules.FLOW_ENTRIES] = _key(
        "flows that can be recorded; memory for all is taken at once", 262144
    )
    settle: Annotated[float, rules.FLOW_TIME] = _key(
        "how long the flows of a ring slot are recorded after its backend changed; "
        "longer than TCP flows stay silent",
        "15min",
    )
    tcp_idle: Annotated[float, rules.FLOW_TIME] = _key(
        "a silent TCP connection is forgotten after this", "3h"
    )
    tcp_opening: Annotated[float, rules.FLOW_TIME] = _key(
        "the same before the first packet after the SYN", "10s"
    )
    tcp_closing: Annotated[float, rules.FLOW_TIME] = _key("the same after FIN or RST", "10s")
    udp_idle: Annotated[float, rules.FLOW_TIME] = _key(
        "a silent UDP flow is forgotten, and a slot of a udp service settled, after this", "30s"
    )


class Dns(Section):
    """How the names of backends' hosts are asked for, again and again."""

    resolver: Annotated[
        Address | None, rules.DNS_SERVER, Otherwise("those of /etc/resolv.conf")
    ] = _key("the server that is asked", None)
    interval: Annotated[float, rules.DNS_TIME] = _key(
        "the longest time until a name is asked for again; the answer's TTL may shorten it", "30s"
    )
    max_change: Annotated[float, SHARE] = _key(
        "an answer that takes away more of a name's addresses is held back", "50%"
    )
    confirm: Annotated[int, rules.COUNT] = _key(
        "until it has come this many times in a row; an empty one never counts", 3
    )


class Gateway(Section):
    """The instance: its name, its interfaces, where it answers, and what its packets carry."""

    name: Annotated[str, rules.NAME] = _key(
        "tells instances on one host apart; part of the paths of pins, lock and socket", "default"
    )
    interfaces: tuple[Annotated[str, rules.INTERFACE], ...] = _key(
        "where the program is attached; several for a gateway with more than one arm", min_length=1
    )
    xdp_mode: Annotated[XdpMode, rules.XDP_MODE] = _key(
        "run in the driver or in the stack; `auto`: in the driver where it can", "auto"
    )
    api: Api = _key("how commands reach the daemon", {})
    metrics: Annotated[Metrics, rules.NO_METRICS] = _key("where the daemon can be watched", {})
    snat_addresses: tuple[Annotated[Address, rules.SNAT_ADDRESS], ...] = _key(
        "source addresses of `mode: fullnat`; they lead to this gateway and carry nothing else", []
    )
    tunnel_sources: TunnelSources = _key("outer source addresses of `ipip` and `gue`", {})
    gue_port: Annotated[int, rules.PORT] = _key("UDP port that backends take `gue` at", 6080)
    flow_table: FlowTable = _key("size and times of the table of flows", {})
    dns: Dns = _key("how the names of backends' hosts are asked for", {})


class Backend(Section):
    """A server in a pool."""

    name: Annotated[str | None, rules.BACKEND_NAME, Otherwise("`host:port`")] = _key(
        "unique in its pool; an IPv6 host stands in brackets by default", None
    )
    host: Annotated[Address | str, rules.BACKEND_HOST] = _key(
        "the server's address; or a name, asked of DNS again and again: each of its addresses is a "
        "backend, called `name@address` where there are several"
    )
    port: Annotated[int | None, rules.PORT, Otherwise("required, but for `port: any`")] = _key(
        "the server's port; the service's own unless `mode` is `nat` or `fullnat`, and not given "
        "where that is `any`",
        None,
    )
    weight: Annotated[int, rules.WEIGHT] = _key(
        "share of the flows, relative to the others; 0 gets none", 100
    )
    max_connections: Annotated[int | None, rules.CONNECTIONS, Otherwise("no limit")] = _key(
        "gets no new flow beyond; exact with `nat` and `fullnat`, an estimate where replies "
        "do not pass the gateway",
        None,
    )
    priority: Annotated[int, rules.PRIORITY] = _key(
        "0 is the highest; backends with a larger number stand by, see `min_active`", 0
    )


class Threshold(Section):
    """How many probes in a row decide."""

    rise: Annotated[int, rules.COUNT] = _key("successes in a row until up", 2)
    fall: Annotated[int, rules.COUNT] = _key("failures in a row until down", 3)


class Health(Section):
    """How the backends of a pool are probed. `health: none`: never probed, always up."""

    type: Annotated[CheckKind, rules.CHECK] = _key(
        "`tcp`: connects, or talks; `http`, `https`: a request; `grpc`: its health protocol; "
        "`udp`: a datagram; `dns`: a query; `icmp`: an echo request; `exec`: a command; `agent`: "
        "asks the backend itself; `none`: never probed, always up. A key that has no effect with "
        "the type is an error",
        "tcp",
    )
    interval: Annotated[float, rules.INTERVAL] = _key("from one probe to the next", "2s")
    fast_interval: Annotated[float | None, rules.INTERVAL, Otherwise("`interval`")] = _key(
        "the same while probes contradict the health, so that it is soon decided; not longer than "
        "`interval`",
        None,
    )
    down_interval: Annotated[float | None, rules.INTERVAL, Otherwise("`interval`")] = _key(
        "the same while the backend is down", None
    )
    timeout: Annotated[float | None, rules.TIMEOUT, Otherwise("`1s`, or `interval` if shorter")] = (
        _key("a probe without an answer fails; not longer than `interval`", None)
    )
    threshold: Annotated[Threshold, rules.BOTH_COUNTS] = _key(
        "how many probes in a row decide; one number means both", {}
    )
    jitter: Annotated[float, SHARE] = _key("by how much single intervals vary", 0.1)
    initial: Annotated[Initial, rules.INITIAL] = _key(
        "what a new backend counts as until its first probe has ended; `unknown`: gets no traffic, "
        "and the first probe decides alone",
        "unknown",
    )
    host: Annotated[Address | None, rules.PROBE_HOST, Otherwise("the backend's")] = _key(
        "probes go to this address", None
    )
    port: Annotated[int | None, rules.PORT, Otherwise("the backend's")] = _key(
        "probes go to this port; not with `icmp`", None
    )
    send: Annotated[bytes | None, asking.PAYLOAD, Otherwise("nothing; `udp` needs it")] = _key(
        "`tcp`, `udp`, `agent`: what is sent", None
    )
    expect: Annotated[bytes | None, asking.PAYLOAD, Otherwise("any answer")] = _key(
        "`tcp`, `udp`: what the answer must contain; without it `tcp` only opens a connection", None
    )
    method: Annotated[str, rules.METHOD] = _key("`http`, `https`: the method", "GET")
    path: Annotated[str, rules.URL_PATH] = _key("`http`, `https`: what is asked for", "/")
    host_header: Annotated[str | None, rules.HEADER, Otherwise("the address probed")] = _key(
        "`http`, `https`: the Host header", None
    )
    headers: Annotated[tuple[tuple[str, str], ...], asking.HEADERS, Otherwise("none")] = _key(
        "`http`, `https`: further headers", {}
    )
    expected_status: Annotated[tuple[Annotated[StatusRange, STATUS], ...], rules.ONE_STATUS] = _key(
        "`http`, `https`: what counts as a success", ["200-399"], min_length=1
    )
    expected_body: Annotated[str | None, asking.REGEX, Otherwise("anything")] = _key(
        "`http`, `https`: what is found in the first 64 KiB of the body", None
    )
    reuse: Annotated[bool, asking.SWITCH] = _key(
        "`http`, `https`: keep the connection for the next probe; cheaper, but a server that takes "
        "no new connections is not found out",
        default=False,
    )
    tls: Annotated[bool, asking.SWITCH] = _key("`grpc`: over TLS", default=False)
    server_name: Annotated[
        str | None, rules.DNS_NAME, Otherwise("the name in `host_header`, or the address")
    ] = _key("`https`, `grpc`: asked for (SNI), and must be in the server's certificate", None)
    ca_file: Annotated[str | None, rules.FILE, Otherwise("the system's")] = _key(
        "`https`, `grpc`: PEM file of the authorities that are trusted", None
    )
    insecure: Annotated[bool, asking.SWITCH] = _key(
        "`https`, `grpc`: take any certificate", default=False
    )
    certificate: Annotated[str | None, rules.FILE, Otherwise("none")] = _key(
        "`https`, `grpc`: PEM file of the probe's own certificate, and those above it", None
    )
    private_key: Annotated[str | None, rules.FILE, Otherwise("in `certificate`")] = _key(
        "`https`, `grpc`: PEM file of its key, without a passphrase", None
    )
    grpc_service: Annotated[str, rules.GRPC_SERVICE] = _key(
        "`grpc`: whose health is asked for; empty: the server's as a whole", ""
    )
    query_name: Annotated[str | None, rules.DNS_QUERY, Otherwise("required with `dns`")] = _key(
        "`dns`: the name that is asked for", None
    )
    query_type: Annotated[str, rules.DNS_TYPE] = _key("`dns`: the type of record", "A")
    expected_answer: Annotated[str | None, rules.DNS_ANSWER, Otherwise("any of the type")] = _key(
        "`dns`: a record that must be among the answers, as zone files write it", None
    )
    command: Annotated[tuple[str, ...], asking.COMMAND, Otherwise("required with `exec`")] = _key(
        "`exec`: program and arguments; exit code 0 is a success, the first line of output the "
        "detail; no shell",
        [],
    )
    via: Annotated[Via, rules.VIA] = _key(
        "`datapath`: ask the VIP, the way that clients' packets go with `dsr`, `ipip` and `gue`, "
        "which finds a server that has no VIP on lo or does not undo tunnels",
        "direct",
    )


class Fallback(Section):
    """A server for the time when no backend of a pool is healthy. It is never probed."""

    name: Annotated[str | None, rules.BACKEND_NAME, Otherwise("`host:port`")] = _key(
        "another than those of the pool's backends", None
    )
    host: Annotated[Address, rules.HOST] = _key("the server's address")
    port: Annotated[int | None, rules.PORT, Otherwise("required, but for `port: any`")] = _key(
        "the server's port; the same holds as for a backend's", None
    )


class Damping(Section):
    """When a backend that goes up and down too often is held down, and for how long."""

    changes: Annotated[int, rules.FLAPS] = _key(
        "so many changes of health, up or down, within `within` hold a backend down", 6
    )
    within: Annotated[float, rules.FLAP_TIME] = _key("how far back changes count", "1min")
    hold: Annotated[float, rules.FLAP_TIME] = _key(
        "how long it is held the first time; twice as long each time again, until it has been free "
        "for `max_hold`",
        "30s",
    )
    max_hold: Annotated[float, rules.FLAP_TIME] = _key("how long it is held at most", "10min")


class Detect(Section):
    """What the traffic itself tells of the backends. `detect: none`: it is not watched.

    For the pool's TCP services. Exact with `nat` and `fullnat`; elsewhere, what the client's side
    shows: a client that vanishes looks like a backend that does not answer.
    """

    interval: Annotated[float, rules.DETECT_TIME] = _key(
        "the time that is looked back on, each second anew", "5s"
    )
    min_flows: Annotated[int, rules.DETECT_FLOWS] = _key(
        "handshakes in that time, without which nothing is concluded", 20
    )
    failure_share: Annotated[float, SHARE] = _key(
        "a backend is suspicious, and probed at once, if so many of them went unanswered", "50%"
    )
    eject: Annotated[bool, asking.SWITCH] = _key(
        "take a backend that stays suspicious for a second out of service, whatever probes say",
        default=False,
    )
    max_ejected: Annotated[float, SHARE] = _key(
        "of all backends of the pool no more are out at a time, and never the last one", "50%"
    )
    base_time: Annotated[float, rules.DETECT_TIME] = _key(
        "how long it stays out; twice, three times as long when it happens again", "30s"
    )
    max_time: Annotated[float, rules.DETECT_TIME] = _key("no longer than this", "5min")


class Pool(Section):
    """A named set of backends that share one health check, and how they come and go."""

    name: Annotated[str, rules.NAME] = _key("unique")
    backends: tuple[Backend, ...] = _key("the servers", min_length=1)
    health: Annotated[Health, rules.NO_HEALTH] = _key("how the servers are probed", {})
    slow_start: Annotated[float, rules.CHANGE_TIME] = _key(
        "how long a backend that recovers or is added takes to get its whole weight", "0s"
    )
    drain_timeout: Annotated[float, rules.CHANGE_TIME] = _key(
        "how long a backend that is taken out of the file keeps the flows that it has", "5min"
    )
    min_active: Annotated[int, rules.LEAST] = _key(
        "backends of the next priority join while fewer than these are healthy above it", 1
    )
    failback_delay: Annotated[float, rules.CHANGE_TIME] = _key(
        "how long they stay once enough are healthy again", "0s"
    )
    panic: Annotated[Panic, rules.PANIC] = _key(
        "who gets new flows while no backend is healthy: nobody, all that are ready, or `fallback`",
        "none",
    )
    fallback: Annotated[Fallback | None, rules.FALLBACK, Otherwise("not given")] = _key(
        "the server for `panic: fallback`", None
    )
    damping: Annotated[Damping | None, rules.DAMPING, Otherwise("`none`")] = _key(
        "hold backends down that go up and down too often; `{}` for the defaults below", None
    )
    detect: Annotated[Detect | None, rules.NO_DETECT, Otherwise("not watched")] = _key(
        "what the traffic tells of the servers", None
    )


class Session(Section):
    """Which flows of one client stay together."""

    affinity: Annotated[Affinity, rules.AFFINITY] = _key(
        "what keeps a client on one backend: its address, or its network (/24, /64)", "none"
    )
    timeout: Annotated[float, rules.SESSION_TIME] = _key(
        "how long after its last packet a client keeps its backend; has no effect with `none`", "3h"
    )
    flows: Annotated[bool, rules.FLOWS] = _key(
        "`none`: never record a flow, not even while backends change; for exchanges of one packet",
        "auto",
    )


class Service(Section):
    """A VIP, a port and a protocol, and who answers for them."""

    name: Annotated[str, rules.NAME] = _key("unique")
    vip: Annotated[Address, rules.VIP] = _key("the address that clients use")
    port: Annotated[int, rules.SERVICE_PORT] = _key(
        "the port that clients use; `any`: all that no other service of this VIP and protocol has"
    )
    protocol: Annotated[Protocol, rules.PROTOCOL] = _key("with `vip` and `port` unique", "tcp")
    mode: Annotated[Mode, rules.MODE] = _key(
        "`dsr`: backends are on the gateway's own network, have the VIP on lo and answer directly; "
        "`ipip`, `gue`: the same in a tunnel, to backends anywhere; "
        "`nat`: replies come back through the gateway, which is the backends' router; "
        "`fullnat`: so do they, to the gateway's own address, and backends need no set-up"
    )
    algorithm: Annotated[Algorithm, rules.ALGORITHM] = _key(
        "how flows are spread; all but `maglev` and `source_hash` record every flow", "maglev"
    )
    session: Session = _key("which flows of one client stay together", {})
    no_backend: Annotated[NoBackend, rules.NO_BACKEND] = _key(
        "what clients get while no backend can take them; `reject`: a TCP RST, or an ICMP port "
        "unreachable",
        "drop",
    )
    on_backend_down: Annotated[OnBackendDown, rules.ON_BACKEND_DOWN] = _key(
        "what becomes of the connections of a backend that goes down; `rehash`: they go to another "
        "one, which does not know them; `reset`: their clients get a TCP RST",
        "rehash",
    )
    pool: Annotated[str | None, rules.NAME, Otherwise("not given")] = _key(
        "name of a pool; or `backends` inline", None
    )
    backends: Annotated[tuple[Backend, ...], Otherwise("not given")] = Field(
        default_factory=tuple, min_length=1, description="a pool of its own, instead of `pool`"
    )
    health: Annotated[Health, rules.NO_HEALTH] = _key("with inline `backends` only", {})
    detect: Annotated[Detect | None, rules.NO_DETECT, Otherwise("not watched")] = _key(
        "with inline `backends` only", None
    )


class Root(Section):
    """The whole file."""

    gateway: Gateway = _key("this instance")
    pools: tuple[Pool, ...] = _key("named sets of backends", [])
    services: tuple[Service, ...] = _key("what clients reach", min_length=1)


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the model of the mapping, or of each mapping in the list, that ``field`` holds."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isclass(candidate) and issubclass(candidate, Section):
            return candidate
    return None


@lru_cache(maxsize=256)  # a file can name keys without end
def _section_at_keys(keys: tuple[str, ...]) -> type[Section] | None:
    section: type[Section] | None = Root
    for key in keys:
        field = section.model_fields.get(key) if section else None
        section = section_of(field) if field else None
    return section


def section_at(loc: Loc) -> type[Section] | None:
    """Return the model of the mapping at ``loc``; None where the schema has no mapping."""
    return _section_at_keys(tuple(step for step in loc if isinstance(step, str)))


def known_keys(loc: Loc) -> Sequence[str]:
    """Return the keys that the mapping at ``loc`` may have."""
    section = section_at(loc)
    return _keys_of(section) if section else ()


@cache
def _keys_of(section: type[Section]) -> Sequence[str]:
    return tuple(section.model_fields)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors; camelCase spellings included."""
    schema = Root.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        properties = section["properties"]
        for described in properties.values():
            described.pop("title", None)  # it only repeats the key
            if described.get("default", ...) is None:
                del described["default"]  # stands for a default that depends, not for null
        for name in [name for name in properties if "_" in name]:
            head, *rest = name.split("_")
            camel = head + "".join(word.capitalize() for word in rest)
            properties[camel] = {**properties[name], "description": f"the same as {name}"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "lb-xdp"}
