"""A structure as endpoints, and back: what the endpoint tables say of services and addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, Schedule, Structure, Traits
from lb_xdp.core.model import Address, Mode, Protocol, ServiceKey
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
    found = [_service(key, traits, rings[key]) for key, traits in structure.services.items()]
    found += _backends(structure, indices)
    found += _addresses(structure)
    kind = _constant("LB_KIND_MAC")
    found += [
        Endpoint(4, int.from_bytes(mac[:4]), int.from_bytes(mac[4:]), 0, kind, is_mac=1)
        for mac in sorted(structure.macs)
    ]
    return found


def _service(key: ServiceKey, traits: Traits, ring: int) -> Endpoint:
    flags = sum(_constant(flag) for name, flag in _FLAGS.items() if getattr(traits, name))
    return Endpoint(
        key.vip.version,
        int(key.vip),
        key.port,
        key.protocol.number,
        _kind(traits.mode),
        ring,
        flags=flags,
        schedule=traits.schedule.value,
        wishes=sum(_constant(wish) for name, wish in _WISHES.items() if getattr(traits, name)),
    )


def _nat_backends(structure: Structure) -> Iterable[BackendId]:
    return (i for i in structure.backends if structure.services[i.service].mode is Mode.NAT)


def _backends(structure: Structure, indices: Mapping[BackendId, int]) -> list[Endpoint]:
    """One for each nat backend's own address; of a shared one the lowest index speaks for all."""
    lowest: dict[tuple[int, int, int, int], int] = {}
    for identity in _nat_backends(structure):
        place = (*identity.backend, identity.service.protocol.number)
        index = indices[identity]
        lowest[place] = min(index, lowest.get(place, index))
    kind = _constant("LB_KIND_BACKEND")
    return [Endpoint(*place, kind, index) for place, index in sorted(lowest.items())]


def _addresses(structure: Structure) -> list[Endpoint]:
    groups: tuple[tuple[str, Iterable[Address]], ...] = (
        ("LB_ADDRESS_VIP", (key.vip for key in structure.services)),
        ("LB_ADDRESS_LOCAL", structure.local_addresses),
        ("LB_ADDRESS_SNAT", structure.snat_addresses),
        ("LB_ADDRESS_BACKEND", (i.backend.address for i in _nat_backends(structure))),
    )
    bits: dict[tuple[int, int], int] = {}
    for name, members in groups:
        for address in members:
            place = (address.version, int(address))
            bits[place] = bits.get(place, 0) | _constant(name)
    kind = _constant("LB_KIND_ADDRESS")
    return [Endpoint(*place, 0, 0, kind, value) for place, value in sorted(bits.items())]


def read_endpoints(endpoints: Iterable[Endpoint]) -> Found:
    """Return what a generation's endpoints say of services and addresses."""
    modes = {_kind(mode): mode for mode in Mode}
    found = Found({}, {}, frozenset(), frozenset())
    local, macs = set(), set()
    for endpoint in endpoints:
        if endpoint.is_mac:
            macs.add(mac_of(endpoint))
        elif endpoint.kind in modes:
            key = ServiceKey(_address(endpoint), endpoint.port, protocol_of(endpoint.protocol))
            found.services[key] = _traits(endpoint, modes[endpoint.kind])
            found.rings[key] = endpoint.index
        elif _is_local(endpoint):
            local.add(_address(endpoint))
    return found._replace(local_addresses=frozenset(local), macs=frozenset(macs))


def _is_local(endpoint: Endpoint) -> bool:
    is_address = endpoint.kind == _constant("LB_KIND_ADDRESS")
    return is_address and bool(endpoint.index & _constant("LB_ADDRESS_LOCAL"))


def _address(endpoint: Endpoint) -> Address:
    return (IPv6Address if endpoint.family == 6 else IPv4Address)(endpoint.address)  # noqa: PLR2004 - the IP version


def _traits(endpoint: Endpoint, mode: Mode) -> Traits:
    flags = {name: bool(endpoint.flags & _constant(flag)) for name, flag in _FLAGS.items()}
    flags |= {name: bool(endpoint.wishes & _constant(wish)) for name, wish in _WISHES.items()}
    return Traits(mode=mode, schedule=Schedule(endpoint.schedule), **flags)
