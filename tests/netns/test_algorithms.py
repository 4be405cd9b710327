"""How services spread flows: algorithms, limits, affinity, and what no backend means to clients."""

from __future__ import annotations

import copy
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tests.support.gateway import config_for, joined
from tests.support.lab import Lab
from tests.support.scenes import Line, Scene, build_network, gateway_on, udp_ask, wait_until
from tests.support.servers import Echo
from tests.support.topologies import CLIENT_ADDRESSES, CLIENTS, DIRECT_MODES, VIP, VIPS, Network

pytestmark = pytest.mark.slow

_PORT = 7000
_BACKEND_PORT = 7001
_FORGOTTEN_S = 3.1
"""After a timeout of 2 s, that is."""
_SETTLED = {"flow_table": {"tcp_closing": "1s", "tcp_opening": "1s"}}


def serve(lab: Lab, *, backends: int = 3, mode: str = "nat", **options: Any) -> Scene:
    """Build a scene of one TCP service on port 7000, over echo servers."""
    network = build_network(lab, mode, 2, backends=backends)
    return serve_on(network, service_of(network, mode=mode, **options))


def service_of(network: Network, *, mode: str = "nat", **options: Any) -> dict[str, Any]:
    """Return a configuration of one service over echo servers, never probed."""
    port = _PORT if mode in DIRECT_MODES else _BACKEND_PORT
    defaults: dict[str, Any] = {"port": _PORT, "backend_port": port, "health": "none"}
    weights = {"weights": (100,) * len(network.backends), "gateway": _SETTLED}
    return config_for(network, mode=mode, **(defaults | weights | options))


def serve_on(network: Network, config: dict[str, Any]) -> Scene:
    for host in network.backends:
        for port in sorted({b.get("port", _PORT) for p in config["pools"] for b in p["backends"]}):
            Echo(host, port)
    return gateway_on(network, config)


def limit(config: dict[str, Any], connections: int) -> dict[str, Any]:
    """Return the configuration with max_connections for each backend."""
    changed = copy.deepcopy(config)
    for pool in changed["pools"]:
        for backend in pool["backends"]:
            backend["max_connections"] = connections
    return changed


def opened(scene: Scene, count: int, **options: Any) -> tuple[list[Line], list[str]]:
    """Open connections one after the other; return them and who answers on them."""
    lines = [scene.line(**options) for _ in range(count)]
    return lines, [line.ask() for line in lines]


def test_round_robin_takes_strict_turns(lab: Lab) -> None:
    """Each backend in turn, whatever the client; with weights 1:2 twice as often, interleaved."""
    network = build_network(lab, "nat", 2)
    turns = service_of(network, service={"algorithm": "round_robin"})
    weighted = service_of(
        network, port=7010, backend_port=7011, weights=(100, 200),
        service={"algorithm": "round_robin", "name": "weighted"},
    )  # fmt: skip
    scene = serve_on(network, joined(turns, weighted))
    _, names = opened(scene, 12)
    assert names[:3] * 4 == names
    assert {*names} == {"b1", "b2", "b3"}
    _, names = opened(scene, 12, port=7010)
    assert names[:3] * 4 == names
    assert Counter(names) == {"b1": 4, "b2": 8}


def test_least_connections_prefers_the_idle(lab: Lab) -> None:
    """New connections fill the backend that others have left, and stay even otherwise.

    Eight slots are sampled for each: one in 26 samples misses one of three backends.
    """
    scene = serve(lab, service={"algorithm": "least_connections"})
    lines, names = opened(scene, 30)
    spread = Counter(names)
    assert min(spread[name] for name in ("b1", "b2", "b3")) >= 8
    for line, name in zip(lines, names, strict=True):
        if name == "b2":
            line.close()
    wait_until(lambda: connections(scene)["b2"] == 0, "the gateway has seen them end")
    _, names = opened(scene, 7)
    assert Counter(names)["b2"] >= 4


def connections(scene: Scene) -> dict[str, int]:
    return {name: entry["connections"] for name, entry in scene.gateway.backends().items()}


def attempts(scene: Scene, count: int) -> tuple[list[Line], int]:
    """Open connections all at once; return those that were taken, and how many were refused."""

    def attempt(number: int) -> Line | None:
        with suppress(ConnectionRefusedError):
            source = CLIENT_ADDRESSES[number % len(CLIENT_ADDRESSES)]
            return Line(scene.client, VIP, _PORT, source=source)
        return None

    with ThreadPoolExecutor(16) as pool:
        tried = list(pool.map(attempt, range(count)))
    taken = [line for line in tried if line is not None]
    for line in taken:
        scene.network.lab.on_close.callback(line.close)
    return taken, count - len(taken)


@pytest.mark.parametrize("mode", ["nat", "fullnat"])
def test_max_connections_is_exact_where_replies_pass(lab: Lab, mode: str) -> None:
    """Of 200 at once 3 x 20 are taken, 20 by each backend; what ends by FIN or RST makes room."""
    network = build_network(lab, mode, 2)
    config = service_of(network, mode=mode, service={"no_backend": "reject"})
    scene = serve_on(network, limit(config, 20))
    taken, refused = attempts(scene, 200)
    assert Counter(line.ask() for line in taken) == {"b1": 20, "b2": 20, "b3": 20}
    assert refused == 140
    for line in taken[:5]:
        line.close()
    for line in taken[5:10]:
        line.reset()
    wait_until(lambda: room(scene, 60) == 10, "ten have ended")
    again, refused = attempts(scene, 30)
    assert (len(again), refused) == (10, 20)
    assert all(line.ask() for line in taken[10:] + again)


def room(scene: Scene, most: int) -> int:
    return most - sum(connections(scene).values())


def test_max_connections_survives_silence_and_kill(lab: Lab) -> None:
    """Connections that fell silent make room, once; kill -9 of the controller changes no count."""
    network = build_network(lab, "fullnat", 2, backends=1)
    times = {"flow_table": {"tcp_idle": "2s", "tcp_closing": "1s", "tcp_opening": "1s"}}
    config = service_of(network, mode="fullnat", service={"no_backend": "reject"}, gateway=times)
    scene = serve_on(network, limit(config, 5))
    assert attempts(scene, 8)[1] == 3
    wait_until(lambda: room(scene, 5) == 5, "they are forgotten", timeout_s=15)
    taken, refused = attempts(scene, 8)
    assert refused == 3
    scene.gateway.kill()
    scene.gateway.start()
    assert attempts(scene, 3)[1] == 3
    for line in taken:
        line.close()
    wait_until(lambda: room(scene, 5) == 5, "all have ended")
    assert attempts(scene, 8)[1] == 3


def test_max_connections_is_an_estimate_in_dsr(lab: Lab) -> None:
    """Without the replies connections are counted by what clients send: never more than asked."""
    network = build_network(lab, "dsr", 2)
    config = service_of(network, mode="dsr", service={"no_backend": "reject"})
    scene = serve_on(network, limit(config, 20))
    taken, refused = attempts(scene, 100)
    assert Counter(line.ask() for line in taken) == {"b1": 20, "b2": 20, "b3": 20}
    assert refused == 40
    for line in taken:
        line.close()
    wait_until(lambda: room(scene, 60) == 60, "all have ended")
    again, _ = attempts(scene, 100)
    assert len(again) == 60


@pytest.mark.parametrize(
    ("affinity", "mode", "family"),
    [("client_ip", "nat", 4), ("client_prefix", "fullnat", 4), ("client_prefix", "dsr", 6)],
)
def test_a_client_keeps_its_backend(lab: Lab, affinity: str, mode: str, family: int) -> None:
    """Across ports, after changes, as long as it shows itself; later it may get another one."""
    network = build_network(lab, mode, 2)
    session = {"affinity": affinity, "timeout": "2s"}
    service = {"session": session, "algorithm": "round_robin"}
    config = service_of(network, mode=mode, family=family, weights=(100, 100), service=service)
    scene = serve_on(network, config)
    homes = {source: home_of(scene, source) for source in CLIENTS[family]}
    assert len({*homes.values()}) == (2 if affinity == "client_ip" else 1)
    wider = service_of(network, mode=mode, family=family, service=service)
    scene.gateway.take(wider)
    scene.gateway.wait_until_up("b3")
    assert {source: home_of(scene, source) for source in homes} == homes
    time.sleep(_FORGOTTEN_S)
    later = [home_of(scene, source, count=1) for source in homes]
    for _ in range(2):  # a /24 is one client: three turns, three backends
        time.sleep(_FORGOTTEN_S if affinity == "client_prefix" else 0)
        later.append(home_of(scene, scene.sources[0], count=1))
    assert {*later} == {"b1", "b2", "b3"}


def home_of(scene: Scene, source: str, *, count: int = 5) -> str:
    """Return the one backend that answers a client."""
    names = set()
    for _ in range(count):
        line = Line(scene.client, scene.vip, _PORT, source=source)
        names.add(line.ask())
        line.reset()
    (name,) = names
    return name


def test_source_hash_sends_a_client_to_one_backend(lab: Lab) -> None:
    """All ports of an address have the same backend, those of eight have several; no records."""
    scene = serve(lab, service={"algorithm": "source_hash"})
    homes = {source: home_of(scene, source) for source in CLIENT_ADDRESSES}
    assert len({*homes.values()}) > 1
    assert scene.gateway.metric("lb_xdp_flow_table_entries") == 0


def ask(scene: Scene, vip: str, kind: socket.SocketKind, *, timeout_s: float) -> None:
    """Say hello to the VIP, and wait for whatever comes of it."""
    with scene.client.socket(vip, kind) as channel:
        channel.settimeout(timeout_s)
        channel.connect((vip, _PORT))
        channel.send(b"hello")
        channel.recv(10)


def empty_services(network: Network, no_backend: str) -> dict[str, Any]:
    """Return services of both protocols and IP versions whose backends are all down."""
    return joined(*(
        service_of(
            network,
            protocol=protocol,
            family=family,
            mode="dsr",
            health={"type": "tcp", "port": 9, "interval": "100ms", "timeout": "100ms"},
            service={"name": f"{protocol}{family}", "no_backend": no_backend},
        )
        for protocol in ("tcp", "udp")
        for family in (4, 6)
    ))  # fmt: skip


def test_without_a_backend_clients_are_refused_or_wait(lab: Lab) -> None:
    """Reject: a RST or ICMP unreachable at once. Drop: nothing, until the client gives up."""
    network = build_network(lab, "dsr", 2, backends=1)
    scene = gateway_on(network, empty_services(network, "reject"))
    scene.gateway.wait_until_down("b1")
    kinds = [(vip, k) for vip in VIPS.values() for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    for vip, kind in kinds:
        with pytest.raises(ConnectionRefusedError):
            ask(scene, vip, kind, timeout_s=0.5)
    assert counted(scene, "refused") == len(kinds)
    scene.gateway.take(empty_services(network, "drop"))
    for vip, kind in kinds:
        with pytest.raises(TimeoutError):
            ask(scene, vip, kind, timeout_s=0.3)
    assert counted(scene, "no_backend") == len(kinds)


def counted(scene: Scene, reason: str) -> float:
    return scene.gateway.metric("lb_xdp_packets_total", reason=reason)


def only(config: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return the configuration with one of its backends."""
    changed = copy.deepcopy(config)
    for pool in changed["pools"]:
        pool["backends"] = [b for b in pool["backends"] if b["name"] == backend]
    return changed


def test_services_share_a_vip(lab: Lab) -> None:
    """One port, another protocol on it, another port, and any other: each has its own backends."""
    network = build_network(lab, "nat", 2)
    tcp = service_of(network, service={"name": "tcp"})
    udp = service_of(network, protocol="udp", service={"name": "udp"})
    every = service_of(network, port="any", backend_port=None, service={"name": "any"})
    other = service_of(network, port=7002, backend_port=7003, service={"name": "other"})
    config = joined(only(tcp, "b1"), only(udp, "b2"), only(every, "b3"), only(other, "b2"))
    scene = serve_on(network, config)
    Echo(network.backends[2], 7777)
    assert {*opened(scene, 10)[1]} == {"b1"}
    assert {*udp_ask(scene.client, [(VIP, _PORT)] * 10)} == {"b2"}
    assert {*opened(scene, 10, port=7002)[1]} == {"b2"}
    assert {*opened(scene, 10, port=7777)[1]} == {"b3"}
