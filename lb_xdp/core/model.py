"""The configuration as the rest of the program sees it: frozen, checked, in SI units.

This module owns the vocabulary (gateway, service, pool, backend, health check; what a probe asks is
``check``'s). It refuses to know
YAML: ``lb_xdp.config`` turns a file into these values and is the only place that says no to one.

Addresses are ``ipaddress`` objects, IPv4 and IPv6 alike, without a zone; ports are host-order
integers, times are seconds as ``float``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple, NewType, Self, TypeAlias

from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.endpoint import format_endpoint, format_service

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
        return 6 if self is Protocol.TCP else 17


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


class Panic(StrEnum):
    """Who gets the traffic of a service while none of its backends is healthy."""

    NONE = "none"
    ALL = "all"
    FALLBACK = "fallback"


class OnBackendDown(StrEnum):
    """What becomes of the flows of a backend that goes down.

    ``REHASH``: they go on at another backend, as if they began. ``RESET``: their clients are told.
    """

    REHASH = "rehash"
    RESET = "reset"


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
    HTTPS = "https"
    GRPC = "grpc"
    UDP = "udp"
    DNS = "dns"
    ICMP = "icmp"
    EXEC = "exec"
    AGENT = "agent"

    @property
    def needs_port(self) -> bool:
        """Say whether a probe of this kind goes to a port."""
        return self not in {CheckKind.NONE, CheckKind.ICMP, CheckKind.EXEC}


class Initial(StrEnum):
    """What a backend counts as until its first probe has ended."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Via(StrEnum):
    """Which way probes go: to the backend's own address, or as a client's packets go."""

    DIRECT = "direct"
    DATAPATH = "datapath"


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return ``127.0.0.1:9464`` or ``[::1]:9464``."""
        return format_endpoint(ip_address(self.host), self.port)


class ServiceKey(tuple[int, int, int, int]):  # noqa: SLOT001 - a tuple has no slots for attributes
    """What makes a service unique on the wire. ``port`` may be ``ANY_PORT``.

    Underneath it is a tuple of numbers: the planner looks thousands of keys up by the hundred
    thousand, and numbers are hashed, compared and sorted in C, which addresses are not. IPv4 sorts
    before IPv6.
    """

    vip: Address
    port: int
    protocol: Protocol

    def __new__(cls, vip: Address, port: int, protocol: Protocol) -> Self:
        """Make a key; equal ones are interchangeable."""
        key = super().__new__(cls, (vip.version, int(vip), port, protocol.number))
        key.vip, key.port, key.protocol = vip, port, protocol
        return key

    def __getnewargs__(self) -> tuple[Address, int, Protocol]:
        """Return what a copy is made from."""
        return self.vip, self.port, self.protocol

    def __repr__(self) -> str:
        """Return what makes an equal key."""
        return f"ServiceKey({self.vip!r}, {self.port}, {self.protocol})"

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp``, ``[2001:db8::1]:80/tcp`` or ``203.0.113.10:any/tcp``."""
        return format_service(self.vip, self.port, self.protocol)


class BackendKey(tuple[int, int, int]):  # noqa: SLOT001 - a tuple has no slots for attributes
    """What makes a backend unique within a service: the identity that hashing builds on.

    Names are left out on purpose: renaming a backend must not move a flow. Numbers underneath, and
    sorted, as a ``ServiceKey`` is.
    """

    address: Address
    port: int

    def __new__(cls, address: Address, port: int) -> Self:
        """Make a key; equal ones are interchangeable."""
        key = super().__new__(cls, (address.version, int(address), port))
        key.address, key.port = address, port
        return key

    def __getnewargs__(self) -> tuple[Address, int]:
        """Return what a copy is made from."""
        return self.address, self.port

    def __repr__(self) -> str:
        """Return what makes an equal key."""
        return f"BackendKey({self.address!r}, {self.port})"

    def __str__(self) -> str:
        """Return ``10.0.0.11:8080`` or ``[2001:db8::11]:8080``; for any port the address alone."""
        if self.port == ANY_PORT:
            return str(self.address)
        return format_endpoint(self.address, self.port)


_NO_PAYLOAD: Final = Payload()
_GET: Final = HttpCheck()
_ROOT_ADDRESS: Final = DnsCheck()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How the backends of a pool are probed: when, where, and what is asked.

    ``fast_interval_s`` holds while results contradict the health, ``down_interval_s`` while the
    backend is down; None stands for ``interval_s``. ``jitter`` is the share by which single
    intervals vary, 0 to 1: it keeps probes from marching in step. ``host`` and ``port`` probe
    elsewhere than the backend's own. Of the rest, each kind heeds its own part. ``tls`` None: in
    plain text; https always has it. ``command`` is a program's absolute path and its arguments.
    With ``via`` datapath a probe is addressed to the VIP, and reaches the one backend.
    """

    kind: CheckKind
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1
    host: Address | None = None
    port: int | None = None
    fast_interval_s: float | None = None
    down_interval_s: float | None = None
    initial: Initial = Initial.UNKNOWN
    payload: Payload = _NO_PAYLOAD
    http: HttpCheck = _GET
    tls: Tls | None = None
    grpc_service: str = ""
    dns: DnsCheck = _ROOT_ADDRESS
    command: tuple[str, ...] = ()
    via: Via = Via.DIRECT


@dataclass(frozen=True, slots=True)
class Backend:
    """A server in a pool. ``weight`` is absolute; 0 gets no new flows.

    ``port`` is ``ANY_PORT`` where the service's is: the server sees the port that the client chose.
    ``priority`` 0 is the highest; the others stand by.

    Two sorts are in no pool of the file, and join a service's later on (``core.lingering``): its
    ``fallback``, and one that has ``left`` a pool, named here, but still has flows to end.
    """

    name: BackendName
    address: Address
    port: int
    weight: int = 100
    max_connections: int | None = None
    priority: int = 0
    fallback: bool = False
    left: str | None = None
    key: BackendKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the key once: whoever looks at 10,000 backends asks for it all the time."""
        object.__setattr__(self, "key", BackendKey(self.address, self.port))


@dataclass(frozen=True, slots=True)
class Damping:
    """Flap damping: ``changes`` of health within ``within_s`` hold a backend down.

    For ``hold_s``, and each time again twice as long, up to ``max_hold_s``.
    """

    changes: int = 6
    within_s: float = 60.0
    hold_s: float = 30.0
    max_hold_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Named:
    """A backend whose address DNS knows: one backend for each address of ``host``.

    ``template`` is what they have in common; its address is the unspecified one and means nothing.
    ``position`` is how many of the pool's other backends stand before it in the file.
    """

    host: str
    template: Backend
    position: int


@dataclass(frozen=True, slots=True)
class Detect:
    """What traffic tells of a pool's backends, and what follows from it.

    A backend is suspicious if of at least ``min_flows`` handshakes in ``interval_s`` a share of
    ``failure_share`` or more went unanswered. ``eject``: it is taken out of service then, for
    ``base_time_s`` times the number of its ejections, ``max_time_s`` at most; of all backends no
    larger share than ``max_ejected`` is out at a time.
    """

    interval_s: float = 5.0
    min_flows: int = 20
    failure_share: float = 0.5
    eject: bool = False
    max_ejected: float = 0.5
    base_time_s: float = 30.0
    max_time_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A named set of backends that share one health check, and how they come and go.

    ``slow_start_s`` is how long a backend that comes back takes to get its whole weight,
    ``drain_timeout_s`` how long one that is removed may keep its flows. Backends of lower priority
    join while fewer than ``min_active`` of higher ones are healthy, and leave ``failback_delay_s``
    after that is over. ``fallback`` is there if ``panic`` says so; it has weight 0 until then, and
    is never probed. ``named`` are in ``backends`` as well once ``core.names`` has resolved them.
    ``damping`` None: backends may change as often as they like. ``detect`` None: handshakes are not
    watched.
    """

    name: str
    backends: tuple[Backend, ...]
    health: HealthCheck
    slow_start_s: float = 0.0
    drain_timeout_s: float = 300.0
    min_active: int = 1
    failback_delay_s: float = 0.0
    panic: Panic = Panic.NONE
    fallback: Backend | None = None
    named: tuple[Named, ...] = ()
    damping: Damping | None = None
    detect: Detect | None = None


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
    """A VIP, a port and a protocol, and the pool that answers for them.

    ``derived`` is for ``core.remembered`` alone.
    """

    name: ServiceName
    vip: Address
    port: int
    protocol: Protocol
    mode: Mode
    pool: Pool
    algorithm: Algorithm = Algorithm.MAGLEV
    session: Session = Session()
    no_backend: NoBackend = NoBackend.DROP
    on_backend_down: OnBackendDown = OnBackendDown.REHASH
    key: ServiceKey = field(init=False, repr=False, compare=False)
    derived: dict[object, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Make the key once."""
        object.__setattr__(self, "key", ServiceKey(self.vip, self.port, self.protocol))

    @property
    def watched(self) -> Detect | None:
        """Return how handshakes of the service are watched; None where they are not."""
        return self.pool.detect if self.protocol is Protocol.TCP else None

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
class Resolving:
    """How hosts' names are asked for. ``server`` None: those of /etc/resolv.conf.

    ``interval_s`` is the longest time from one question to the next; the answer's TTL may shorten
    it. An answer that takes away more than the share ``max_change`` of the addresses must come
    ``confirm`` times in a row.
    """

    server: Address | None = None
    interval_s: float = 30.0
    max_change: float = 0.5
    confirm: int = 3


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
    dns: Resolving = Resolving()
    api_group: str | None = None
    api_listener: ApiListener | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """One whole configuration. ``source`` is the file that it came from.

    ``derived`` is for ``core.remembered`` alone.
    """

    gateway: Gateway
    services: tuple[Service, ...]
    source: str = ""
    warnings: tuple[str, ...] = ()
    derived: dict[object, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def backends(self) -> Iterator[tuple[Service, Backend]]:
        """Yield every backend with each service that it answers for, in the file's order."""
        for service in self.services:
            for backend in service.pool.backends:
                yield service, backend
