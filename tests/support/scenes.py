"""A network with servers and the real daemon, ready for traffic: where most netns tests begin.

This module owns putting the pieces of the lab together and reading what the whole counted. It
refuses to do harm: that is what a test is for.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from lb_xdp.core.flow_hash import flow_hash, ring_slot
from lb_xdp.core.model import BackendKey, Protocol
from lb_xdp.core.ring import RING_SLOTS, maglev
from tests.support import pace
from tests.support.clients import (
    Held,
    HeldConnections,
    ShortConnections,
    broken,
    short_connections,
)
from tests.support.decap import attach_decap
from tests.support.gateway import Gateway, config_for
from tests.support.lab import Host, Lab, family_of
from tests.support.rings import counts
from tests.support.servers import Echo, Nginx
from tests.support.topologies import CLIENTS, TUNNEL_MODES, VIP, Network, one_armed, two_armed

WEIGHTS = {"b1": 100, "b2": 200, "b3": 300}
RATE_PER_S = pace.rate(1000)
_MTU_OPTIONS = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}  # IP_MTU, IPV6_MTU
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Scene:
    """A gateway at work. ``config`` is what it was started with."""

    network: Network
    gateway: Gateway
    config: dict[str, Any]
    web: Mapping[str, Nginx]

    @property
    def client(self) -> Host:
        """Return the host that asks."""
        return self.network.client

    @property
    def vip(self) -> str:
        """Return the address of the first service."""
        return str(self.config["services"][0]["vip"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the client's addresses of the VIP's IP version."""
        return CLIENTS[family_of(self.vip)]

    def said(self, *arguments: str) -> str:
        """Return what a command prints."""
        return self.gateway.command(*arguments).stdout

    def counters(self) -> dict[str, tuple[int, int]]:
        """Return packets and flows of each backend."""
        found = self.gateway.backends()
        return {name: (entry["packets"], entry["flows"]) for name, entry in found.items()}

    def backend(self, name: str) -> Host:
        """Return a backend's host."""
        return next(host for host in self.network.backends if host.name == name)

    def line(self, address: str = "", port: int = 7000, *, source: str = "") -> Line:
        """Open a TCP connection to an echo server that lasts as long as the lab, if need be.

        Without an address, to the VIP.
        """
        line = Line(self.client, address or self.vip, port, source=source)
        self.network.lab.on_close.callback(line.close)
        return line

    def load(self, **changes: Any) -> ShortConnections:
        """Start short connections, 1,000 per second, to the first VIP, unless told otherwise."""
        vip = str(changes.pop("vip", self.vip))
        sources = CLIENTS[family_of(vip)]
        options: dict[str, Any] = {"rate_per_s": RATE_PER_S, "sources": sources, **changes}
        return short_connections(self.client, vip, **options)

    def ask(self, *, count: int = 60, **changes: Any) -> Counter[str]:
        """Return which backends answer ``count`` short connections; all must be answered."""
        result = self.load(count=count, rate_per_s=0, processes=1, **changes).wait()
        assert not result.failures, result.failures[:3]
        return result.backends

    @contextmanager
    def held(self, count: int = 60, **options: Any) -> Iterator[list[Held]]:
        """Hold keep-alive connections to a VIP; what became of them is in the list afterwards."""
        vip = str(options.pop("vip", self.vip))
        options = {"sources": CLIENTS[family_of(vip)], **options}
        connections = HeldConnections(self.client, vip, count=count, **options)
        outcome: list[Held] = []
        yield outcome
        outcome.extend(connections.stop())

    def program_ids(self) -> dict[str, int]:
        """Return the program on each interface, as the kernel tells it."""
        shown = {name: self.network.gateway.link(name) for name in self.network.gateway_interfaces}
        return {name: link["xdp"]["prog"]["id"] for name, link in shown.items() if "xdp" in link}


def build_network(lab: Lab, mode: str, arms: int, *, backends: int = 3, mtu: int = 1500) -> Network:
    """Build the network for a mode and a number of arms (1, 2), tunnels undone on backends."""
    topology = {1: one_armed, 2: two_armed}[arms]
    network = topology(lab, backends, mode=mode, mtu=mtu)
    if mode in TUNNEL_MODES:
        attach_decap(network)
    return network


def web_scene(
    lab: Lab,
    mode: str = "nat",
    arms: int = 2,
    *,
    backends: int = 3,
    mtu: int = 1500,
    **options: Any,
) -> Scene:
    """Build a scene of nginx backends that are all up; a fourth gets nothing yet."""
    network = build_network(lab, mode, arms, backends=backends, mtu=mtu)
    return web_on(network, mode=mode, **options)


def web_on(network: Network, *, port: int = 80, **options: Any) -> Scene:
    """Start nginx on ``port`` of a network's backends, and the gateway; return when all are up."""
    web = {host.name: Nginx(network.lab, host, port) for host in network.backends}
    scene = gateway_on(network, config_for(network, backend_port=port, **options), web)
    scene.gateway.wait_until_up(*(b["name"] for b in scene.config["pools"][0]["backends"]))
    return scene


def gateway_on(
    network: Network, config: dict[str, Any], web: Mapping[str, Nginx] | None = None
) -> Scene:
    """Start the daemon with ``config`` in a network."""
    gateway = Gateway(network, config)
    gateway.start()
    return Scene(network, gateway, config, web or {})


def echo_scene(
    lab: Lab,
    mode: str,
    arms: int,
    *,
    protocol: str = "udp",
    port: int | str = 7000,
    backend_port: int | None = 7000,
    mtu: int = 1500,
    **options: Any,
) -> tuple[Scene, dict[str, Echo]]:
    """Build a scene of echo servers behind port 7000 of the VIP, never probed."""
    network = build_network(lab, mode, arms, mtu=mtu)
    echoes = {host.name: Echo(host, backend_port or 7000) for host in network.backends}
    config = config_for(
        network,
        mode=mode,
        protocol=protocol,
        port=port,
        backend_port=backend_port,
        health="none",
        **options,
    )
    return gateway_on(network, config), echoes


def udp_ask(host: Host, targets: Sequence[tuple[str, int]], *, source: str = "") -> list[str]:
    """Send one datagram to each target from a port of its own; return the names that answer.

    Raises TimeoutError if one gets no answer, ConnectionError if somebody else answers.
    """
    return [_udp_once(host, target, source, number) for number, target in enumerate(targets)]


def _udp_once(host: Host, target: tuple[str, int], source: str, number: int) -> str:
    with host.socket(target[0], socket.SOCK_DGRAM) as channel:
        channel.bind((source, 0))
        channel.settimeout(pace.lasting(3))
        channel.sendto(f"hello {number}".encode(), target)
        answer, answered_by = channel.recvfrom(2048)
    if answered_by[:2] != target:
        raise ConnectionError(f"asked {target}, {answered_by} answered")
    name, _, text = answer.decode().partition(" ")
    assert text == f"hello {number}"
    return name


def path_mtu(host: Host, address: str) -> int:
    """Return the MTU of the way to an address, in octets, as the host knows it."""
    with host.socket(address, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockopt(*_MTU_OPTIONS[family_of(address)])


class Line:
    """One long-lived TCP connection to an echo server, directly or through the VIP."""

    def __init__(self, host: Host, address: str, port: int, *, source: str = "") -> None:
        self._socket = host.socket(address, socket.SOCK_STREAM)
        self._socket.settimeout(pace.lasting(3))
        if source:
            self._socket.bind((source, 0))
        try:
            self._socket.connect((address, port))
        except OSError:
            self._socket.close()
            raise

    def ask(self, text: str = "hello") -> str:
        """Say a line, and return the name of whoever says it back."""
        self._socket.sendall(f"{text}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._socket.recv(4096)
            if not piece:
                raise ConnectionResetError("closed by the server")
            answer += piece
        name, _, rest = answer.decode().partition(" ")
        assert rest == f"{text}\n", answer
        return name

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def reset(self) -> None:
        """End the connection by a RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()


@contextmanager
def undisturbed(scene: Scene) -> Iterator[None]:
    """Send 1,000 requests per second and hold connections meanwhile; none may fail or break."""
    with scene.held() as held:
        load = scene.load()
        time.sleep(pace.lasting(0.3))
        yield
        time.sleep(pace.lasting(0.3))
        result = load.stop()
    assert not result.failures, result.failures[:3]
    assert result.answered > 200
    assert not broken(held)


def wait_until(holds: Callable[[], bool], what: str, *, timeout_s: float = 10) -> None:
    """Return when ``holds()`` does."""
    timeout_s = pace.lasting(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


class Slots:
    """Which backend the ring gives a client's connection to, computed from the configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        service, backends = config["services"][0], config["pools"][0]["backends"]
        keys = {BackendKey(IPv4Address(b["host"]), b["port"]): b for b in backends}
        self._ring = maglev({key: backend["weight"] for key, backend in keys.items()})
        self._names = [keys[key]["name"] for key in self._ring.keys]
        self._port = int(service["port"])

    def owner(self, source: str) -> str:
        """Return whose slot a TCP connection from ``source`` (``address:port``) is on."""
        address, _, port = source.partition(":")
        vip, protocol = int(IPv4Address(VIP)), Protocol.TCP.number
        hashed = flow_hash(int(IPv4Address(address)), vip, int(port), self._port, protocol)
        slot = ring_slot(hashed, RING_SLOTS)
        name: str = self._names[int(self._ring.owner[slot])]
        return name

    def count(self, name: str) -> int:
        """Return how many slots a backend has."""
        key = self._ring.keys[self._names.index(name)]
        return counts(self._ring)[key]
