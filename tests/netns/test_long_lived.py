"""Connections that were open before live on, whatever the operator does to the other backends."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from tests.support.clients import Held
from tests.support.gateway import PATIENT_CHECK, config_for, joined
from tests.support.lab import Lab
from tests.support.scenes import Scene, build_network, echo_scene, gateway_on
from tests.support.servers import Nginx
from tests.support.topologies import SNATS, VIP, VIPS

pytestmark = pytest.mark.slow

_BEGIN = 3
"""Backends at first, of five."""
_CONNECTIONS = 200
_IDLE = 60
_TRICKLE_S = 0.5
_BREATH_S = 0.7
"""Between two changes: every connection that is not idle has sent something."""

_SETTLED_S = 6
"""After a settle time of 5 s, that is."""

_LOOK_S = 5
"""How often the daemon looks at the flow table."""

# Name, port, and what differs: of every kind of tracking, and of every way that an answer takes.
_SERVICES: Sequence[tuple[str, int, dict[str, Any]]] = (
    ("nat", 80, {"mode": "nat"}),
    ("ipip", 81, {"mode": "ipip"}),
    ("dsr6", 82, {"mode": "dsr", "family": 6}),
    ("turns", 83, {"mode": "nat", "service": {"algorithm": "round_robin"}}),
    ("least", 84, {"mode": "fullnat", "service": {"algorithm": "least_connections"}}),
    ("client", 85, {"mode": "gue", "service": {"session": {"affinity": "client_ip"}}}),
)


def build(lab: Lab, **flow_table: str) -> Scene:
    """Build a gateway with all services over three backends; two more have servers already."""
    network = build_network(lab, "ipip", 2, backends=5, mtu=1600)
    network.gateway.address("eth1", f"{SNATS[4]}/32")
    ports = [port for _, port, _ in _SERVICES]
    web = {host.name: Nginx(lab, host, ports[0], also=ports[1:]) for host in network.backends}
    config = joined(*(
        config_for(
            network,
            port=port,
            backend_port=port,
            weights=(100, 100, 100, 100, 100),
            health=PATIENT_CHECK,
            gateway={"flow_table": flow_table},
            **(options | {"service": {"name": name} | options.get("service", {})}),
        )
        for name, port, options in _SERVICES
    ))  # fmt: skip
    scene = gateway_on(network, with_backends(config, _BEGIN), web)
    for number in range(_BEGIN):
        scene.gateway.wait_until(partial(is_up_everywhere, scene, f"b{number + 1}"))
    return Scene(network, scene.gateway, config, web)


def with_backends(config: dict[str, Any], count: int, **weights: int) -> dict[str, Any]:
    """Return the configuration with the first ``count`` backends, some of another weight."""
    changed = copy.deepcopy(config)
    for pool in changed["pools"]:
        del pool["backends"][count:]
        for backend in pool["backends"]:
            backend["weight"] = weights.get(backend["name"], 100)
    return changed


def is_up_everywhere(scene: Scene, name: str) -> bool:
    services = scene.gateway.status()["services"]
    found = [b for service in services for b in service["backends"] if b["name"] == name]
    return len(found) == len(services) and all(b["state"] == "up" for b in found)


@contextmanager
def connections(scene: Scene, count: int, **options: Any) -> Iterator[dict[str, list[Held]]]:
    """Hold connections to every service; what became of them is there afterwards."""
    options = {"interval_s": _TRICKLE_S, "timeout_s": 10, **options}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                scene.held(count, vip=VIPS[kind.get("family", 4)], port=port, **options)
            )
            for name, port, kind in _SERVICES
        }


def broken(held: dict[str, list[Held]]) -> list[str]:
    return [
        f"{service} {one.source} to {one.backend}: {one.error}"
        for service, opened in held.items()
        for one in opened
        if one.broken_at_s is not None
    ]


def restart(scene: Scene, *, kill: bool) -> None:
    if kill:
        scene.gateway.kill()
    else:
        scene.gateway.terminate()
    time.sleep(_BREATH_S)
    scene.gateway.start()


def take(scene: Scene, count: int, **weights: int) -> None:
    """Give the gateway another set of backends and weights; return when the last one is up."""
    scene.gateway.take(with_backends(scene.config, count, **weights))
    scene.gateway.wait_until(lambda: is_up_everywhere(scene, f"b{count}"))
    time.sleep(_BREATH_S)


def disturb(scene: Scene) -> None:
    """Do all that an operator does in a bad week, while the first change still settles."""
    take(scene, 4, b2=300, b3=50)
    take(scene, 4, b1=0, b2=300, b3=50)
    restart(scene, kill=False)
    take(scene, 5, b1=0)
    restart(scene, kill=True)
    take(scene, 5, b1=0, b4=10)
    take(scene, 4)  # without b5, to which no connection was opened


def assert_none_broken(scene: Scene, held: dict[str, list[Held]]) -> None:
    assert not broken(held), "\n".join([*broken(held), scene.gateway.log()])


def assert_spread(held: dict[str, list[Held]]) -> None:
    """The connections were of use: every first backend had some of each service's."""
    for service, opened in held.items():
        assert len(opened) == _CONNECTIONS
        backends = {one.backend for one in opened}
        # Of eight clients, each bound to one backend, chance may leave one out.
        assert len(backends) >= (2 if service == "client" else _BEGIN), service


def test_nothing_breaks_while_changes_settle(lab: Lab) -> None:
    """Backends come, go, drain and change weight, the controller restarts: no connection breaks."""
    scene = build(lab)
    with connections(scene, _CONNECTIONS, idle=_IDLE) as held:
        take(scene, 4)
        with connections(scene, _IDLE, idle=_IDLE // 2) as later:
            disturb(scene)
    assert_none_broken(scene, held)
    assert_none_broken(scene, later)
    assert_spread(held)
    assert "b4" in {one.backend for one in later["nat"]}


def test_a_dead_backend_takes_only_its_own_along(lab: Lab) -> None:
    """After two changes, kill -9 of a backend breaks its connections, and no other one."""
    scene = build(lab)
    with connections(scene, _CONNECTIONS, idle=_IDLE) as held:
        take(scene, 4)
        take(scene, 4, b3=10)
        scene.web["b2"].stop()
        scene.gateway.wait_until_down("b2")
        time.sleep(_BREATH_S)
        take(scene, 5, b3=10)
    assert {line.split(" to ")[1][:2] for line in broken(held)} == {"b2"}
    for opened in held.values():
        ended = [one for one in opened if one.broken_at_s is not None]
        assert len(ended) == sum(one.backend == "b2" for one in opened)


def test_nothing_breaks_after_changes_have_settled(lab: Lab) -> None:
    """The same when all slots settle in between; the flow table is empty when they have ended."""
    scene = build(lab, settle="5s", tcp_closing="1s", tcp_idle="60s")
    with connections(scene, _CONNECTIONS) as held:
        take(scene, 4)
        scene.gateway.wait_until(lambda: recorded(scene) > _CONNECTIONS / 4)
        take(scene, 4, b1=0)
        time.sleep(_SETTLED_S)
        restart(scene, kill=True)
        take(scene, 5, b2=300)
        time.sleep(_SETTLED_S)
    assert_none_broken(scene, held)
    assert_spread(held)
    scene.gateway.wait_until(lambda: recorded(scene) == 0, timeout_s=30)


def recorded(scene: Scene) -> float:
    """Return how many flows have records, as of the collector's last look."""
    return scene.gateway.metric("lb_xdp_flow_table_entries")


@contextmanager
def udp_flows(scene: Scene, count: int) -> Iterator[list[socket.socket]]:
    """Open sockets that each send from one port to the VIP."""
    with ExitStack() as stack:
        channels = []
        for _ in range(count):
            channel = stack.enter_context(scene.client.socket(VIP, socket.SOCK_DGRAM))
            channel.settimeout(3)
            channel.connect((VIP, 7000))
            channels.append(channel)
        yield channels


def answering(channels: Sequence[socket.socket]) -> list[str]:
    """Return who answers on each."""
    for channel in channels:
        channel.send(b"hello")
    return [channel.recv(100).decode().removesuffix(" hello") for channel in channels]


def test_datagrams_stay_with_their_backend(lab: Lab) -> None:
    """Flows of UDP keep theirs while they go on; after a silence they may have the new one."""
    times = {"flow_table": {"udp_idle": "3s"}}
    scene, _ = echo_scene(lab, "nat", 2, weights=(100, 100), gateway=times)
    wider = copy.deepcopy(scene.config)
    wider["pools"][0]["backends"].append(
        scene.config["pools"][0]["backends"][0] | {"name": "b3", "host": "10.2.0.13"}
    )
    with udp_flows(scene, 100) as busy, udp_flows(scene, 100) as silent:
        owners = answering(busy), answering(silent)
        assert {*owners[0]} == {"b1", "b2"}
        scene.gateway.take(wider)
        scene.gateway.wait_until_up("b3")
        assert (answering(busy), answering(silent)) == owners
        deadline_s = time.monotonic() + _LOOK_S + 2 * 3
        while time.monotonic() < deadline_s:
            assert answering(busy) == owners[0]
            time.sleep(_TRICKLE_S)
        assert "b3" in answering(silent)
