"""The configuration as the rest of the program sees it: frozen, checked, in SI units.

This module owns the vocabulary (gateway, service, pool, backend, health check). It refuses to know
YAML: ``lb_xdp.config`` turns a file into these values and is the only place that says no to one.

Addresses are ``ipaddress`` objects, IPv4 and IPv6 alike, without a zone; ports are host-order
integers, times are seconds as ``float``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, NamedTuple, NewType, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

BackendName = NewType("BackendName", str)
ServiceName = NewType("ServiceName", str)

IPV4: Final = 4
IPV6: Final = 6

ANY_PORT: Final = 0
"""The port of a service that takes every port of its VIP, and of that service's backends."""


class Protocol(StrEnum):
    """Transport protocol of a service."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """Return the IANA protocol number as it stands in the IP header."""
        return {Protocol.TCP: 6, Protocol.UDP: 17}[self]


class Mode(StrEnum):
    """How a packet gets from the gateway to its backend."""

    DSR = "dsr"
    IPIP = "ipip"
    GUE = "gue"
    NAT = "nat"
    FULLNAT = "fullnat"

    @property
    def tunnel(self) -> bool:
        """Say whether the packet travels whole, inside another one to the backend's address."""
        return self in {Mode.IPIP, Mode.GUE}

    @property
    def translates(self) -> bool:
        """Say whether addresses and ports are rewritten, so that replies come back this way."""
        return self in {Mode.NAT, Mode.FULLNAT}

    @property
    def routes(self) -> bool:
        """Say whether the gateway is a router on the way: it counts as a hop."""
        return self is not Mode.DSR


class Algorithm(StrEnum):
    """How a service spreads its flows over its backends."""

    MAGLEV = "maglev"
    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"
    SOURCE_HASH = "source_hash"

    @property
    def hashes(self) -> bool:
        """Say whether the packet alone names the backend, so that no flow needs a record."""
        return self in {Algorithm.MAGLEV, Algorithm.SOURCE_HASH}


class Affinity(StrEnum):
    """What keeps several flows of one client on one backend."""

    NONE = "none"
    CLIENT_IP = "client_ip"
    CLIENT_PREFIX = "client_prefix"


class NoBackend(StrEnum):
    """What becomes of a packet that no backend can take; ``REJECT`` tells the client at once."""

    DROP = "drop"
    REJECT = "reject"


class XdpMode(StrEnum):
    """Where the program runs: in the driver, in the stack, or the better of both."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


class CheckKind(StrEnum):
    """What a probe does."""

    NONE = "none"
    TCP = "tcp"
    HTTP = "http"


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int


class StatusRange(NamedTuple):
    """HTTP status codes from ``first`` to ``last``, both included."""

    first: int
    last: int


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a key is sorted by: IPv4 before IPv6, which ipaddress refuses to compare."""
    return (key[0].version, *key)


def format_endpoint(address: Address, port: int | str) -> str:
    """Return ``10.0.0.11:80`` or ``[2001:db8::11]:80`` (RFC 5952, section 6)."""
    return f"[{address}]:{port}" if address.version == IPV6 else f"{address}:{port}"


class ServiceKey(NamedTuple):
    """What makes a service unique on the wire. ``port`` may be ``ANY_PORT``."""

    vip: Address
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp``, ``[2001:db8::1]:80/tcp`` or ``203.0.113.10:any/tcp``."""
        port = "any" if self.port == ANY_PORT else self.port
        return f"{format_endpoint(self.vip, port)}/{self.protocol}"

    def __lt__(self, other: tuple[Any, ...], /) -> bool:
        """Order services for ``sorted``, those of both families alike."""
        return _order(self) < _order(other)


class BackendKey(NamedTuple):
    """What makes a backend unique within a service: the identity that hashing builds on.

    Names are left out on purpose: renaming a backend must not move a flow.
    """

    address: Address
    port: int

    def __str__(self) -> str:
        """Return ``10.0.0.11:8080`` or ``[2001:db8::11]:8080``; for any port the address alone."""
        if self.port == ANY_PORT:
            return str(self.address)
        return format_endpoint(self.address, self.port)

    def __lt__(self, other: tuple[Any, ...], /) -> bool:
        """Order backends for ``sorted``, those of both families alike."""
        return _order(self) < _order(other)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How the backends of a pool are probed.

    ``jitter`` is the share of ``interval_s`` by which single intervals vary, 0 to 1: it keeps
    probes from marching in step. ``host`` and ``port`` probe elsewhere than the backend's own.
    """

    kind: CheckKind
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1
    host: Address | None = None
    port: int | None = None
    path: str = "/"
    http_host: str | None = None
    expected_status: tuple[StatusRange, ...] = (StatusRange(200, 399),)


@dataclass(frozen=True, slots=True)
class Backend:
    """A server in a pool. ``weight`` is absolute; 0 gets no new flows.

    ``port`` is ``ANY_PORT`` where the service's is: the server sees the port that the client chose.
    """

    name: BackendName
    address: Address
    port: int
    weight: int = 100
    max_connections: int | None = None

    @property
    def key(self) -> BackendKey:
        """Return the identity that hashing builds on."""
        return BackendKey(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Pool:
    """A named set of backends that share one health check."""

    name: str
    backends: tuple[Backend, ...]
    health: HealthCheck


@dataclass(frozen=True, slots=True)
class Session:
    """Which flows stay where they are. ``timeout_s``: how long affinity outlives the last packet.

    ``flows`` False: no flow of the service is ever recorded, not even while its slot is unsettled;
    right for exchanges of one packet each.
    """

    affinity: Affinity = Affinity.NONE
    timeout_s: float = 10800.0
    flows: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP, a port and a protocol, and the pool that answers for them."""

    name: ServiceName
    vip: Address
    port: int
    protocol: Protocol
    mode: Mode
    pool: Pool
    algorithm: Algorithm = Algorithm.MAGLEV
    session: Session = Session()
    no_backend: NoBackend = NoBackend.DROP

    @property
    def key(self) -> ServiceKey:
        """Return what makes the service unique on the wire."""
        return ServiceKey(self.vip, self.port, self.protocol)

    @property
    def tracked(self) -> bool:
        """Say whether every flow of the service is recorded, not only those of unsettled slots."""
        return self.why_tracked is not None

    @property
    def why_tracked(self) -> str | None:
        """Return a clause that says what takes a record of every flow, None where nothing does."""
        if self.mode is Mode.FULLNAT:
            return "fullnat needs each flow's own source port to translate its replies back"
        if not self.algorithm.hashes:
            return f"{self.algorithm} needs to know every flow"
        if self.session.affinity is not Affinity.NONE:
            return f"session affinity {self.session.affinity} needs to know every flow"
        limited = (b.name for b in self.pool.backends if b.max_connections is not None)
        if (name := next(limited, None)) is not None:
            return f"max_connections of {name} needs to count every flow"
        return None


_TUNNEL_IPV4: Final = IPv4Network("172.16.0.0/16")
_TUNNEL_IPV6: Final = IPv6Network("100::/64")


@dataclass(frozen=True, slots=True)
class TunnelSources:
    """Where the outer source addresses of tunnels come from.

    The host bits are filled from the flow's hash, so that receivers and routers can spread flows.
    The defaults are private (RFC 1918) and discard-only (RFC 6666): nobody answers to them.
    """

    ipv4: IPv4Network = _TUNNEL_IPV4
    ipv6: IPv6Network = _TUNNEL_IPV6


@dataclass(frozen=True, slots=True)
class FlowTable:
    """Size of the flow table, and how long silence is until a record or a slot is let go.

    ``settle_s`` is how long a slot of a TCP service stays unsettled after its backend changed; for
    UDP it is ``udp_idle_s``.
    """

    entries: int = 262_144
    settle_s: float = 900.0
    tcp_idle_s: float = 10800.0
    tcp_opening_s: float = 10.0
    tcp_closing_s: float = 10.0
    udp_idle_s: float = 30.0


GUE_PORT: Final = 6080
"""The UDP port that IANA registered for GUE."""


@dataclass(frozen=True, slots=True)
class ApiListener:
    """The API over TCP. ``certificate``, ``key`` and ``tokens`` are files; no TLS without a key."""

    listen: Listen
    tokens: str
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Gateway:
    """One instance: its name, its interfaces, where it answers, and what its packets carry.

    ``snat_addresses`` are the sources of fullnat, ``gue_port`` is the destination port of gue.
    ``api_group`` may use the socket beside root.
    """

    name: str
    interfaces: tuple[str, ...]
    xdp_mode: XdpMode
    api_socket: str
    metrics_listen: Listen | None
    snat_addresses: tuple[Address, ...] = ()
    tunnel_sources: TunnelSources = TunnelSources()
    gue_port: int = GUE_PORT
    flow_table: FlowTable = FlowTable()
    api_group: str | None = None
    api_listener: ApiListener | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """One whole configuration. ``source`` is the file that it came from."""

    gateway: Gateway
    services: tuple[Service, ...]
    source: str = ""
    warnings: tuple[str, ...] = ()

    def backends(self) -> Iterator[tuple[Service, Backend]]:
        """Yield every backend with each service that it answers for, in the file's order."""
        for service in self.services:
            for backend in service.pool.backends:
                yield service, backend
