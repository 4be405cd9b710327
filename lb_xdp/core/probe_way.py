"""How probes through the datapath are carried: what the program does to a client's packet.

A probe with ``via: datapath`` is a packet to the VIP that must reach one backend, and no other. The
program cannot be asked to do that, so the packet is written here, by the reference model that every
generation of the program is tried against (``lb_xdp.core.reference``): the octets are the same.

Owns which backend is reached how, and the frame. Refuses to send it (``lb_xdp.via`` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.endpoint import format_endpoint
from lb_xdp.core.flow_hash import flow_hash, flow_hash6
from lb_xdp.core.model import (
    IPV4,
    IPV6,
    Address,
    Config,
    Gateway,
    Mode,
    Service,
    Via,
)
from lb_xdp.core.reference.packet import (
    ETHERNET_BYTES,
    Envelope,
    UnclearError,
    look_inside,
    open_envelope,
)
from lb_xdp.core.reference.rewrite import Tunnel, with_macs, wrapped
from lb_xdp.core.targets import TargetId, target_of
from lb_xdp.core.topology import Topology
from lb_xdp.core.ways import way_to

_ETHERTYPES: Final = {IPV4: b"\x08\x00", IPV6: b"\x86\xdd"}
_NO_MACS: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class ProbeWay:
    """How packets for a VIP get to one backend. ``ifindex`` 0: no way is known at present.

    ``tunnel`` is None with dsr. ``mac`` and ``source_mac`` are 6 bytes each in wire order.
    """

    vip: Address
    backend: Address
    mode: Mode
    ifindex: int
    mac: bytes
    source_mac: bytes
    tunnel: Tunnel | None

    @property
    def hops(self) -> int:
        """Return the TTL or hop limit that a probe starts with, so that it arrives with 1.

        A server that has the VIP takes that. One that has not, and routes, would send the probe
        back to the gateway as if it were a client's, and any backend could answer: with 1 the
        probe ends there.
        """
        return 2 if self.mode.routes else 1


def probe_ways(
    config: Config, topology: Topology, held: Mapping[BackendId, BackendRecord]
) -> dict[TargetId, ProbeWay]:
    """Return the way to every backend that is probed through the datapath."""
    through = (service for service in config.services if service.pool.health.via is Via.DATAPATH)
    return {
        target_of(service, backend): _way(config, service, backend.address, topology, held.get(
            BackendId(service.key, backend.key)))
        for service in through
        for backend in service.pool.backends
    }  # fmt: skip


def _way(
    config: Config,
    service: Service,
    address: Address,
    topology: Topology,
    held: BackendRecord | None,
) -> ProbeWay:
    way = way_to(config, service.mode, address, topology, held)
    tunnel = _tunnel(config.gateway, service.mode, address) if service.mode.tunnel else None
    return ProbeWay(
        service.vip, address, service.mode, way.ifindex, way.mac, way.source_mac, tunnel
    )


def _tunnel(gateway: Gateway, mode: Mode, address: Address) -> Tunnel:
    sources = gateway.tunnel_sources
    source = sources.ipv6 if address.version == IPV6 else sources.ipv4
    return Tunnel(source, address, gateway.gue_port if mode is Mode.GUE else None)


def sender_of(packet: bytes) -> tuple[int, int, int] | None:
    """Return version, protocol number and source port of an IP packet; None if it has no ports."""
    family = packet[0] >> 4 if packet else 0
    if family not in _ETHERTYPES:
        return None
    try:
        inside = look_inside(_enveloped(packet, family))
    except UnclearError:
        return None
    return (family, inside.protocol, inside.ports[0]) if inside.ports else None


def frame_of(packet: bytes, way: ProbeWay) -> bytes:
    """Return the frame that carries an IP packet with ports, a probe's, to a backend."""
    family = packet[0] >> 4
    envelope = _enveloped(packet, family)
    frame = envelope.frame
    if way.tunnel is not None:
        frame = wrapped(envelope, way.tunnel, _hash(envelope))
    return with_macs(frame, way.mac, way.source_mac)


def _enveloped(packet: bytes, family: int) -> Envelope:
    return open_envelope(_NO_MACS + _ETHERTYPES[family] + packet, family, ETHERNET_BYTES)


def _hash(envelope: Envelope) -> int:
    inside = look_inside(envelope)
    ports = inside.ports or (0, 0)
    hashed = flow_hash6 if envelope.family == IPV6 else flow_hash
    return hashed(int(envelope.source), int(envelope.destination), *ports, inside.protocol)


def explain(way: ProbeWay, port: int, detail: str) -> str:
    """Return what a failed probe found, with where to look for the reason."""
    place = format_endpoint(way.vip, port)
    if way.ifindex == 0:
        return f"{detail}; no way to {way.backend} is known by {way.mode}"
    needs = f"has {way.vip} on lo"
    if way.mode.tunnel:
        needs = f"undoes {way.mode} and {needs}"
    return f"{detail}, asked as {place} by {way.mode}: see whether {way.backend} {needs}"
