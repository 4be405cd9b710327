"""The configuration as the rest of the program sees it: frozen, checked, in SI units.

This module owns the vocabulary (gateway, service, pool, backend, health check). It refuses to know
YAML: ``lb_xdp.config`` turns a file into these values and is the only place that says no to one.

Addresses are ``ipaddress`` objects, ports are host-order integers, times are seconds as ``float``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NamedTuple, NewType

BackendName = NewType("BackendName", str)
ServiceName = NewType("ServiceName", str)


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
    NAT = "nat"


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


class ServiceKey(NamedTuple):
    """What makes a service unique on the wire."""

    vip: IPv4Address
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp``."""
        return f"{self.vip}:{self.port}/{self.protocol}"


class BackendKey(NamedTuple):
    """What makes a backend unique within a service: the identity that hashing builds on.

    Names are left out on purpose: renaming a backend must not move a flow.
    """

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        """Return ``10.0.0.11:8080``."""
        return f"{self.address}:{self.port}"


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
    host: IPv4Address | None = None
    port: int | None = None
    path: str = "/"
    http_host: str | None = None
    expected_status: tuple[StatusRange, ...] = (StatusRange(200, 399),)


@dataclass(frozen=True, slots=True)
class Backend:
    """A server in a pool. ``weight`` is absolute; 0 gets no new flows."""

    name: BackendName
    address: IPv4Address
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
class Service:
    """A VIP, a port and a protocol, and the pool that answers for them."""

    name: ServiceName
    vip: IPv4Address
    port: int
    protocol: Protocol
    mode: Mode
    pool: Pool

    @property
    def key(self) -> ServiceKey:
        """Return what makes the service unique on the wire."""
        return ServiceKey(self.vip, self.port, self.protocol)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One instance: its name, its interfaces, and where it answers."""

    name: str
    interfaces: tuple[str, ...]
    xdp_mode: XdpMode
    api_socket: str
    metrics_listen: Listen | None


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
