"""What operators ask of backends, and what becomes of the flows: with real clients and servers."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import pace
from tests.support.gateway import config_for
from tests.support.lab import Lab
from tests.support.scenes import Line, build_network, gateway_on
from tests.support.servers import Echo, Nginx

_PROBE = f"{pace.lasting(100):g}ms"
_TCP_CHECK = {
    "type": "tcp",
    "interval": _PROBE,
    "timeout": _PROBE,
    "threshold": {"rise": 1, "fall": 2},
}
_FILE_CHECK = {**_TCP_CHECK, "type": "http", "path": "/files/alive"}
_SHORT = {"settle": "1s", "tcp_closing": "1s"}
_STATE = Path("/var/lib/lb-xdp/gw1/state.json")


class Lines:
    """A scene of echo servers, and long-lived connections to them through the VIP."""

    def __init__(self, lab: Lab, *, check: Any = None, **pool: Any) -> None:
        network = build_network(lab, "nat", 2)
        self.echoes = {host.name: Echo(host) for host in network.backends}
        config = config_for(
            network,
            port=7000,
            backend_port=7000,
            weights=(100, 100, 100),
            health=_TCP_CHECK if check is None else check,
            gateway={"flow_table": _SHORT},
        )
        config["pools"][0] |= pool
        self.scene = gateway_on(network, config)
        self.gateway = self.scene.gateway
        self.opened: list[Line] = []
        self.gateway.wait_until_up(*self.echoes)

    def to(self, backend: str) -> Line:
        """Open connections until one is to the backend, and return that."""
        for _ in range(100):
            line = self.open()
            if line.ask() == backend:
                return line
        raise AssertionError(f"no new flow goes to {backend}")

    def reached(self, count: int = 40) -> set[str]:
        """Return the backends that new connections get to."""
        return {self.open().ask() for _ in range(count)}

    def open(self) -> Line:
        self.opened.append(self.scene.line())
        return self.opened[-1]

    def segments(self, backend: str) -> int:
        """Return how many TCP segments have arrived at a server, those of probes included."""
        text = self.scene.backend(backend).run("cat", "/proc/net/snmp").stdout
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(dict(zip(names, values, strict=True))["InSegs"])

    def state(self, backend: str) -> str:
        return str(self.gateway.backends()[backend]["state"])


def without(config: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return the configuration with a backend taken out of its pools."""
    changed = copy.deepcopy(config)
    for pool in changed["pools"]:
        pool["backends"] = [b for b in pool["backends"] if b["name"] != backend]
    return changed


def test_drain_takes_new_flows_away_and_nothing_else(lab: Lab) -> None:
    """The old flow goes on, new ones go elsewhere, probes arrive; cleared, all is as before."""
    lines = Lines(lab)
    old = lines.to("b1")
    lines.gateway.override("b1", admin="drain", reason="new disks")
    assert lines.reached() == {"b2", "b3"}
    assert old.ask() == "b1"
    shown = lines.gateway.backends()["b1"]
    assert (shown["state"], shown["admin"], shown["weight"]) == ("drain", "drain", 0)
    assert shown["configured_weight"] == 100
    assert "new disks" in shown["detail"]
    assert shown["overrides"][0]["reason"] == "new disks"
    before = lines.segments("b1")
    lines.gateway.wait_until(lambda: lines.segments("b1") > before)
    lines.gateway.clear_override("b1")
    assert lines.to("b1").ask() == "b1"
    assert old.ask() == "b1"


def test_a_drained_backend_that_dies_is_cut(lab: Lab) -> None:
    """Its state is down then, and an operator sees both."""
    lines = Lines(lab)
    lines.gateway.override("b1", admin="drain")
    lines.echoes["b1"].stop()
    lines.gateway.wait_until(lambda: lines.state("b1") == "down")
    assert lines.gateway.backends()["b1"]["admin"] == "drain"


def test_maint_lets_the_server_alone(lab: Lab) -> None:
    """No probe arrives while old flows go on; afterwards the first probe decides, at once."""
    lines = Lines(lab)
    old = lines.to("b1")
    lines.gateway.override("b1", admin="maint")
    assert lines.state("b1") == "maint"
    quiet = lines.segments("b1")
    time.sleep(pace.lasting(0.5))  # five intervals in which nothing happens
    assert lines.segments("b1") == quiet
    assert lines.reached() == {"b2", "b3"}
    assert old.ask() == "b1"
    lines.gateway.override("b1", admin="ready")
    lines.gateway.wait_until_up("b1")
    assert old.ask() == "b1"
    assert lines.segments("b1") > quiet
    assert lines.to("b1").ask() == "b1"


def test_a_server_that_died_in_maint_is_found_out(lab: Lab) -> None:
    """What was up before is not believed: nothing goes there after the first failed probe."""
    lines = Lines(lab)
    lines.gateway.override("b1", admin="maint")
    lines.echoes["b1"].stop()
    lines.gateway.override("b1", admin="ready")
    lines.gateway.wait_until(lambda: lines.state("b1") == "down")
    assert lines.reached() == {"b2", "b3"}


def test_down_cuts_at_once(lab: Lab) -> None:
    """The old flow ends with the next packet; new ones go elsewhere."""
    lines = Lines(lab)
    old = lines.to("b1")
    lines.gateway.override("b1", admin="down")
    with pytest.raises(OSError):  # noqa: PT011 - reset by another server, which does not know it
        old.ask()
    assert lines.reached() == {"b2", "b3"}
    shown = lines.gateway.backends()["b1"]
    assert (shown["state"], shown["admin"], shown["health"]) == ("down", "down", "up")


def test_a_backend_that_leaves_the_file_is_drained_and_forgotten(lab: Lab) -> None:
    """Its flow goes on, over a restart as well; it comes back, leaves, and ends with its flow."""
    lines = Lines(lab)
    gateway, config = lines.gateway, lines.scene.config
    old = lines.to("b1")
    gateway.take(without(config, "b1"))
    assert old.ask() == "b1"
    assert lines.reached() == {"b2", "b3"}
    shown = gateway.backends()["b1"]
    assert (shown["state"], shown["admin"], shown["weight"]) == ("drain", "ready", 0)
    assert "removed from the file" in shown["detail"]
    gateway.kill()
    gateway.start()
    assert "removed from the file" in gateway.backends()["b1"]["detail"]
    assert old.ask() == "b1"
    gateway.take(config)
    gateway.wait_until_up("b1")
    assert lines.to("b1").ask() == "b1"
    assert old.ask() == "b1"
    gateway.take(without(config, "b1"))
    for line in lines.opened:
        line.ask()  # a flow that ends before it has shown itself is known until it is silent
        line.close()
    gateway.wait_until(lambda: "b1" not in gateway.backends(), timeout_s=30)
    assert 'backend="b1"' not in gateway.metrics()
    assert lines.reached() == {"b2", "b3"}
    assert "backend_forgotten" in gateway.log()


def test_a_flow_is_cut_when_the_time_to_drain_is_over(lab: Lab) -> None:
    """However alive it is: after drain_timeout nobody knows the backend any more."""
    lines = Lines(lab, drain_timeout=f"{pace.lasting(2):g}s")
    old = lines.to("b1")
    lines.gateway.take(without(lines.scene.config, "b1"))
    assert old.ask() == "b1"
    lines.gateway.wait_until(lambda: "b1" not in lines.gateway.backends())
    with pytest.raises(OSError):  # noqa: PT011 - reset by another server, which does not know it
        old.ask()


def test_overrides_outlive_reload_and_death_until_they_expire(lab: Lab) -> None:
    """A weight holds over a reload and kill -9, is on disk for root alone, and ends in time."""
    lines = Lines(lab)
    gateway, config = lines.gateway, copy.deepcopy(lines.scene.config)
    gateway.override("b1", weight=0, reason="slow today")
    gateway.override("b2", weight=300)
    config["pools"][0]["backends"][2]["weight"] = 50
    gateway.take(config)
    assert {n: b["weight"] for n, b in gateway.backends().items()} == {"b1": 0, "b2": 300, "b3": 50}
    assert _STATE.stat().st_mode & 0o777 == 0o640
    gateway.kill()
    assert len(json.loads(_STATE.read_text())["overrides"]) == 2
    gateway.start()
    assert gateway.backends()["b1"]["weight"] == 0
    assert lines.reached() == {"b2", "b3"}
    gateway.override("b1", weight=0, expires=pace.lasting(1.0))
    gateway.wait_until(lambda: gateway.backends()["b1"]["weight"] == 100)
    assert "override_expired" in gateway.log()
    assert "b1" not in _STATE.read_text()
    assert lines.to("b1").ask() == "b1"


def test_overrides_outlive_detach_and_a_damaged_file_does_no_harm(lab: Lab) -> None:
    """Detach takes away what is in the kernel; without its file the gateway starts, and says so."""
    lines = Lines(lab, check="none")
    gateway = lines.gateway
    gateway.override("b1", admin="drain")
    gateway.command("detach")
    assert gateway.wait() == 0
    gateway.start()
    assert lines.state("b1") == "drain"
    gateway.kill()
    _STATE.write_text(_STATE.read_text()[:-20])
    gateway.start()
    assert lines.state("b1") == "up"
    assert any("set them again" in notice for notice in gateway.status()["notices"])
    assert _STATE.with_suffix(".bad").exists()
    gateway.override("b1", admin="drain")
    assert lines.reached() == {"b2", "b3"}
    assert not gateway.status()["notices"]


def test_what_cannot_be_is_refused_and_nothing_changes(lab: Lab) -> None:
    """Nobody of that name, no such weight: the message says what there is."""
    lines = Lines(lab, check="none")
    with pytest.raises(ValueError, match="b1, b2, b3"):
        lines.gateway.override("b9", admin="drain")
    with pytest.raises(ValueError, match="web"):
        lines.gateway.override("b1", service="wbe", admin="drain")
    for wrong in ({"weight": 65_536}, {"weight": -1}, {"admin": "dwon"}):
        with pytest.raises(ValueError, match=r"65536|65535|65_535|ready"):
            lines.gateway.override("b1", **wrong)
    assert {b["admin"] for b in lines.gateway.backends().values()} == {"ready"}
    assert not _STATE.exists()


class Web:
    """A scene of nginx backends whose health is a file: they answer whether or not it is there."""

    def __init__(self, lab: Lab, backends: int = 3, *, edit: Any = None, **pool: Any) -> None:
        network = build_network(lab, "nat", 2, backends=backends)
        config = config_for(network, weights=(100,) * backends, health=_FILE_CHECK)
        config["pools"][0] |= pool
        if edit:
            edit(config["pools"][0])
        self.web = {host.name: Nginx(lab, host) for host in network.backends}
        self.heal(*self.web)
        self.scene = gateway_on(network, config, self.web)
        self.gateway = self.scene.gateway

    def heal(self, *names: str) -> None:
        for name in names:
            (self.web[name].files / "alive").write_text("yes")

    def harm(self, *names: str) -> None:
        for name in names:
            (self.web[name].files / "alive").unlink()

    def healthy(self, name: str) -> bool:
        return str(self.gateway.backends()[name]["health"]) == "up"

    def wait_until_healthy(self, *names: str) -> None:
        self.gateway.wait_until(lambda: all(map(self.healthy, names)))

    def wait_until_ill(self, *names: str) -> None:
        self.gateway.wait_until(lambda: not any(map(self.healthy, names)))

    def weight(self, name: str) -> int:
        return round(self.gateway.metric("lb_xdp_backend_weight", backend=name))


def test_slow_start_is_for_recoveries_and_additions(lab: Lab) -> None:
    """Whole weights at the daemon's first start; then a ramp, whose steps the ring follows."""
    web = Web(lab, slow_start=f"{pace.lasting(3):g}s")
    assert [web.weight(name) for name in ("b1", "b2", "b3")] == [100, 100, 100]
    web.harm("b1")
    web.wait_until_ill("b1")
    web.heal("b1")
    web.wait_until_healthy("b1")
    seen = ramp(web, "b1")
    assert seen[0] < 20
    assert seen == sorted(seen)
    assert len(seen) >= 5
    web.gateway.take(without(web.scene.config, "b2"))
    web.gateway.take(web.scene.config)
    assert ramp(web, "b2")[0] < 20
    web.gateway.kill()
    web.gateway.start()
    assert [web.weight(name) for name in ("b1", "b2", "b3")] == [100, 100, 100]


def ramp(web: Web, name: str) -> list[int]:
    """Return the weights that a backend goes through until it has its own."""
    seen: list[int] = []

    def whole() -> bool:
        weight = web.weight(name)
        if weight not in seen:
            seen.append(weight)
        return weight == 100

    web.gateway.wait_until(whole)
    return seen


def test_priorities_take_over_and_fail_back_after_the_delay(lab: Lab) -> None:
    """The standby gets flows only while it is needed, and for the delay after that."""
    delay_s = pace.lasting(2)
    web = Web(
        lab,
        edit=lambda pool: pool["backends"][2].update(priority=1),
        failback_delay=f"{delay_s:g}s",
    )
    assert web.scene.ask().keys() == {"b1", "b2"}
    web.harm("b1")
    web.wait_until_ill("b1")
    assert web.scene.ask().keys() == {"b2"}
    web.harm("b2")
    web.wait_until_ill("b2")
    assert web.scene.ask().keys() == {"b3"}
    web.heal("b1")
    web.wait_until_healthy("b1")
    assert web.weight("b3") == 100
    web.gateway.wait_until(lambda: web.weight("b3") == 0)
    assert web.scene.ask().keys() == {"b1"}
    assert "stands by" in web.gateway.backends()["b3"]["detail"]
    found = [line for line in web.gateway.log().splitlines() if "priority 1 -> 0" in line]
    assert len(found) == 1


def sorry(pool: dict[str, Any]) -> None:
    """Make the last backend the fallback."""
    last = pool["backends"].pop()
    pool["fallback"] = {key: last[key] for key in ("name", "host", "port")}


@pytest.mark.parametrize("panic", ["none", "all", "fallback"])
def test_panic_is_as_configured_and_loud(lab: Lab, panic: str) -> None:
    """When nobody is healthy; in metrics, status and log. It ends with the first recovery."""
    web = Web(lab, panic=panic, edit=sorry if panic == "fallback" else None)
    members = {"b1", "b2"} if panic == "fallback" else {"b1", "b2", "b3"}
    assert web.scene.ask().keys() == members
    web.harm(*members)
    web.wait_until_ill(*members)
    assert web.gateway.metric("lb_xdp_service_panic", service="web") == 1
    if panic == "none":
        result = web.scene.load(count=5, rate_per_s=0, timeout_s=0.3, processes=1).wait()
        assert len(result.failures) == 5
    else:
        assert web.scene.ask().keys() == (members if panic == "all" else {"b3"})
    assert any("PANIC: service web" in notice for notice in web.gateway.status()["notices"])
    assert "no backend is healthy" in web.gateway.log()
    web.heal("b1")
    web.wait_until_healthy("b1")
    assert web.scene.ask().keys() == {"b1"}
    assert web.gateway.metric("lb_xdp_service_panic", service="web") == 0
    assert "panic_over" in web.gateway.log()
