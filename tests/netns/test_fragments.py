"""Datagrams too large for a frame arrive whole, whatever the order of their fragments."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from tests.support.frames import Wire, udp_fragments
from tests.support.gateway import config_for, joined
from tests.support.lab import Lab, family_of
from tests.support.scenes import Scene, build_network, gateway_on, wait_until
from tests.support.servers import Echo
from tests.support.topologies import CLIENTS, DIRECT_MODES, VIPS

pytestmark = pytest.mark.slow

_DATA_BYTES = 8000
_PORT = 7000
_PIECES = 6


def build(lab: Lab, mode: str) -> tuple[Scene, Echo]:
    """Build a UDP service of each IP version over one backend."""
    network = build_network(lab, mode, 2, backends=1, mtu=1600 if mode == "ipip" else 1500)
    echo = Echo(network.backends[0], backend_port(mode))
    options: dict[str, Any] = {"mode": mode, "protocol": "udp", "port": _PORT, "health": "none"}
    config = joined(*(
        config_for(
            network,
            family=family,
            backend_port=backend_port(mode),
            service={"name": f"echo{family}"},
            **options,
        )
        for family in (4, 6)
    ))  # fmt: skip
    return gateway_on(network, config), echo


def backend_port(mode: str) -> int:
    return _PORT if mode in DIRECT_MODES else 7001


@contextmanager
def asking(scene: Scene, vip: str) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """Open a client's socket to the VIP; return it and its address."""
    with scene.client.socket(vip, socket.SOCK_DGRAM) as channel:
        channel.settimeout(3)
        channel.bind((CLIENTS[family_of(vip)][0], 0))
        channel.connect((vip, _PORT))
        yield channel, channel.getsockname()[:2]


def shuffled(fragments: list[Any]) -> list[Any]:
    """Return the first fragment, and the others in another order."""
    first, *others = fragments
    return [first, *random.sample(others, len(others))]


def answers(scene: Scene, vip: str) -> bool:
    """Say whether a small datagram is answered: then every host knows its neighbours' MACs."""
    with asking(scene, vip) as (channel, _):
        channel.settimeout(0.5)
        channel.send(b"hello")
        with suppress(TimeoutError):
            return channel.recv(100) == b"b1 hello"
    return False


def lost(scene: Scene) -> float:
    return scene.gateway.metric("lb_xdp_packets_total", reason="fragment_lost", verdict="drop")


def assert_whole(scene: Scene, vip: str) -> None:
    """The kernel's own fragments, there and back."""
    data = os.urandom(_DATA_BYTES)
    with asking(scene, vip) as (channel, _):
        channel.send(data)
        assert channel.recv(65535) == b"b1 " + data


def assert_whole_out_of_order(scene: Scene, vip: str, wire: Wire) -> None:
    data = os.urandom(_DATA_BYTES)
    with asking(scene, vip) as (channel, source):
        fragments = udp_fragments(source, (vip, _PORT), data)
        assert len(fragments) == _PIECES
        wire.send(shuffled(fragments))
        assert channel.recv(65535) == b"b1 " + data


def assert_lost_without_the_first(scene: Scene, vip: str, wire: Wire, echo: Echo) -> None:
    before, received = lost(scene), echo.stats()["udp_datagrams"]
    with asking(scene, vip) as (_, source):
        wire.send(udp_fragments(source, (vip, _PORT), os.urandom(_DATA_BYTES))[1:])
        wait_until(lambda: lost(scene) == before + _PIECES - 1, "all are dropped and counted")
    assert echo.stats()["udp_datagrams"] == received


def assert_replies_out_of_order(scene: Scene, vip: str, mode: str) -> None:
    """A backend's fragments out of order come to the client as the VIP's."""
    (backend,) = scene.network.backends
    address = scene.network.addresses(family_of(vip))[0]
    gateway_mac = scene.network.gateway.mac("eth1")
    data = os.urandom(_DATA_BYTES)
    with closing(Wire(backend, "eth0", gateway_mac)) as wire, asking(scene, vip) as (channel, _):
        channel.send(b"hello")
        seen_from = wire.udp_source(address, backend_port(mode))
        assert channel.recv(100) == b"b1 hello"
        wire.send(shuffled(udp_fragments((address, backend_port(mode)), seen_from, data)))
        assert channel.recv(65535) == data


@pytest.mark.parametrize("mode", ["dsr", "ipip", "nat", "fullnat"])
def test_fragments_find_their_backend(lab: Lab, mode: str) -> None:
    """8,000 octets arrive in order and shuffled after the first, and never without the first."""
    scene, echo = build(lab, mode)
    with closing(Wire(scene.client, "eth0", scene.network.gateway.mac("eth0"))) as wire:
        for vip in VIPS.values():
            wait_until(partial(answers, scene, vip), "the way to the backend and back is known")
            assert_whole(scene, vip)
            assert_whole_out_of_order(scene, vip, wire)
            assert_lost_without_the_first(scene, vip, wire, echo)
            if mode not in DIRECT_MODES:
                assert_replies_out_of_order(scene, vip, mode)
    forwarded = scene.gateway.metric("lb_xdp_packets_total", reason="forwarded")
    assert forwarded >= 2 * 2 * _PIECES
