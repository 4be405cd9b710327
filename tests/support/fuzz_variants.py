"""What the fuzzer compiles: each mode and family by itself, what tracks, what is odd, and all."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    Affinity,
    Algorithm,
    Detect,
    Mode,
    NoBackend,
    OnBackendDown,
    Protocol,
    Service,
    Session,
)
from tests.support import program


@dataclass(frozen=True, slots=True)
class Variant:
    """Services that are compiled together. ``mtu`` is the interfaces'.

    ``down`` backends were never up, ``fallen`` ones were, and went down.
    """

    name: str
    services: tuple[Service, ...]
    mtu: int = 1500
    down: tuple[int, ...] = ()
    fallen: tuple[int, ...] = ()


def _vip(number: int, version: int) -> Address:
    if version == 4:
        return IPv4Address(f"203.0.113.{number}")
    return IPv6Address(f"2001:db8::{number}")


def _pair(mode: Mode, number: int, version: int, family: int | None = None) -> tuple[Service, ...]:
    """Return a TCP and a UDP service of a mode; nat and fullnat translate ports as well."""
    vip, moved = _vip(number, version), 8000 if mode.translates else 0
    return tuple(
        program.service(
            mode,
            port,
            protocol=protocol,
            backend_port=port + moved,
            vip=vip,
            family=family,
            name=f"{mode}-{port}-{number}-{version}",
        )
        for port, protocol in ((80, Protocol.TCP), (53, Protocol.UDP))
    )


def _tracking(version: int) -> tuple[Service, ...]:
    """Return services that record every flow, for every reason there is."""
    client = Session(Affinity.CLIENT_IP, 60.0)
    prefix = Session(Affinity.CLIENT_PREFIX, 60.0)

    def one(mode: Mode, number: int, **wish: object) -> Service:
        return program.service(mode, vip=_vip(number, version), name=f"t{number}", **wish)  # type: ignore[arg-type]  # the wishes are service()'s own

    return (
        one(Mode.DSR, 20, algorithm=Algorithm.LEAST_CONNECTIONS, session=client),
        one(Mode.IPIP, 21, algorithm=Algorithm.ROUND_ROBIN, max_connections=100),
        one(Mode.NAT, 22, algorithm=Algorithm.RANDOM, backend_port=8022, session=prefix),
        one(Mode.DSR, 23, protocol=Protocol.UDP, max_connections=50),
        one(Mode.FULLNAT, 24, backend_port=8024, algorithm=Algorithm.LEAST_CONNECTIONS),
        one(Mode.GUE, 25, session=Session(flows=False)),
    )


def _odd(version: int) -> tuple[Service, ...]:
    """Return services on any port, by source, and ones that refuse."""

    def one(mode: Mode, number: int, port: int = 80, **wish: object) -> Service:
        return program.service(mode, port, vip=_vip(number, version), name=f"o{number}", **wish)  # type: ignore[arg-type]  # the wishes are service()'s own

    return (
        one(Mode.DSR, 30, ANY_PORT, algorithm=Algorithm.SOURCE_HASH),
        one(Mode.DSR, 30, 22),
        one(Mode.NAT, 31, ANY_PORT, backends=(4, 5)),
        one(Mode.NAT, 32, backends=(9,), no_backend=NoBackend.REJECT),
        one(Mode.IPIP, 33, 53, protocol=Protocol.UDP, backends=(9,), no_backend=NoBackend.REJECT),
        one(Mode.DSR, 34, backends=(9,)),
    )


def _resetting(version: int) -> tuple[Service, ...]:
    """Return services whose flows are reset when their backend goes down."""

    def one(mode: Mode, number: int, **wish: object) -> Service:
        reset = OnBackendDown.RESET
        vip, name = _vip(number, version), f"r{number}"
        return program.service(mode, vip=vip, name=name, on_backend_down=reset, **wish)  # type: ignore[arg-type]  # the wishes are service()'s own

    return (
        *(one(mode, 40 + at, backends=(1, 2, 8)) for at, mode in enumerate(Mode)),
        one(Mode.DSR, 46, backends=(8,), algorithm=Algorithm.LEAST_CONNECTIONS),
        one(Mode.NAT, 47, backends=(2, 8), algorithm=Algorithm.ROUND_ROBIN, backend_port=8047),
        one(Mode.IPIP, 48, backends=(8,), no_backend=NoBackend.REJECT),
    )


def _watched(version: int) -> tuple[Service, ...]:
    """Return services whose handshakes are watched."""

    def one(mode: Mode, number: int, **wish: object) -> Service:
        vip, name = _vip(number, version), f"w{number}"
        return program.service(mode, vip=vip, name=name, detect=Detect(), **wish)  # type: ignore[arg-type]  # the wishes are service()'s own

    return (
        *(one(mode, 50 + at) for at, mode in enumerate(Mode)),
        one(Mode.DSR, 56, algorithm=Algorithm.SOURCE_HASH),
        one(Mode.NAT, 57, algorithm=Algorithm.LEAST_CONNECTIONS, max_connections=100),
        one(Mode.NAT, 58, backends=(4, 5), backend_port=8058),
        one(Mode.GUE, 59, session=Session(flows=False)),
    )


def variants() -> tuple[Variant, ...]:
    """Return what is fuzzed: each mode and family by itself, and all together."""
    single = [
        Variant(f"{mode}{version}", _pair(mode, 10 + at, version))
        for at, mode in enumerate(Mode)
        for version in (4, 6)
    ]
    crossed = {
        f"{mode}{family}in{outer}": _pair(mode, 15 + at, family, outer)
        for at, mode in enumerate((Mode.IPIP, Mode.GUE))
        for family, outer in ((4, 6), (6, 4))
    }
    everything = (
        *(service for variant in single for service in variant.services),
        *(service for services in crossed.values() for service in services),
        *_tracking(4),
        *_tracking(6),
        *_odd(4),
        *_odd(6),
        *_resetting(4),
        *_resetting(6),
        *_watched(4),
        *_watched(6),
    )
    return (
        *single,
        *(Variant(name, services) for name, services in crossed.items()),
        Variant("tracked", _tracking(4) + _tracking(6)),
        Variant("odd", _odd(4) + _odd(6), down=(9,)),
        Variant("resetting", _resetting(4) + _resetting(6), fallen=(8,)),
        Variant("watched", _watched(4) + _watched(6)),
        Variant("jumbo", _pair(Mode.IPIP, 11, 4) + _pair(Mode.NAT, 13, 4), mtu=9000),
        Variant("all", everything, down=(9,), fallen=(8,)),
    )
