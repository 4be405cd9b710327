"""A structure as endpoints, and back: what the endpoint tables say of services and addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, Schedule, Structure, Traits
from lb_xdp.core.model import Address, Mode, Protocol, ServiceKey
from lb_xdp.core.plan import INDICES
from lb_xdp.datapath.endpoints import Endpoint, mac_of
from lb_xdp.datapath.layout import layout

_FLAGS = {
    "tracked": "LB_SERVICE_TRACKED",
    "by_source": "LB_SERVICE_SOURCE",
    "client": "LB_SERVICE_CLIENT",
    "prefix": "LB_SERVICE_PREFIX",
    "reject": "LB_SERVICE_REJECT",
    "limited": "LB_SERVICE_LIMITED",
    "counted": "LB_SERVICE_COUNTED",
    "stateless": "LB_SERVICE_STATELESS",
}

_WISHES = {"reset": "LB_WISH_RESET", "watched": "LB_WISH_WATCH"}


class Found(NamedTuple):
    """What a generation's tables say."""

    services: dict[ServiceKey, Traits]
    rings: dict[ServiceKey, int]
    local_addresses: frozenset[Address]
    macs: frozenset[bytes]


def _constant(name: str) -> int:
    return layout().constants[name]


def _kind(mode: Mode) -> int:
    return _constant(f"LB_KIND_{mode.name}")


def protocol_of(number: int) -> Protocol:
    """Return the protocol with an IANA number."""
    return next(protocol for protocol in Protocol if protocol.number == number)


def structure_endpoints(
    structure: Structure, indices: Mapping[BackendId, int], rings: Mapping[ServiceKey, int]
) -> list[Endpoint]:
    """Return the endpoints of a structure. ``rings`` gives each service's index in the ring map."""
    nat = _nat_backends(structure)
    found = _services(structure, rings)
    found += _backends(nat, indices)
    found += _addresses(structure, nat)
    kind = _constant("LB_KIND_MAC")
    found += [
        Endpoint(4, int.from_bytes(mac[:4]), int.from_bytes(mac[4:]), 0, kind, is_mac=1)
        for mac in sorted(structure.macs)
    ]
    return found


def _services(structure: Structure, rings: Mapping[ServiceKey, int]) -> list[Endpoint]:
    said = {traits: _said(traits) for traits in set(structure.services.values())}
    return [
        Endpoint(*key, _kind(traits.mode), rings[key], **said[traits])
        for key, traits in structure.services.items()
    ]


def _said(traits: Traits) -> dict[str, int]:
    """Return what an endpoint says of its service beside mode and ring."""
    return {
        "flags": sum(_constant(flag) for name, flag in _FLAGS.items() if getattr(traits, name)),
        "schedule": traits.schedule.value,
        "wishes": sum(_constant(wish) for name, wish in _WISHES.items() if getattr(traits, name)),
    }


def _nat_backends(structure: Structure) -> list[BackendId]:
    nat = {key for key, traits in structure.services.items() if traits.mode is Mode.NAT}
    return [identity for identity in structure.backends if identity.service in nat]


def _backends(nat: Iterable[BackendId], indices: Mapping[BackendId, int]) -> list[Endpoint]:
    """One for each nat backend's own address; of a shared one the lowest index speaks for all."""
    lowest: dict[tuple[int, int, int, int], int] = {}
    for identity in nat:
        place = (*identity.backend, identity.service[-1])
        index = indices[identity]
        if index < lowest.get(place, INDICES):
            lowest[place] = index
    kind = _constant("LB_KIND_BACKEND")
    return [Endpoint(*place, kind, index) for place, index in lowest.items()]


def _addresses(structure: Structure, nat: Iterable[BackendId]) -> list[Endpoint]:
    groups: tuple[tuple[str, Iterable[tuple[int, int]]], ...] = (
        ("LB_ADDRESS_VIP", (key[:2] for key in structure.services)),
        ("LB_ADDRESS_LOCAL", map(_place, structure.local_addresses)),
        ("LB_ADDRESS_SNAT", map(_place, structure.snat_addresses)),
        ("LB_ADDRESS_BACKEND", (identity.backend[:2] for identity in nat)),
    )
    bits: dict[tuple[int, int], int] = {}
    for name, places in groups:
        bit = _constant(name)
        for place in set(places):
            bits[place] = bits.get(place, 0) | bit
    kind = _constant("LB_KIND_ADDRESS")
    return [Endpoint(*place, 0, 0, kind, value) for place, value in bits.items()]


def _place(address: Address) -> tuple[int, int]:
    """Return an address as the keys of services and backends hold it."""
    return address.version, int(address)


def read_endpoints(endpoints: Iterable[Endpoint]) -> Found:
    """Return what a generation's endpoints say of services and addresses."""
    modes = {_kind(mode): mode for mode in Mode}
    address, bit = _constant("LB_KIND_ADDRESS"), _constant("LB_ADDRESS_LOCAL")
    found = Found({}, {}, frozenset(), frozenset())
    local, macs = set(), set()
    for endpoint in endpoints:
        if endpoint.is_mac:
            macs.add(mac_of(endpoint))
        elif endpoint.kind in modes:
            key = ServiceKey(_address(endpoint), endpoint.port, protocol_of(endpoint.protocol))
            found.services[key] = _traits(endpoint, modes[endpoint.kind])
            found.rings[key] = endpoint.index
        elif endpoint.kind == address and endpoint.index & bit:
            local.add(_address(endpoint))
    return found._replace(local_addresses=frozenset(local), macs=frozenset(macs))


def _address(endpoint: Endpoint) -> Address:
    return (IPv6Address if endpoint.family == 6 else IPv4Address)(endpoint.address)  # noqa: PLR2004 - the IP version


def _traits(endpoint: Endpoint, mode: Mode) -> Traits:
    flags = {name: bool(endpoint.flags & _constant(flag)) for name, flag in _FLAGS.items()}
    flags |= {name: bool(endpoint.wishes & _constant(wish)) for name, wish in _WISHES.items()}
    return Traits(mode=mode, schedule=Schedule(endpoint.schedule), **flags)
