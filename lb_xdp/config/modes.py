"""What a service asks of its mode, its algorithm and its addresses, and cannot have.

Each refusal says why and what instead. It works on a draft, like ``check``, and refuses to judge
what has nothing to do with how packets are carried or flows are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lb_xdp.config.draft import Draft, DraftBackend, DraftPool, DraftService
from lb_xdp.config.tree import Finding, Loc, Places
from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    Affinity,
    Mode,
    OnBackendDown,
    Protocol,
    Via,
)

_KEEPS_PORTS = {
    Mode.DSR: "dsr rewrites no ports, the server answers the client itself",
    Mode.IPIP: "ipip carries the client's packet unchanged, the server answers the client itself",
    Mode.GUE: "gue carries the client's packet unchanged, the server answers the client itself",
}
_KEEPS_FAMILY = {
    Mode.DSR: "dsr sends the client's packet on unchanged",
    Mode.NAT: "nat rewrites addresses within one family",
    Mode.FULLNAT: "fullnat rewrites addresses within one family",
}


def find_misfits(draft: Draft, places: Places) -> Iterator[Finding]:
    """Yield what a mode, an algorithm or ``port: any`` does not allow."""
    users = defaultdict[Loc, list[DraftService]](list)
    for service in draft.services:
        if service.pool is not None:
            users[service.pool.at].append(service)
    for pool in draft.all_pools:
        yield from _backend_ports(pool, users[pool.at], places)
    for service in draft.services:
        yield from _translation(service, places)
        yield from _family(service, places)
        yield from _fullnat(service, draft)
        yield from _any_port_health(service, places)
        yield from _way_of_probes(service, places)
        yield from _names_of_any_port(service, places)
        yield from _unrecorded(service)
        yield from _reset(service)
    yield from _ambiguous(draft, places)


def _pool_backends(service: DraftService) -> tuple[DraftBackend, ...]:
    return service.pool.backends if service.pool else ()


def _backend_ports(pool: DraftPool, users: list[DraftService], places: Places) -> Iterator[Finding]:
    """Find ports that are missing, and ports that ``port: any`` leaves no use for."""
    wide = next((user for user in users if user.port == ANY_PORT), None)
    narrow = next((user for user in users if user.port not in (None, ANY_PORT)), None)
    own_pool = "; give that service a pool of its own" if wide and narrow else ""
    for backend in pool.backends:
        if backend.port == ANY_PORT and (narrow or not users):
            message = f"the key `port` is missing: the server's port{own_pool}"
            yield Finding(pool.at_backend(backend, "port"), message)
        elif backend.port not in (None, ANY_PORT) and wide:
            message = (
                f"the service on line {places.line(wide.at)} has `port: any`, so packets keep the "
                f"port that the client chose; leave this one out{own_pool}"
            )
            yield Finding(pool.at_backend(backend, "port"), message, on_key=True)


def _translation(service: DraftService, places: Places) -> Iterator[Finding]:
    pool = service.pool
    if pool is None or service.mode not in _KEEPS_PORTS or service.port in (None, ANY_PORT):
        return
    for backend in pool.backends:
        if backend.port not in (service.port, ANY_PORT, None):
            message = (
                f"{backend.port} is not {service.port}, the port of the service on line "
                f"{places.line(service.at)}: {_KEEPS_PORTS[service.mode]}; use port {service.port} "
                "here, or `mode: nat` there"
            )
            yield Finding(pool.at_backend(backend, "port"), message)


def _family(service: DraftService, places: Places) -> Iterator[Finding]:
    pool = service.pool
    if pool is None or service.mode not in _KEEPS_FAMILY or service.vip is None:
        return
    for backend in pool.backends:
        if backend.address is not None and backend.address.version != service.vip.version:
            message = (
                f"{backend.address} is not of the family of {service.vip}, the VIP of the service "
                f"on line {places.line(service.at)}: {_KEEPS_FAMILY[service.mode]}; give the "
                f"server's IPv{service.vip.version} address, or use `mode: ipip` or `mode: gue` "
                "there, which carry either family in the other"
            )
            yield Finding(pool.at_backend(backend, "host"), message)


def _fullnat(service: DraftService, draft: Draft) -> Iterator[Finding]:
    if service.mode is not Mode.FULLNAT:
        return
    if service.port == ANY_PORT:
        message = (
            "`any` does not go with `mode: fullnat`: the ports are the gateway's to allocate; "
            "give one port, or use `mode: nat`"
        )
        yield Finding((*service.at, "port"), message)
    family = service.vip.version if service.vip else None
    known = {source.version for _, source in draft.sources}
    if family and draft.sources_readable and family not in known:
        message = (
            f"fullnat needs an address to send from: give an IPv{family} address of this gateway "
            "in gateway.snat_addresses, or use `mode: nat`"
        )
        yield Finding((*service.at, "mode"), message)


def _any_port_health(service: DraftService, places: Places) -> Iterator[Finding]:
    """Find probes that have no port to go to."""
    pool = service.pool
    if service.port != ANY_PORT or pool is None:
        return
    health = pool.health
    if health is None and pool.health_given:  # `health: none`, or no health check at all
        return
    if health and (health.kind is None or not health.kind.needs_port or "port" in health.given):
        return
    message = (
        f"the service on line {places.line(service.at)} has `port: any`, so probes need a `port:` "
        "of their own; or use `health: none`"
    )
    yield Finding(health.at if health else pool.at, message)


def _way_of_probes(service: DraftService, places: Places) -> Iterator[Finding]:
    """Find probes through the datapath in a mode that leads to the backend's own address."""
    health = service.pool.health if service.pool else None
    if health and health.via is Via.DATAPATH and service.mode and service.mode.translates:
        message = (
            f"`datapath` does not go with `mode: {service.mode}` of the service on line "
            f"{places.line(service.at)}: there clients' packets arrive at the server's own "
            "address, which `via: direct` asks already; leave this out, or give that service a "
            "pool of its own"
        )
        yield Finding((*health.at, "via"), message)


def _names_of_any_port(service: DraftService, places: Places) -> Iterator[Finding]:
    """Find names where nobody could say beforehand whose a reply is."""
    pool = service.pool
    if pool is None or service.port != ANY_PORT or service.mode is not Mode.NAT:
        return
    for backend in pool.backends:
        if backend.host:
            message = (
                f"a host name does not go with `mode: nat` and `port: any` of the service on line "
                f"{places.line(service.at)}: replies are known by the server's address alone, and "
                "another service could come to have the same; give the address"
            )
            yield Finding(pool.at_backend(backend, "host"), message)


def _unrecorded(service: DraftService) -> Iterator[Finding]:
    """Find ``flows: none`` where flows must be recorded."""
    if service.flows is not False:
        return
    need, remedy = _need_of_records(service)
    if need:
        message = f"`none` does not go with {need}; leave it out, or {remedy}"
        yield Finding((*service.at, "session", "flows"), message)


def _reset(service: DraftService) -> Iterator[Finding]:
    """Find ``on_backend_down: reset`` where no RST could be sent, or to nobody."""
    if service.on_backend_down is not OnBackendDown.RESET:
        return
    why = ""
    if service.protocol is Protocol.UDP:
        why = "`protocol: udp`, which has no RST"
    elif service.flows is False:
        why = "`flows: none`: without records nobody knows which connections were that backend's"
    if why:
        message = f"`reset` does not go with {why}; leave it out"
        yield Finding((*service.at, "on_backend_down"), message)


def _need_of_records(service: DraftService) -> tuple[str, str]:
    """Return what needs every flow recorded, and how to do without; empty where nothing does."""
    limited = next((b for b in _pool_backends(service) if b.limited), None)
    if service.mode is Mode.FULLNAT:
        return "`mode: fullnat`, which finds the way back in the record", "use `mode: nat`"
    if service.algorithm is not None and not service.algorithm.hashes:
        needs = f"`algorithm: {service.algorithm}`, which needs to know every flow"
        return needs, "use maglev or source_hash"
    if service.affinity not in (None, Affinity.NONE):
        needs = f"`affinity: {service.affinity}`, which needs to know every flow"
        return needs, "use `algorithm: source_hash`"
    if limited is not None:
        needs = f"max_connections of {limited.name or 'a backend'}, which needs to count every flow"
        return needs, "take the limit away"
    return "", ""


def _ambiguous(draft: Draft, places: Places) -> Iterator[Finding]:
    """Find ``port: any`` in nat where a reply could belong to several VIPs or ports.

    A reply is known by the backend's address, port and protocol, and nothing else.
    """
    translated = [s for s in draft.services if s.mode is Mode.NAT]
    if all(service.port != ANY_PORT for service in translated):
        return  # as with most files
    users = defaultdict[tuple[Address, Protocol], list[tuple[DraftService, DraftBackend]]](list)
    for service in translated:
        if service.protocol:
            for backend in _pool_backends(service):
                if backend.address is not None:
                    users[backend.address, service.protocol].append((service, backend))
    told = set[Loc]()
    for (address, _), entries in users.items():
        for index, (wide, _) in enumerate(entries):
            rival = _rival(entries, index) if wide.port == ANY_PORT else None
            if rival is not None and wide.at not in told:
                told.add(wide.at)
                message = (
                    f"a reply of {address} could as well belong to the service on line "
                    f"{places.line(rival.at)}, which has the same backend: nat knows replies by "
                    "the backend's address and port; use another address of the server, or `mode: "
                    "dsr`"
                )
                yield Finding((*wide.at, "port"), message)


def _rival(entries: list[tuple[DraftService, DraftBackend]], index: int) -> DraftService | None:
    """Return a service whose replies look like those of the one at ``index``, which has any port.

    Of two that have any port, the later one is told. A service of the same VIP that translates no
    port is no rival: its replies get the same source either way.
    """
    wide = entries[index][0]
    for position, (other, backend) in enumerate(entries):
        if other is wide or None in (other.port, backend.port):
            continue
        if other.port == ANY_PORT:
            if position < index and other.vip != wide.vip:
                return other
        elif (other.vip, other.port) != (wide.vip, backend.port):
            return other
    return None
