"""The API of a real gateway: who may use it, over what, and what a refused call leaves behind."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support import pace
from tests.support.api_fuzz import Request, requests
from tests.support.certificates import Authority
from tests.support.described import check, send
from tests.support.gateway import COMMAND
from tests.support.lab import Host, Lab
from tests.support.pinned import pinned_state
from tests.support.scenes import Scene, web_scene
from tests.support.unit_file import confined

SOCKET = Path("/run/lb-xdp/gw1/api.sock")
GATEWAY = "10.1.0.1"
PORT = 8443
READ, WRITE = "reader" * 6, "writer" * 6
GROUP = "games"
RACERS = 8
NAMES = {"service": ["web"], "pool": ["web"], "backend": ["b1", "b2", "b3"]}
TIMES = int(os.environ.get("LB_XDP_API_FUZZ", "1000"))


def curl(host: Host, *arguments: str, by: tuple[str, ...] = ()) -> tuple[int, Any]:
    """Return the status and the JSON of what curl gets; status 0 and its words where it fails."""
    options = ("--silent", "--show-error", "--max-time", f"{pace.lasting(20):g}")
    done = host.run(*by, "curl", *options, "--write-out", "\n%{http_code}", *arguments, check=False)
    if done.returncode:
        return 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def over_socket(scene: Scene, method: str, target: str, *arguments: str) -> tuple[int, Any]:
    """Ask as root, on the gateway."""
    where = ("--unix-socket", str(SOCKET), f"http://localhost{target}")
    return curl(scene.network.gateway, *where, "--request", method, *arguments)


def test_a_group_may_use_the_socket(lab: Lab) -> None:
    """Whoever is in it may do all, under its own name; nobody else may even look.

    With the umask and the capabilities of the unit.
    """
    scene = web_scene(lab, gateway={"api": {"group": GROUP}})
    gateway = scene.gateway
    gateway.terminate()
    gateway.start(by=("sh", "-c", 'umask 027; exec "$@"', "sh", *confined()))
    assert (SOCKET.stat().st_mode & 0o777, SOCKET.group()) == (0o660, GROUP)
    target = ("--unix-socket", str(SOCKET), "http://localhost/v1/overrides/web/b1")
    change = (*target, "--request", "PUT", "--data", '{"weight": 7, "reason": "tired"}')
    identity = ("setpriv", "--reuid=nobody", "--clear-groups")
    status, words = curl(scene.network.gateway, *change, by=(*identity, "--regid=nogroup"))
    assert status == 0, words
    status, answer = curl(scene.network.gateway, *change, by=(*identity, f"--regid={GROUP}"))
    assert status == 200, answer
    (held,) = answer["overrides"]
    assert held["author"] == "nobody (uid 65534)"
    assert gateway.backends()["b1"]["weight"] == 7


@pytest.fixture
def secured(lab: Lab) -> tuple[Scene, Path, Path]:
    """Return a gateway with the API over TLS, its authority, and a folder for tokens."""
    authority = Authority(lab.directory / "ca")
    certificate, key = authority.sign("gw1", f"IP:{GATEWAY}")
    tokens = lab.directory / "tokens"
    sums = (("grafana", "read", READ), ("ann", "write", WRITE))
    tokens.write_text("".join(f"{n}:{s}:{sha256(t.encode()).hexdigest()}\n" for n, s, t in sums))
    for file in (key, tokens):
        file.chmod(0o600)
    api = {
        "listen": f"0.0.0.0:{PORT}",
        "certificate": str(certificate),
        "key": str(key),
        "tokens": str(tokens),
    }
    return web_scene(lab, gateway={"api": api}), authority.certificate, tokens


def test_tls_and_tokens(secured: tuple[Scene, Path, Path]) -> None:
    """From another host, with the real curl: who is not known learns nothing, a reader looks."""
    scene, authority, tokens = secured

    def ask(token: str, method: str = "GET", *arguments: str, ca: Path = authority) -> Any:
        bearer = ("--header", f"Authorization: Bearer {token}") if token else ()
        target = "/v1/status" if method == "GET" else "/v1/overrides/web/b1"
        url = f"https://{GATEWAY}:{PORT}{target}"
        where = ("--cacert", str(ca), "--request", method, url)
        return curl(scene.client, *where, *bearer, *arguments)

    drain = ("PUT", "--data", '{"admin": "drain"}')
    assert ask("")[0] == 401
    assert ask(WRITE[:-1])[0] == 401
    assert ask(READ)[1]["gateway"] == "gw1"
    assert ask(READ, *drain)[0] == 403
    assert not scene.gateway.backends()["b1"]["overrides"]
    status, answer = ask(WRITE, *drain)
    assert (status, answer["overrides"][0]["author"]) == (200, "token ann")
    stranger = Authority(authority.parent / "stranger").certificate
    assert "SSL" in ask(READ, ca=stranger)[1]
    plain = ("--http0.9", f"http://{GATEWAY}:{PORT}/v1/status")
    assert curl(scene.client, *plain)[0] in {0, 400}
    tokens.write_text("")
    assert ask(WRITE, *drain)[0] == 401
    assert scene.gateway.metric("lb_xdp_api_strangers_total") == 3
    asked_by = f"peer={scene.sources[0]}"
    assert f"refused a request: a token is needed: Authorization: Bearer TOKEN {asked_by}" in (
        scene.gateway.log()
    )
    scene.gateway.wait_until(lambda: f"the token is not known {asked_by}" in scene.gateway.log())


def test_commands_reach_another_host(secured: tuple[Scene, Path, Path]) -> None:
    """``lb-xdp --url`` does from the client's host what it does on the gateway."""
    scene, authority, _ = secured
    token = authority.parent / "token"
    token.write_text(WRITE)
    where = ("--url", f"https://{GATEWAY}:{PORT}", "--token-file", str(token))
    trusted = (*where, "--ca", str(authority))
    said = scene.client.run(COMMAND, *trusted, "backend", "drain", "web/b1").stdout
    assert said == "web/b1: drain\n"
    assert "drain by token ann" in scene.client.run(COMMAND, *trusted, "backend", "show").stdout
    refused = scene.client.run(COMMAND, *where, "status", check=False)
    assert (refused.returncode, "--ca FILE" in refused.stderr) == (4, True)
    scene.client.run(COMMAND, *trusted, "detach", "--yes")
    assert scene.gateway.wait() == 0
    assert not scene.program_ids()


def test_of_changes_that_saw_the_same_one_is_made(lab: Lab) -> None:
    """Several at once with one ETag: the first has its turn, the others get 412, again and again.

    A change after that needs the new tag, or none.
    """
    scene = web_scene(lab)
    for attempt in range(5):
        seen = send(SOCKET, "GET", "/v1/overrides").headers["etag"]

        def race(number: int, seen: str = seen, attempt: int = attempt) -> int:
            body = json.dumps({"weight": 1 + attempt * RACERS + number}).encode()
            target = f"/v1/overrides/web/b{1 + number % 3}"
            return send(SOCKET, "PUT", target, body, {"If-Match": seen}).status

        with ThreadPoolExecutor(RACERS) as racers:
            statuses = Counter(racers.map(race, range(RACERS)))
        assert statuses == {200: 1, 412: RACERS - 1}
    tag = '"0123456789abcdef"'
    stale = ("--header", f"If-Match: {tag}")
    before = state(scene)
    for method, target in (
        ("DELETE", "/v1/overrides"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/detach"),
    ):
        status, answer = over_socket(scene, method, target, *stale)
        assert (status, answer["kind"]) == (412, "StaleError")
    assert state(scene) == before
    assert over_socket(scene, "DELETE", "/v1/overrides")[0] == 200


def state(scene: Scene) -> dict[str, Any]:
    """Return all that a refused call must leave alone: what was asked, what holds, what is pinned.

    Counters, times and the journal's own count are no state of that kind.
    """
    overrides = send(SOCKET, "GET", "/v1/overrides")
    status = send(SOCKET, "GET", "/v1/status").document
    kept = ("name", "address", "state", "admin", "health", "weight", "slots", "overrides")
    return {
        "tag": overrides.headers["etag"],
        "overrides": overrides.document,
        "backends": [
            (service["name"], {key: backend[key] for key in kept})
            for service in status["services"]
            for backend in service["backends"]
        ],
        "datapath": [status["datapath"][key] for key in ("generation", "programs", "layout")],
        "file": scene.gateway.config_path.read_text(),
        "pins": pinned_state(),
    }


def settled(scene: Scene) -> dict[str, Any]:
    """Return the state once nothing is under way any more."""
    found = state(scene)
    while (later := state(scene)) != found:
        found = later
    return found


def take_back(path: str) -> None:
    """Have the file hold again, and nothing beside it."""
    send(SOCKET, "DELETE", "/v1/overrides")
    if path == "/v1/reload":
        send(SOCKET, "POST", "/v1/rollback")  # refused where nothing waits
        assert send(SOCKET, "POST", "/v1/reload").status == 200


def variants(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the file, one with another weight, and some that are refused one way or another."""
    gateway, (pool,), services = config["gateway"], config["pools"], config["services"]
    first, *others = pool["backends"]
    heavier = [{**pool, "backends": [first | {"weight": 7}, *others]}]
    documents = (
        config,
        config | {"pools": heavier},
        config | {"pools": heavier, "services": [services[0] | {"mode": "dsr", "port": 81}]},
        config | {"gateway": gateway | {"interfaces": ["eth9"]}},
        config | {"gateway": gateway | {"name": "gw2"}},
        config | {"services": []},
    )
    return tuple(map(json.dumps, documents))  # JSON is YAML


def test_no_request_is_a_fault_and_refused_ones_change_nothing(lab: Lab) -> None:
    """Requests made from the description that the daemon serves, to the daemon at work.

    Never a 5xx, always an answer as described, and without a 200 not a byte of rings, records and
    overrides is another. What was accepted is taken back, so that its end by time is no change.
    """
    # No slot settles by itself, and no probe decides anything.
    unrecorded = {"session": {"affinity": "none", "flows": "none"}}
    scene = web_scene(lab, health="none", service=unrecorded)
    pid = scene.gateway.pid
    seen: Counter[int] = Counter()
    assert over_socket(scene, "PUT", "/v1/overrides/web/b1", "--data", '{"weight": 5}')[0] == 200
    asked = settled(scene)
    assert over_socket(scene, "DELETE", "/v1/overrides")[0] == 200
    present = {"state": settled(scene)}
    for part in ("tag", "overrides", "backends", "pins"):  # else no change would be seen at all
        assert asked[part] != present["state"][part]

    @settings(
        max_examples=TIMES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(request=requests(NAMES, variants(scene.config)))
    def ask(request: Request) -> None:
        method, path, target, body, headers = request
        if path == "/v1/detach":
            headers = headers | {"If-Match": '"another-day"'}
        answer = send(SOCKET, method, target, body, headers)
        seen[answer.status] += 1
        assert answer.status < 500, (request, answer)
        if method != "HEAD":
            check(method, path, answer)
        if answer.status == 200 and method in {"PUT", "POST", "DELETE"}:
            take_back(path)
            present["state"] = settled(scene)
        else:
            assert state(scene) == present["state"], (request, answer)

    ask()
    assert scene.gateway.pid == pid
    assert set(scene.ask()) == {"b1", "b2", "b3"}
    assert {200, 404, 405, 412, 422} <= seen.keys(), seen
    assert "Traceback" not in scene.gateway.log()
