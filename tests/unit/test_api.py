"""The control API: both ends over a real unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lb_xdp import __version__
from lb_xdp.api.client import Client, answering, socket_of
from lb_xdp.api.connection import SocketFile
from lb_xdp.api.listener import open_socket
from lb_xdp.api.received import decode_snapshot
from lb_xdp.api.server import serve
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.errors import (
    AlreadyRunningError,
    CompileError,
    ConfigProblem,
    DaemonUnreachableError,
    HostError,
    InvalidConfigError,
    LbError,
)
from tests.support.controller import FakeController
from tests.support.snapshots import SNAPSHOT, TROUBLED, WEB1, as_json

PROBLEMS = (
    ConfigProblem("lb.yaml", 3, 5, "pools[0]", "name is missing"),
    ConfigProblem("lb.yaml", 9, 1, "", "unknown key"),
)

# A daemon in a process of its own: it answers like ours and ends a moment after its answer.
DAEMON = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen()
print("ready", flush=True)
data = b""
while not data.startswith(b"POST"):
    peer, _ = listener.accept()
    data = peer.recv(4096)
peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
peer.close(); time.sleep(0.2)
"""


@asynccontextmanager
async def daemon(path: Path, controller: FakeController) -> AsyncIterator[Client]:
    """Serve the controller and give a client; the client's calls block, so run them in a thread."""
    async with serve(path, controller):
        yield Client(path)


async def raw(path: Path, method: str, target: str) -> tuple[int, dict[str, Any], str]:
    """Return status, JSON and Allow header of one request, as any HTTP client sees them."""
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://localhost{target}") as answer,
    ):
        return answer.status, await answer.json(), answer.headers.get("Allow", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.mark.parametrize("snapshot", [SNAPSHOT, TROUBLED])
async def test_status_arrives_whole(path: Path, snapshot: Any) -> None:
    """What the controller shows is what a command gets, field by field."""
    async with daemon(path, FakeController(shown=snapshot)) as client:
        assert await asyncio.to_thread(client.snapshot) == snapshot


async def test_status_has_the_promised_keys(path: Path) -> None:
    """Programs and backends have the keys of the contract, enums are plain words."""
    async with serve(path, FakeController()):
        _, document, _ = await raw(path, "GET", "/v1/status")
    assert document["datapath"]["programs"][0] == {"interface": "eth0", "mode": "native", "id": 51}
    backend = document["services"][0]["backends"][0]
    promised = ["name", "address", "state", "admin", "health", "weight"]
    assert list(backend)[:6] == promised
    assert [backend[key] for key in promised] == [
        *("web1", "10.0.0.11:8080", "up", "ready", "up", 100)
    ]
    assert {"packets", "bytes", "flows"} <= backend.keys()


async def test_ping_touches_nothing(path: Path) -> None:
    """A ping says who is there without asking the controller."""
    controller = FakeController()
    async with daemon(path, controller) as client:
        assert await asyncio.to_thread(client.ping) == {"pid": os.getpid(), "version": __version__}
    assert controller.calls == []


async def test_reload_and_detach_reach_the_controller(path: Path) -> None:
    """Both are done once and answered; a reload's summary comes back."""
    controller = FakeController()
    async with daemon(path, controller) as client:
        done = await asyncio.to_thread(client.reload)
        assert "1 backend added" in done["summary"]
        await asyncio.to_thread(client.detach)
    assert controller.calls == ["reload", "detach"]


def test_detach_waits_for_the_daemon_to_end(path: Path) -> None:
    """When detach returns the daemon's process has ended, so that its lock is free."""
    command = [sys.executable, "-c", DAEMON, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        Client(path).detach()
        assert process.poll() == 0


async def test_refused_configuration_keeps_its_problems(path: Path) -> None:
    """A refused reload is a 422 with each problem, and raises the same error at the client."""
    controller = FakeController(refusal=InvalidConfigError(PROBLEMS))
    async with daemon(path, controller) as client:
        status, document, _ = await raw(path, "POST", "/v1/reload")
        with pytest.raises(InvalidConfigError) as caught:
            await asyncio.to_thread(client.reload)
    assert status == 422
    assert document["errors"][0]["line"] == 3
    assert (document["kind"], document["exit_code"]) == ("InvalidConfigError", 3)
    assert caught.value.problems == PROBLEMS


async def test_other_refusals_keep_message_and_exit_code(path: Path) -> None:
    """Any of our errors is a 500 in JSON and reaches the user with its message and exit code."""
    controller = FakeController(refusal=CompileError("expected ;", file="lb_xdp.c", line=7))
    async with daemon(path, controller) as client:
        status, document, _ = await raw(path, "GET", "/v1/status")
        with pytest.raises(LbError, match=r"lb_xdp\.c:7: expected ;") as caught:
            await asyncio.to_thread(client.status)
    assert status == 500
    assert document == {
        "error": "lb_xdp.c:7: expected ;",
        "kind": "CompileError",
        "exit_code": 1,
        "place": "",
        "errors": [],
    }
    assert caught.value.exit_code == 1


async def test_wrong_paths_and_methods_are_json_too(path: Path) -> None:
    """404 and 405 have the form of every other error, and 405 says what is allowed."""
    async with serve(path, FakeController()):
        status, document, _ = await raw(path, "GET", "/v1/nothing")
        assert (status, document["error"]) == (404, "GET /v1/nothing: not found")
        status, document, allow = await raw(path, "GET", "/v1/reload")
        assert (status, document["exit_code"], allow) == (405, 1, "POST")


async def test_socket_is_closed_to_others_and_removed(path: Path) -> None:
    """Only owner and group may connect, and nothing is left when the daemon ends."""
    async with serve(path, FakeController()):
        mode = await asyncio.to_thread(path.stat)
    assert stat.S_IMODE(mode.st_mode) == 0o660
    assert not await asyncio.to_thread(path.exists)


async def test_stale_socket_is_replaced(path: Path) -> None:
    """The socket of a daemon that was killed does not keep the next one from starting."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with daemon(path, FakeController()) as client:
        await asyncio.to_thread(client.ping)


async def test_live_socket_is_not_taken(path: Path) -> None:
    """A second daemon is refused and the first goes on answering on its socket."""
    async with daemon(path, FakeController()) as client:
        with pytest.raises(AlreadyRunningError, match="answers on"):
            open_socket(path)
        await asyncio.to_thread(client.ping)


def test_other_files_are_not_replaced(path: Path) -> None:
    """A file that is no socket is left alone and named."""
    path.write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        open_socket(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/api.sock", "x" * 120])
def test_impossible_socket_paths_name_the_remedy(tmp_path: Path, name: str) -> None:
    """A missing directory and a path too long for a socket are refused with the key to change."""
    with pytest.raises(HostError, match=r"gateway\.api\.socket"):
        open_socket(tmp_path / name)


def test_nobody_there_names_the_remedy(tmp_path: Path) -> None:
    """Without a daemon the error says how to see it and how to start it."""
    client = Client(socket_of("gw1", tmp_path))
    remedy = r"systemctl status lb-xdp@gw1; start it with: lb-xdp run -c FILE"
    with pytest.raises(DaemonUnreachableError, match=remedy) as caught:
        client.status()
    assert caught.value.exit_code == 4
    with pytest.raises(DaemonUnreachableError, match=remedy):
        client.detach()


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (PermissionError(), "run the command with sudo"),
        (TimeoutError(), "journalctl"),
        (ConnectionRefusedError(), "lb-xdp run -c FILE"),
    ],
)
def test_the_remedy_fits_the_cause(path: Path, cause: Exception, remedy: str) -> None:
    """A closed socket, a daemon that hangs and one that is gone each have their own remedy."""
    assert remedy in str(SocketFile(path).unreachable(cause))


async def test_a_stranger_on_the_socket_is_not_a_daemon(path: Path) -> None:
    """What does not speak HTTP is reported, not trusted and not waited for."""

    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.close()

    server = await asyncio.start_unix_server(babble, path)
    async with server:
        with pytest.raises(DaemonUnreachableError, match="no answer on"):
            await asyncio.to_thread(Client(path).ping)


@pytest.mark.parametrize("ask", [Client.pools, Client.names, Client.overrides, Client.confirm])
async def test_an_answer_without_what_was_asked_is_reported(
    path: Path, ask: Callable[[Client], object]
) -> None:
    """Another server's 200, or another version's, is an error in words."""

    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_unix_server(agree, path)
    async with server:
        with pytest.raises(LbError, match="another version"):
            await asyncio.to_thread(ask, Client(path))


async def test_only_answering_daemons_are_found(tmp_path: Path) -> None:
    """Of several sockets those of live daemons are found, by name and in order."""
    for name in ("gw2", "gw1", "dead"):
        (tmp_path / name).mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_of("dead", tmp_path)))
    first, second = (socket_of(name, tmp_path) for name in ("gw1", "gw2"))
    async with serve(second, FakeController()), serve(first, FakeController()):
        found = await asyncio.to_thread(answering, tmp_path)
    assert list(found.items()) == [("gw1", first), ("gw2", second)]


def decoded_of(document: object) -> Snapshot:
    return decode_snapshot(json.dumps(document).encode())


def test_json_keeps_the_order_and_comes_back() -> None:
    """Snapshot to JSON and back is the same value; the keys stand in the fields' order."""
    document = as_json(SNAPSHOT)
    assert list(document)[:3] == ["gateway", "version", "pid"]
    assert decoded_of(document) == SNAPSHOT


def test_neighbouring_versions_understand_each_other() -> None:
    """A key more or an optional key less is no error; a required key less is explained."""
    document = as_json(SNAPSHOT)
    backend = document["services"][0]["backends"][0]
    backend["invented_later"] = 1
    del backend["probe_duration_s"]
    decoded = decoded_of(document)
    assert decoded.services[0].backends[0] == replace(WEB1, probe_duration_s=None)
    del backend["state"]
    with pytest.raises(LbError, match="does not fit this command's version"):
        decoded_of(document)
    with pytest.raises(LbError, match="does not fit"):
        decode_snapshot(b"[1]")
