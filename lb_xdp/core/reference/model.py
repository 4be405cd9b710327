"""The packet's journey by the book: DESIGN.md, section 4, for one packet at a time.

Owns the order of the questions. Who stands where is ``standing``'s, what headers say ``packet``'s,
how a packet looks afterwards ``rewrite``'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lb_xdp.core.desired import BackendId, BackendRecord, Schedule, Structure, Traits
from lb_xdp.core.flow_hash import flow_hash, flow_hash6, ring_slot
from lb_xdp.core.model import ANY_PORT, IPV4, Address, Mode, ServiceKey
from lb_xdp.core.reference import rewrite
from lb_xdp.core.reference.outcome import Outcome, UndecidedError, answered, dropped, passed
from lb_xdp.core.reference.packet import (
    FAMILIES,
    ICMP,
    ICMP_BYTES,
    ICMPV6,
    IPV4_BYTES,
    IPV6_BYTES,
    TCP,
    Envelope,
    Inside,
    Part,
    UnclearError,
    lengths_hold,
    look_inside,
    number,
    open_envelope,
    payload_of,
)
from lb_xdp.core.reference.standing import Standing, is_error, is_martian, place_of
from lb_xdp.core.settle import (
    INDEX_BITS,
    MARKED,
    NO_BACKEND,
    SETTLED,
    SEVERED,
    STATE_SHIFT,
    RingImage,
)
from lb_xdp.core.snapshot import Verdict

_INDEX = (1 << INDEX_BITS) - 1
_ECHO = {IPV4: (ICMP, 8, 0), 6: (ICMPV6, 128, 129)}
"""Protocol, type of the request, type of the reply (RFC 792; RFC 4443, 4)."""

_FIRST_SNAT_PORT = 1024
_RST = 4
_ACK, _SYN = 16, 2


class Model:
    """What a gateway does, given what its maps were made from.

    ``interfaces`` are the indices of those that packets may leave by. ``blank`` promises that no
    flow has been recorded yet and that no packet of the same flow came before; without it, whatever
    depends on records is unknown.
    """

    def __init__(
        self,
        structure: Structure,
        indices: Mapping[BackendId, int],
        records: Mapping[BackendId, BackendRecord],
        rings: Mapping[ServiceKey, RingImage],
        interfaces: Collection[int],
        *,
        blank: bool = False,
    ) -> None:
        self._structure = structure
        self._records = records
        self._rings = rings
        self._interfaces = interfaces
        self._blank = blank
        self._by_index = {index: identity for identity, index in indices.items()}
        self._standing = Standing(structure)
        self._holders: dict[ServiceKey, tuple[BackendId, ...]] = {}

    def journey(self, frame: bytes, ingress: int, choice: BackendId | None = None) -> Outcome:
        """Return what becomes of a frame that comes in by an interface (its index).

        ``choice`` is the backend to suppose where turn, load or history decide: one of those that
        an outcome names as ``among``.
        """
        try:
            ethertype, l3 = payload_of(frame)
            family = FAMILIES.get(ethertype)
            if family is None:
                return passed("not_ip", frame)
            if family not in self._standing.families:
                return self._foreign(frame, family, l3)
            envelope = open_envelope(frame, family, l3)
        except UnclearError as unclear:
            return passed(unclear.reason, frame)
        try:
            return self._open(envelope, ingress, choice)
        except UndecidedError as undecided:
            return Outcome(unknown=str(undecided), among=undecided.among)

    def _foreign(self, frame: bytes, family: int, l3: int) -> Outcome:
        """Judge a packet of an IP version without a VIP; there may be tunnels of that version."""
        try:
            to = open_envelope(frame, family, l3).destination
        except UnclearError:
            return passed("other_family", frame)
        if self._standing.in_tunnels(to):
            return Outcome(unknown="it may be an ICMP error about a tunnel")
        return passed("other_family", frame)

    def _open(self, envelope: Envelope, ingress: int, choice: BackendId | None) -> Outcome:
        to_vip = envelope.destination in self._standing.vips
        try:
            inside = look_inside(envelope)
        except UnclearError as unclear:
            return passed(unclear.reason if to_vip else "not_vip", envelope.frame)
        if inside.part is Part.LATER:
            return self._later_fragment(envelope)
        if inside.ports is None:
            return self._without_ports(envelope, inside, ingress)
        return self._dispatch(envelope, inside, inside.ports, ingress, choice)

    def _later_fragment(self, envelope: Envelope) -> Outcome:
        ends = {envelope.source, envelope.destination}
        if envelope.destination not in self._standing.vips:
            if ends.isdisjoint(self._standing.backends | self._standing.snats):
                return passed("not_vip", envelope.frame)
        elif self._blank:
            if not self._standing.is_for_us(envelope.frame):
                return passed("other_host", envelope.frame)
            return dropped("fragment_lost")
        raise UndecidedError("a later fragment goes where its first one went")

    def _without_ports(self, envelope: Envelope, inside: Inside, ingress: int) -> Outcome:
        """Judge what is neither TCP nor UDP: of interest are echo requests and ICMP errors."""
        frame = envelope.frame
        protocol, request, reply = _ECHO[envelope.family]
        is_icmp = inside.protocol == protocol
        cut = is_icmp and len(frame) < inside.l4 + ICMP_BYTES
        if is_icmp and not cut and is_error(frame, inside.l4, envelope.family):
            self._refuse_to_guess_about(envelope)
        if envelope.destination not in self._standing.vips:
            return passed("not_vip", frame)
        if cut:
            return passed("truncated", frame)
        if not is_icmp or inside.part is not Part.WHOLE or _has_extras(envelope, inside):
            return passed("protocol", frame)
        if number(frame, inside.l4, 1) != request:
            return passed("protocol", frame)
        return self._refused_echo(envelope, inside) or answered(
            "echo", ingress, rewrite.echo_reply(envelope, inside, reply)
        )

    def _refused_echo(self, envelope: Envelope, inside: Inside) -> Outcome | None:
        end = envelope.l3 + envelope.l3_bytes
        if not self._standing.is_for_us(envelope.frame):
            return passed("other_host", envelope.frame)
        if end > len(envelope.frame) or end < inside.l4 + ICMP_BYTES:
            return passed("truncated", envelope.frame)
        if is_martian(envelope.source, envelope.destination):
            return dropped("martian")
        return None

    def _refuse_to_guess_about(self, envelope: Envelope) -> None:
        """Leave an ICMP error alone that may quote a flow: to a VIP, a tunnel, or about nat's."""
        standing, to = self._standing, envelope.destination
        if standing.backends or to in standing.vips or standing.in_tunnels(to):
            raise UndecidedError("an ICMP error goes to the flow that it quotes")

    def _dispatch(
        self,
        envelope: Envelope,
        inside: Inside,
        ports: tuple[int, int],
        ingress: int,
        choice: BackendId | None,
    ) -> Outcome:
        standing = self._standing
        source = place_of(envelope.source, ports[0], inside.protocol)
        destination = place_of(envelope.destination, ports[1], inside.protocol)
        service = standing.service_at(destination)
        if service is not None:
            return self._request(envelope, inside, service, ingress, choice)
        if standing.is_endpoint(destination):
            return passed("direct", envelope.frame)
        if envelope.destination in standing.snats:
            if self._blank:
                return passed("no_flow", envelope.frame)
            raise UndecidedError("a reply to fullnat's address is its flow's")
        if standing.is_endpoint(source):
            return self._reply(envelope, inside)
        to_vip = envelope.destination in standing.vips
        return passed("no_service" if to_vip else "not_vip", envelope.frame)

    def _reply(self, envelope: Envelope, inside: Inside) -> Outcome:
        """Judge a nat backend's packet as far as the kernel's routes have no say in it."""
        if envelope.destination in self._standing.locals:
            return passed("to_gateway", envelope.frame)
        if not self._standing.is_for_us(envelope.frame):
            return passed("other_host", envelope.frame)
        if not lengths_hold(envelope, inside):
            return dropped("bad_length")
        if envelope.hops <= 1:
            return passed("ttl_expired", envelope.frame)
        raise UndecidedError("a reply goes by the kernel's routes")

    def _request(
        self,
        envelope: Envelope,
        inside: Inside,
        service: ServiceKey,
        ingress: int,
        choice: BackendId | None,
    ) -> Outcome:
        has = self._structure.services[service]
        refused = self._refused_request(envelope, inside, has)
        if refused is not None:
            return refused
        hashed = self._hash(envelope, inside, has)
        try:
            backend = self._pick(envelope, inside, service, hashed, choice)
        except _SeveredError:
            return self._reset(envelope, inside, ingress)
        if backend is None:
            return self._nobody(envelope, inside, has, ingress)
        record = self._records[backend]
        if envelope.l3_bytes > record.mtu:
            return answered("too_big", ingress)
        if record.ifindex != ingress and record.ifindex not in self._interfaces:
            return dropped("no_egress")
        frame = self._rewritten(envelope, inside, backend, hashed)
        frame = rewrite.with_macs(frame, record.mac, record.source_mac)
        return Outcome(Verdict.FORWARD, "forwarded", frame, backend, record.ifindex)

    def _refused_request(self, envelope: Envelope, inside: Inside, has: Traits) -> Outcome | None:
        if not self._standing.is_for_us(envelope.frame):
            return passed("other_host", envelope.frame)
        if not lengths_hold(envelope, inside):
            return dropped("bad_length")
        if has.mode.routes and envelope.hops <= 1:
            return passed("ttl_expired", envelope.frame)
        if is_martian(envelope.source, envelope.destination):
            return dropped("martian")
        return None

    @staticmethod
    def _hash(envelope: Envelope, inside: Inside, has: Traits) -> int:
        hash_of = flow_hash if envelope.family == IPV4 else flow_hash6
        if has.by_source:
            return hash_of(int(envelope.source), 0, 0, 0, 0)
        ports = inside.ports or (0, 0)
        ends = (int(envelope.source), int(envelope.destination))
        return hash_of(*ends, *ports, inside.protocol)

    def _pick(
        self,
        envelope: Envelope,
        inside: Inside,
        service: ServiceKey,
        hashed: int,
        choice: BackendId | None,
    ) -> BackendId | None:
        """Return the flow's backend, None where there is none.

        Raises UndecidedError, and _SeveredError where the flow is to be reset.
        """
        has = self._structure.services[service]
        ring = self._rings[service]
        packed = ring.slot(ring_slot(hashed, ring.size))
        now, former = packed & _INDEX, packed >> INDEX_BITS & _INDEX
        state = packed >> STATE_SHIFT
        if not self._blank and (has.tracked or state != SETTLED):
            raise UndecidedError("a record may stand")
        midway = inside.protocol == TCP and not _is_syn(envelope, inside)
        if midway and has.mode is Mode.FULLNAT:
            raise _SeveredError  # its record knew what its backend takes it for
        if state not in {SETTLED, MARKED} and not _is_syn(envelope, inside):
            old = self._by_index.get(former)
            if old is not None and self._records[old].up:
                return old
            if state == SEVERED and has.reset and midway:
                raise _SeveredError
        if has.tracked:
            return self._pick_tracked(service, now, choice, midway=midway)
        return self._by_index[now] if now != NO_BACKEND else None

    def _pick_tracked(
        self,
        service: ServiceKey,
        now: int,
        choice: BackendId | None,
        *,
        midway: bool,
    ) -> BackendId | None:
        """Pick where every flow is recorded; ``midway``: a TCP packet that opens no flow."""
        has = self._structure.services[service]
        if now == NO_BACKEND:
            return None
        if midway or (has.schedule is Schedule.HASH and not (has.client or has.limited)):
            return self._by_index[now]
        if choice is None:
            why = "it is the backends' turn, load or history that decides"
            raise UndecidedError(why, self._on_ring(service))
        return choice

    def _on_ring(self, service: ServiceKey) -> tuple[BackendId, ...]:
        """Return the backends that hold slots; remembered, since a ring is long."""
        if service not in self._holders:
            indices = set((self._rings[service].slots & _INDEX).tolist()) - {NO_BACKEND}
            self._holders[service] = tuple(self._by_index[index] for index in sorted(indices))
        return self._holders[service]

    @staticmethod
    def _nobody(envelope: Envelope, inside: Inside, has: Traits, ingress: int) -> Outcome:
        """Judge a packet that nobody takes: RST or unreachable, where the service says so."""
        if not has.reject or (inside.protocol == TCP and not _takes_reset(envelope, inside)):
            return dropped("no_backend")
        return answered("refused", ingress)

    @staticmethod
    def _reset(envelope: Envelope, inside: Inside, ingress: int) -> Outcome:
        """Judge a packet of a flow that is to be reset."""
        if not _takes_reset(envelope, inside):
            return dropped("severed")
        return answered("reset", ingress)

    def _rewritten(
        self, envelope: Envelope, inside: Inside, backend: BackendId, hashed: int
    ) -> bytes:
        mode = self._structure.services[backend.service].mode
        address, port = backend.backend.address, backend.backend.port
        if mode is Mode.DSR:
            return envelope.frame
        if mode.tunnel:
            return rewrite.wrapped(envelope, self._tunnel(mode, address), hashed)
        ports = inside.ports or (0, 0)
        destination = (address, ports[1] if port == ANY_PORT else port)
        source = self._snat(envelope, ports[0], hashed) if mode is Mode.FULLNAT else None
        return rewrite.translated(envelope, inside, source, destination)

    def _tunnel(self, mode: Mode, address: Address) -> rewrite.Tunnel:
        sources = self._structure.tunnel_sources
        source = sources.ipv4 if address.version == IPV4 else sources.ipv6
        port = self._structure.gue_port if mode is Mode.GUE else None
        return rewrite.Tunnel(source, address, port)

    def _snat(self, envelope: Envelope, port: int, hashed: int) -> tuple[Address, int]:
        """Return what stands for the client: an address by the hash, and its own port if free."""
        if port < _FIRST_SNAT_PORT:
            raise UndecidedError("a client's port below 1024 is replaced by one at will")
        mine = sorted(a for a in self._structure.snat_addresses if a.version == envelope.family)
        return mine[hashed * len(mine) >> 32], port


class _SeveredError(Exception):
    """The flow's backend is down, or unknown to fullnat, and the flow is to be reset."""


def _takes_reset(envelope: Envelope, inside: Inside) -> bool:
    """Say whether a TCP segment can be answered by a RST (RFC 9293, 3.5.2)."""
    is_reset = _flags(envelope, inside) & _RST
    return not (is_reset or inside.part is not Part.WHOLE or _has_extras(envelope, inside))


def _has_extras(envelope: Envelope, inside: Inside) -> bool:
    """Say whether options or extension headers stand before the transport's.

    A reply to an echo request has to mirror some of them (RFC 1122, 3.2.2.6): the kernel's work.
    """
    plain = IPV4_BYTES if envelope.family == IPV4 else IPV6_BYTES
    return inside.l4 != envelope.l3 + plain


def _flags(envelope: Envelope, inside: Inside) -> int:
    return number(envelope.frame, inside.l4 + 13, 1) if inside.protocol == TCP else 0


def _is_syn(envelope: Envelope, inside: Inside) -> bool:
    return _flags(envelope, inside) & (_SYN | _ACK) == _SYN
