"""Takes probes out of the device and brings each to the backend that it is for.

A probe's socket is an ordinary one: it is connected to the VIP, and bound to an address of this
host, to which the backend answers straight, past us. Its source port says which backend it is for.
What comes out of the device with another port is nobody's, and dropped.

A probe of which nothing came out says nothing about its backend: somebody took our rules or the
device away, or the VIP has become an address of this host. It decides nothing, and what can be put
back is.

Owns the sockets' marks and ports, and the sending of frames. How a frame looks is
``core.probe_way``'s, what is asked and answered the probes'.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Final

from lb_xdp.core.model import IPV6, Address
from lb_xdp.core.probe_way import ProbeWay, explain, frame_of, sender_of
from lb_xdp.core.targets import TargetId
from lb_xdp.errors import HostError
from lb_xdp.via.device import Device

_log = logging.getLogger(__name__)

_SO_MARK: Final = 36  # asm-generic/socket.h; Python has no name for it
_PACKETS_A_TURN: Final = 64
_LONGEST_PACKET_BYTES: Final = 65535
_MEND_AGAIN_S: Final = 1.0
_WAITING_PACKETS: Final = 4  # while the way to a backend is not known yet
_PROTOCOLS: Final = {socket.SOCK_STREAM: 6, socket.SOCK_DGRAM: 17}

_Sender = tuple[int, int, int]
"""IP version, protocol number and source port of a probe."""


class Courier:
    """Carries the probes of all targets that have a way. ``close`` it."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._wire: socket.socket | None = None
        self._ways: Mapping[TargetId, ProbeWay] = {}
        self._local: frozenset[Address] = frozenset()
        self._senders: dict[_Sender, TargetId] = {}
        self._waiting: dict[TargetId, deque[bytes]] = {}
        self._complaint = ""
        self._vips: frozenset[Address] = frozenset()
        self._carried: set[TargetId] = set()
        self._mending: asyncio.Task[None] | None = None
        self._trouble = ""

    async def serve(self, vips: Collection[Address]) -> None:
        """Be ready to carry probes for these VIPs; without any, have no device. Raises HostError.

        An error leaves things as they were.
        """
        families = frozenset(vip.version for vip in vips)
        if not families:
            await self.close()
        elif self._device is None:
            await self._open(families)
        else:
            await self._device.lead(families)
        self._vips = frozenset(vips)

    async def _open(self, families: frozenset[int]) -> None:
        async with AsyncExitStack() as undo:
            device = await Device.open()
            undo.push_async_callback(device.close)
            await device.lead(families)
            self._wire = _open_wire()
            undo.pop_all()
        self._device = device
        asyncio.get_running_loop().add_reader(device.fd, self._carry, device)

    async def close(self) -> None:
        """Take the device and all that leads there away."""
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None
        device, self._device = self._device, None
        if device is None:
            return
        asyncio.get_running_loop().remove_reader(device.fd)
        if self._wire is not None:
            self._wire.close()
        self._senders.clear()
        self._waiting.clear()
        self._carried.clear()
        await device.close()

    def set_ways(self, ways: Mapping[TargetId, ProbeWay], local: frozenset[Address]) -> None:
        """Carry probes these ways from now on; ``local`` are the addresses of this host."""
        self._ways, self._local = ways, local
        self._carried &= ways.keys()
        self._senders = {s: target for s, target in self._senders.items() if target in ways}
        for target in list(self._waiting):
            way = ways.get(target)
            if way is None or way.ifindex:
                for packet in self._waiting.pop(target):
                    self._bring(target, packet)

    def notices(self) -> tuple[str, ...]:
        """Return a sentence for each VIP that cannot be asked now: this host would ask itself."""
        local = {way.vip for way in self._ways.values()} & self._local
        said = [
            f"{vip} is an address of this host by now: probes with `via: datapath` decide nothing "
            "until it is none"
            for vip in sorted(local, key=str)
        ]
        return (*said, self._trouble) if self._trouble else tuple(said)

    def can_tell(self, target: TargetId) -> bool:
        """Say whether the probe of ``target`` that just ended says anything about its backend."""
        if target.service is None:
            return True
        if target in self._carried:
            self._carried.discard(target)
            return True
        way = self._ways.get(target)
        if way is not None and way.vip not in self._local and self._mending is None:
            self._mending = asyncio.get_running_loop().create_task(self._mend())
        return False

    async def _mend(self) -> None:
        """Put back what leads probes here, or the device itself."""
        try:
            if self._device is None:
                await self.serve(self._vips)
            else:
                await self._device.lead_again()
            self._trouble = ""
            _log.warning("nothing came out of the device for probes: rules and routes put back")
        except HostError as error:
            self._trouble = f"probes with `via: datapath` decide nothing: {error}"
            _log.error("%s", self._trouble)
        await asyncio.sleep(_MEND_AGAIN_S)
        self._mending = None

    def dial(self, target: TargetId) -> CourierDial:
        """Return where sockets for the probes of ``target`` come from."""
        return CourierDial(self, target)

    def open(
        self, target: TargetId, family: socket.AddressFamily, kind: socket.SocketKind
    ) -> socket.socket:
        """Return a socket, of TCP or UDP, whose packets are brought to ``target``.

        Raises OSError.
        """
        device, way = self._device, self._ways.get(target)
        if device is None or way is None or way.vip in self._local:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        protocol = _PROTOCOLS.get(kind)
        if protocol is None:  # without a port nobody could tell whose it is
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_MARK, device.mark)
            if way.vip.version == IPV6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, way.hops)
            else:
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, way.hops)
            made.bind((_source_towards(way), 0))
        except OSError:
            made.close()
            raise
        sender = (way.vip.version, protocol, made.getsockname()[1])
        self._senders[sender] = target
        return made

    def explain(self, target: TargetId, port: int, detail: str) -> str:
        """Return what a failed probe found, with where to look for the reason."""
        way = self._ways.get(target)
        return detail if way is None else explain(way, port, detail)

    def _carry(self, device: Device) -> None:
        with suppress(BlockingIOError), self._losing(device):
            for _ in range(_PACKETS_A_TURN):
                packet = os.read(device.fd, _LONGEST_PACKET_BYTES)
                sender = sender_of(packet)
                target = self._senders.get(sender) if sender else None
                if target is not None:
                    self._bring(target, packet)

    @contextmanager
    def _losing(self, device: Device) -> Iterator[None]:
        """Let go of a device that somebody has removed."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            _log.error("%s is lost, another one will be made: %s", device.name, error)
            asyncio.get_running_loop().remove_reader(device.fd)
            self._device = None
            if self._wire is not None:
                self._wire.close()
            os.close(device.fd)

    def _bring(self, target: TargetId, packet: bytes) -> None:
        way = self._ways.get(target)
        if way is None or self._wire is None:
            return
        self._carried.add(target)
        if not way.ifindex:
            # As the kernel keeps a packet until the neighbour answers.
            waiting = self._waiting.setdefault(target, deque(maxlen=_WAITING_PACKETS))
            waiting.append(packet)
            return
        try:
            interface = socket.if_indextoname(way.ifindex)
            self._wire.sendto(frame_of(packet, way), (interface, 0))
        except OSError as error:
            # It is lost, as it may be on any wire: an interface that goes away, a full queue.
            if str(error) != self._complaint:
                _log.warning("probe to %s not sent error=%r", way.backend, str(error))
            self._complaint = str(error)


class CourierDial:
    """Opens the sockets of one target's probes."""

    def __init__(self, courier: Courier, target: TargetId) -> None:
        self._courier = courier
        self._target = target

    def open(
        self, family: socket.AddressFamily, kind: socket.SocketKind, _protocol: int
    ) -> socket.socket:
        """Return a non-blocking socket whose packets go through the datapath. Raises OSError."""
        return self._courier.open(self._target, family, kind)

    def explain(self, port: int, detail: str) -> str:
        """Return what a failed probe found, with where to look for the reason."""
        return self._courier.explain(self._target, port, detail)


def _open_wire() -> socket.socket:
    """Return a socket that sends frames. Raises HostError."""
    try:
        # Protocol 0: it sends, and gets nothing.
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except OSError as error:
        raise HostError(f"no socket for probes through the datapath: {error}") from error


def _source_towards(way: ProbeWay) -> str:
    """Return the address of this host that the kernel would send to the backend from.

    Empty where the backend is of another family than the VIP: then the kernel takes what it thinks
    best towards the VIP.
    """
    if way.backend.version != way.vip.version:
        return ""
    family = socket.AF_INET6 if way.backend.version == IPV6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        asked.connect((str(way.backend), 9))
        return str(asked.getsockname()[0])
