"""Changes as an operator makes them: planned, made, confirmed or undone, by the real commands."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import pace
from tests.support.gateway import COMMAND, reweighted
from tests.support.lab import Lab
from tests.support.scenes import Line, Scene, echo_scene

_PAUSE_S = 0.05


def scene_of(lab: Lab, **service: Any) -> Scene:
    """Return a scene of three echo servers behind one TCP service in nat."""
    scene, _ = echo_scene(lab, "nat", 2, protocol="tcp", service=service)
    return scene


def planned(scene: Scene, *arguments: str) -> dict[str, Any]:
    """Return what ``lb-xdp plan -o json`` prints."""
    plan: dict[str, Any] = json.loads(scene.said("plan", "-o", "json", *arguments))
    return plan


def weights(scene: Scene) -> dict[str, int]:
    return {name: entry["weight"] for name, entry in scene.gateway.backends().items()}


def wait_for_weight(scene: Scene, weight: int, *, timeout_s: float = 10) -> None:
    scene.gateway.wait_until(lambda: weights(scene)["b1"] == weight, timeout_s=timeout_s)


def maps_of(scene: Scene) -> dict[str, str]:
    """Return what the kernel holds of rings and backends, by the names of their pins."""
    pins = Path("/sys/fs/bpf/lb-xdp", scene.gateway.name)
    found = sorted(path for name in ("rings", "backends") for path in pins.glob(f"*/gen-*/{name}"))
    assert len(found) == 2
    dump = ("bpftool", "-j", "map", "dump", "pinned")
    return {str(path): scene.gateway.host.run(*dump, str(path)).stdout for path in found}


def picture(scene: Scene) -> tuple[Any, ...]:
    """Return all that a refused change must leave as it is: what forwards, and what is on disk."""
    status = scene.gateway.status()
    backends = [
        [backend[key] for key in ("name", "state", "admin", "weight", "slots")]
        for service in status["services"]
        for backend in service["backends"]
    ]
    state = Path("/var/lib/lb-xdp", scene.gateway.name)
    kept = {path.name: path.read_text() for path in sorted(state.glob("*.json"))}
    datapath = status["datapath"]
    facts = (datapath["programs"], datapath["generation"], status["change"], status["last_reload"])
    return backends, kept, facts, maps_of(scene), status["config_source"], status["notices"]


def kinds(scene: Scene) -> list[str]:
    """Return the kinds of all events, the oldest first."""
    lines = scene.said("events", "-o", "json", "-n", "1000").splitlines()
    return [json.loads(line)["kind"] for line in lines]


def test_a_reload_moves_what_the_plan_said(lab: Lab) -> None:
    """Slots and backends of the plan are those of the reload; the plan leaves no trace."""
    scene = scene_of(lab)
    before = picture(scene)
    changed = reweighted(scene.config)
    changed["pools"][0]["backends"].pop(2)
    changed["services"].append(
        {"name": "second", "vip": "203.0.113.11", "port": 7000, "protocol": "tcp", "mode": "nat"}
        | {"pool": "web"}
    )
    scene.gateway.write(changed)
    plan = planned(scene)
    assert picture(scene) == before
    web, second = plan["services"]
    assert (web["name"], web["change"], web["removed"]) == ("web", "changed", ["b3"])
    assert web["weights"] == [{"backend": "b1", "before": 100, "after": 500}]
    assert (second["name"], second["change"]) == ("second", "added")
    assert (plan["generation"], plan["refused"], plan["not_up"]) == (True, None, [])
    assert 0 < web["moved_slots"] < web["slots"] == 65_537
    moved = web["moved_slots"]
    assert scene.said("reload") == f"2 services; {moved} slots moved\n"
    assert planned(scene)["services"] == []
    assert "nothing would change" in scene.said("plan")


def test_an_override_counts_in_a_plan(lab: Lab) -> None:
    """A backend that is drained by hand has no slots, so its weight in the file moves none."""
    scene = scene_of(lab)
    scene.said("backend", "drain", "web/b1")
    scene.gateway.write(reweighted(scene.config))
    (web,) = planned(scene)["services"]
    assert (web["weights"][0]["after"], web["moved_slots"]) == (500, 0)
    assert scene.said("reload") == "1 service; 0 slots moved\n"


def test_what_a_reload_would_refuse_the_plan_refuses(lab: Lab) -> None:
    """By the same words, with what differs all the same; both leave everything as it is."""
    scene = scene_of(lab)
    before = picture(scene)
    for key, value, words in (
        ("interfaces", ["nowhere"], "no interface nowhere"),
        ("flow_table", {"entries": 4096}, "run --replace"),
        ("metrics", {"listen": "127.0.0.1:9999"}, "restart the daemon for that"),
    ):
        changed = copy.deepcopy(scene.config)
        changed["gateway"][key] = value
        scene.gateway.write(changed)
        plan = scene.gateway.command("plan", check=False)
        assert (plan.returncode, words in plan.stderr) == (1, True), plan.stderr
        assert f"~ gateway.{key}" in plan.stdout
    assert picture(scene) == before
    refused = scene.gateway.command("reload", check=False)
    assert (refused.returncode, "restart the daemon for that" in refused.stderr) == (1, True)


def test_a_new_backend_that_is_down_is_told(lab: Lab) -> None:
    """The plan has probed it; who would have its slots meanwhile counts in what moves."""
    scene = scene_of(lab)
    changed = copy.deepcopy(scene.config)
    pool = changed["pools"][0]
    pool["backends"].append({"name": "b4", "host": "10.2.0.11", "port": 9})
    pool["health"] = {"type": "tcp"}
    scene.gateway.write(changed)
    plan = planned(scene)
    assert plan["not_up"] == ["web/b4"]
    assert "without slots: web/b4" in scene.said("plan")
    assert scene.said("reload") == f"1 service; {plan['moved_slots']} slots moved\n"
    assert scene.gateway.backends()["b4"]["slots"] == 0


def test_too_much_is_refused_and_nothing_changes(lab: Lab) -> None:
    """--max-moved compares with the slots that would move; so does plan, and --dry-run is one."""
    scene = scene_of(lab)
    scene.gateway.write(reweighted(scene.config))
    before, at_most = picture(scene), ("--max-moved", "5%")
    for command in ("reload", "plan"):
        refused = scene.gateway.command(command, *at_most, check=False)
        assert (refused.returncode, "5.0%" in refused.stderr) == (1, True)
    dry = scene.gateway.command("reload", "--dry-run", *at_most, check=False)
    assert (dry.returncode, "slots: " in dry.stdout) == (1, True)
    assert picture(scene) == before
    assert kinds(scene)[-1] == "reload_refused"
    scene.said("reload", "--max-moved", "60%")
    assert weights(scene)["b1"] == 500


def test_what_is_not_confirmed_is_undone(lab: Lab) -> None:
    """After its time the former configuration is in force, though the file says otherwise."""
    scene = scene_of(lab)
    before = scene.gateway.backends()
    scene.gateway.write(reweighted(scene.config))
    wait = f"{pace.lasting(4):g}s"
    assert f"undone in {wait[:-1]} s unless confirmed" in scene.said("reload", "--confirm", wait)
    assert weights(scene)["b1"] == 500
    assert "waits to be confirmed" in scene.said("status")
    other = scene.gateway.command("reload", check=False)
    assert (other.returncode, "lb-xdp confirm" in other.stderr) == (1, True)
    scene.gateway.reload()
    success = "lb_xdp_config_last_reload_success"
    scene.gateway.wait_until(lambda: not scene.gateway.metric(success))
    assert weights(scene)["b1"] == 500
    wait_for_weight(scene, 100)
    after = scene.gateway.backends()
    assert {name: one["slots"] for name, one in after.items()} == {
        name: one["slots"] for name, one in before.items()
    }
    status = scene.gateway.status()
    assert (status["change"]["rolled_back"], kinds(scene)[-1]) == (True, "rolled_back")
    assert any("`lb-xdp reload` loads that" in notice for notice in status["notices"])
    scene.gateway.kill()
    scene.gateway.start()
    assert weights(scene)["b1"] == 100
    scene.said("reload")
    assert (weights(scene)["b1"], scene.gateway.status()["change"]) == (500, None)


def test_a_confirmed_change_stays(lab: Lab) -> None:
    """confirm ends the waiting, rollback undoes at once; where nothing waits both say so."""
    scene = scene_of(lab)
    scene.gateway.write(reweighted(scene.config))
    wait = f"{pace.lasting(2):g}s"
    scene.said("reload", "--confirm", wait)
    assert "is confirmed" in scene.said("confirm")
    for command in ("confirm", "rollback"):
        late = scene.gateway.command(command, check=False)
        assert (late.returncode, "no change waits" in late.stderr) == (1, True)
    time.sleep(float(wait[:-1]) + _PAUSE_S)  # the time that was given is over, and nothing happens
    assert (weights(scene)["b1"], scene.gateway.status()["change"]) == (500, None)
    scene.gateway.write(reweighted(scene.config, 700))
    scene.said("reload", "--confirm", "10min")
    assert "in force again" in scene.said("rollback")
    assert weights(scene)["b1"] == 500
    decided = [kind for kind in kinds(scene) if kind in {"confirmed", "rolled_back"}]
    assert decided == ["confirmed", "rolled_back"]


@pytest.mark.parametrize("over", [True, False], ids=["over", "not over"])
def test_a_killed_daemon_undoes_what_it_promised(lab: Lab, *, over: bool) -> None:
    """Killed while a change waits: started later it goes back at once, earlier it still does."""
    scene = scene_of(lab)
    line = scene.line()
    first = line.ask()
    scene.gateway.write(reweighted(scene.config))
    wait_s = pace.lasting(2 if over else 8)
    asked_s = time.monotonic()
    scene.said("reload", "--confirm", f"{wait_s:g}s")
    scene.gateway.kill()
    if over:
        time.sleep(max(wait_s - (time.monotonic() - asked_s), 0) + _PAUSE_S)
    scene.gateway.start()
    if not over:
        assert weights(scene)["b1"] == 500
        assert scene.gateway.status()["change"]["confirm_by_timestamp_s"] > time.time() - wait_s
    wait_for_weight(scene, 100, timeout_s=20)
    assert "rolled_back" in kinds(scene)
    assert line.ask() == first


@pytest.mark.parametrize("over", [True, False], ids=["over", "not over"])
def test_a_file_broken_meanwhile_breaks_no_promise(lab: Lab, *, over: bool) -> None:
    """Killed while a change waits, and the file spoilt: the start goes on without it, loudly."""
    scene = scene_of(lab)
    gateway = scene.gateway
    gateway.write(reweighted(scene.config))
    wait_s = pace.lasting(1 if over else 8)
    scene.said("reload", "--confirm", f"{wait_s:g}s")
    gateway.kill()
    gateway.write("gateway: {name: [\n")
    time.sleep(wait_s if over else 0)
    gateway.start()
    if not over:
        assert weights(scene)["b1"] == 500
        assert "waits to be confirmed" in scene.said("status")
    wait_for_weight(scene, 100, timeout_s=20)
    assert {"reload_refused", "rolled_back"} <= set(kinds(scene))
    for life in ("this one", "the next"):
        status = gateway.status()
        assert (status["change"]["rolled_back"], status["last_reload"]["success"]) == (True, False)
        assert str(gateway.config_path) in status["last_reload"]["errors"][0], life
        gateway.kill()
        gateway.start()
    assert weights(scene)["b1"] == 100
    assert "has mistakes" in gateway.log()

    gateway.write(reweighted(scene.config, 300))
    scene.said("reload")
    assert (weights(scene)["b1"], gateway.status()["last_reload"]["success"]) == (300, True)
    gateway.kill()
    gateway.write("gateway: {name: [\n")
    gateway.start(wait_s=0)
    assert gateway.wait() == 3, "nothing waits and nothing was undone: refused"


@pytest.mark.parametrize("killed", [False, True], ids=["alive", "killed"])
def test_a_roll_back_that_is_impossible_is_told_and_tried_again(lab: Lab, *, killed: bool) -> None:
    """The host refuses the former configuration for a while; then it is in force after all.

    A daemon that starts meanwhile goes on with what was in force.
    """
    scene = scene_of(lab)
    gateway = scene.gateway
    host = gateway.host
    host.ip("link add spare type veth peer name eraps", "link set spare up")
    wider = copy.deepcopy(scene.config)
    wider["gateway"]["interfaces"].append("spare")
    gateway.take(wider)
    gateway.write(scene.config)
    wait_s = pace.lasting(2)
    scene.said("reload", "--confirm", f"{wait_s:g}s")
    if killed:
        gateway.kill()
        time.sleep(wait_s)
    host.ip("link del spare")
    if killed:
        gateway.start()
    gateway.wait_until(
        lambda: any("cannot be undone" in notice for notice in gateway.status()["notices"])
    )
    assert "trouble" in kinds(scene)
    assert "no interface spare" in gateway.log()
    host.ip("link add spare type veth peer name eraps", "link set spare up")
    gateway.wait_until(
        lambda: "spare" in {p["interface"] for p in gateway.status()["datapath"]["programs"]},
        timeout_s=20,
    )
    assert kinds(scene)[-1] == "rolled_back"


def test_a_file_by_hand_is_in_force_until_the_daemons_own_changes(lab: Lab) -> None:
    """A restart goes on with it; another file of the daemon's is another wish, and counts."""
    scene = scene_of(lab)
    gateway = scene.gateway
    other = gateway.config_path.with_name("other.yaml")
    gateway.write(reweighted(scene.config))
    other.write_text(gateway.config_path.read_text())
    gateway.write(scene.config)
    scene.said("reload", str(other))
    assert gateway.status()["config_source"] == str(other)
    gateway.kill()
    other.unlink()
    gateway.start()
    assert weights(scene)["b1"] == 500
    gateway.kill()
    gateway.write(reweighted(scene.config, 300))
    gateway.start()
    assert (weights(scene)["b1"], gateway.status()["change"]) == (300, None)


def lines_to(scene: Scene, count: int) -> tuple[list[Line], dict[str, int]]:
    """Open connections, and count by backend where they went."""
    lines = [scene.line() for _ in range(count)]
    found: dict[str, int] = {}
    for line in lines:
        name = line.ask()
        found[name] = found.get(name, 0) + 1
    return lines, found


def test_flows_are_those_that_there_are(lab: Lab) -> None:
    """Real connections are listed and counted by backend and client; a plan counts them too."""
    scene = scene_of(lab, algorithm="least_connections")
    lines, where = lines_to(scene, 12)
    shown = json.loads(scene.said("flows", "-o", "json"))
    assert {one["backend"]: one["open"] for one in shown["backends"]} == where
    assert (shown["matched"], shown["not_recorded"]) == (12, [])
    assert {flow["state"] for flow in shown["flows"]} == {"open"}
    (client,) = shown["clients"]
    assert (client["client"], client["open"]) == (shown["flows"][0]["client"], 12)
    table = scene.said("flows", "--backend", "b1", "--limit", "1")
    assert f"1 of {where['b1']} flows shown; 12 records in all" in table
    none = json.loads(scene.said("flows", "--client", "192.0.2.0/24", "-o", "json"))
    assert (none["matched"], none["flows"]) == (0, [])
    unknown = scene.gateway.command("flows", "--service", "wbe", check=False)
    assert (unknown.returncode, "did you mean web?" in unknown.stderr) == (1, True)

    changed = copy.deepcopy(scene.config)
    changed["services"][0]["vip"] = "203.0.113.12"
    scene.gateway.write(changed)
    gone = next(one for one in planned(scene)["services"] if one["change"] == "removed")
    assert (gone["flows"]["basis"], gone["flows"]["broken"]) == ("recorded", 12)
    assert [line.ask() for line in lines]
    scene.gateway.write(reweighted(scene.config))
    (web,) = planned(scene)["services"]
    assert (web["flows"]["basis"], web["flows"]["broken"]) == ("recorded", 0)
    assert 0 <= web["flows"]["moved"] <= 12


def test_flows_without_records_are_estimated(lab: Lab) -> None:
    """Of a service that the ring alone spreads, the plan takes its counters, and says so."""
    scene = scene_of(lab)
    time.sleep(pace.lasting(1))  # what began is told as so many in so long: that takes a second
    lines_to(scene, 20)
    changed = copy.deepcopy(scene.config)
    changed["services"][0]["vip"] = "203.0.113.12"
    scene.gateway.write(changed)
    gone = next(one for one in planned(scene)["services"] if one["change"] == "removed")
    assert (gone["flows"]["basis"], gone["flows"]["broken"]) == ("estimated", 20)
    assert "20 flows that began in the last" in gone["flows"]["how"]
    assert "about 20 would break" in scene.said("plan")


def test_lists_and_completion_ask_the_daemon(lab: Lab) -> None:
    """Services and pools in a line each; a shell completes the names that there are."""
    scene = scene_of(lab)
    assert "203.0.113.10:7000/tcp" in scene.said("service", "list")
    assert scene.said("pool", "list").splitlines()[1].split() == ["web", "3", "3", "web"]
    assert "web/b2" in scene.said("pool", "show", "web")
    words = f"lb-xdp --name {scene.gateway.name} backend drain web/b"
    asked = ("_LB_XDP_COMPLETE=bash_complete", "COMP_CWORD=5", f"COMP_WORDS={words}")
    found = scene.gateway.host.run("env", *asked, COMMAND).stdout
    assert found.split() == [f"plain,web/{name}" for name in ("b1", "b2", "b3")]
