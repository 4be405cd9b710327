"""``lb-xdp backend`` and ``lb-xdp override``: what they ask for, print and refuse."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lb_xdp.api.client import socket_of
from lb_xdp.api.server import serve
from lb_xdp.cli import main
from lb_xdp.cli.draining import WHY_PERHAPS
from lb_xdp.cli.override_table import render
from lb_xdp.cli.target import Target
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin, BackendStatus, OverrideStatus, Snapshot, State
from lb_xdp.errors import UnknownNameError
from tests.support.controller import FakeController
from tests.support.snapshots import NOW_S, SNAPSHOT, WEB, WEB1, as_json

ME = f"{pwd.getpwuid(os.getuid()).pw_name} (uid {os.getuid()})"
DRAINED = replace(
    WEB1,
    state=State.DRAIN,
    admin=Admin.DRAIN,
    weight=0,
    configured_weight=100,
    detail="drain by ann (uid 1000): new disks",
    since_timestamp_s=NOW_S - 60,
    overrides=(
        OverrideStatus("admin", "drain", "ann (uid 1000)", "new disks", NOW_S - 60, NOW_S + 3600),
    ),
)

SCREEN = """\
web
  backend  address         state  admin  health  weight  recorded  connections
  web1     10.0.0.11:8080  drain  drain  up           0         7           12
  web1: drain for 1m0s: drain by ann (uid 1000): new disks
    file: weight 100; override: drain by ann (uid 1000), ends in 1h0m; now:
  drain, weight 0
"""


def showing(backend: BackendStatus, *, looked_timestamp_s: float = 0.0) -> Snapshot:
    """Return a snapshot with this backend first, as of a look at the flow table."""
    datapath = SNAPSHOT.datapath
    table = replace(datapath.flow_table, looked_timestamp_s=looked_timestamp_s)
    web = replace(WEB, backends=(backend, *WEB.backends[1:]))
    return replace(SNAPSHOT, services=(web,), datapath=replace(datapath, flow_table=table))


class Gateway:
    """A controller behind a socket, and commands to it."""

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory
        self.controller = FakeController()

    async def run(self, *arguments: str) -> Result:
        """Serve, and run a command in a thread, so that it can be answered in this one."""
        path = socket_of("gw1", self.run_directory)
        await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
        async with serve(path, self.controller):
            return await asyncio.to_thread(
                CliRunner(env={"COLUMNS": "80"}).invoke,
                main,
                arguments,
                prog_name="lb-xdp",
                obj=Target(None, None, self.run_directory),
            )


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "call", "printed"),
    [
        ("drain web/web1", f"set web/web1 admin drain by {ME}", "web/web1: drain"),
        ("disable web/web1", f"set web/web1 admin maint by {ME}", "web/web1: maint"),
        ("disable --cut web/web1", f"set web/web1 admin down by {ME}", "web/web1: down"),
        ("enable web/web1", f"set web/web1 admin ready by {ME}", "web/web1: ready"),
        (
            "weight web/[2001:db8::1]:80 50 --reason slow",
            f"set web/[2001:db8::1]:80 weight weight 50 by {ME}: slow",
            "web/[2001:db8::1]:80: ready, weight 50",
        ),
    ],
)
async def test_commands_ask_for_one_thing(
    gateway: Gateway, arguments: str, call: str, printed: str
) -> None:
    """Each is one change, and prints what then holds of the backend."""
    result = await gateway.run("backend", *arguments.split())
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{printed}\n", "")
    assert gateway.controller.calls == [call]


async def test_a_time_ends_what_was_asked_for(gateway: Gateway) -> None:
    """--expires takes a time from now on."""
    await gateway.run("backend", "drain", "web/web1", "--expires", "30min")
    (held,) = gateway.controller.held
    assert held.expires_timestamp_s == held.at_timestamp_s + 1800


async def test_the_files_weight_comes_back(gateway: Gateway) -> None:
    """``default`` ends the weight and leaves the admin state."""
    await gateway.run("backend", "weight", "web/web1", "50")
    await gateway.run("backend", "drain", "web/web1")
    result = await gateway.run("backend", "weight", "web/web1", "default")
    assert result.stdout == "web/web1: the file's weight\n"
    assert [held.subject.kind for held in gateway.controller.held] == [Kind.ADMIN]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("backend drain web1", "'web1' is no SERVICE/BACKEND, such as web/web1."),
        ("backend drain web/", "is no SERVICE/BACKEND"),
        ("backend drain web/a/b", "is no SERVICE/BACKEND"),
        ("backend drain web/web1 --expires soon", "'soon' is no time, such as 90s, 30min or 1h."),
        ("backend drain web/web1 --expires 0s", "'0s' is no time"),
        ("backend weight web/web1 heavy", "'heavy' is no weight"),
        ("backend weight web/web1 1.5", "'1.5' is no weight"),
        ("backend show wbe", "No service is named wbe. There are: web."),
        ("backend show web/web9", "No backend of web is named web9. There are: web1, web2"),
        ("override clear", "Give SERVICE/BACKEND or --all."),
        ("override clear web/web1 --all", "Give SERVICE/BACKEND or --all."),
    ],
)
async def test_what_is_not_understood_is_2(gateway: Gateway, arguments: str, words: str) -> None:
    """Nothing is asked of the gateway, and the message says what would be right."""
    result = await gateway.run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())
    assert gateway.controller.calls in ([], ["snapshot"])


async def test_a_refusal_is_1_in_the_daemons_words(gateway: Gateway) -> None:
    """What the gateway does not take is an error as of any command."""
    gateway.controller.refusal = UnknownNameError("there is no service wbe; services: web")
    result = await gateway.run("backend", "drain", "wbe/web1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: there is no service wbe; services: web\n"


async def test_backends_are_shown(gateway: Gateway) -> None:
    """One with its reasons, those of a service, or all; in JSON each with its service."""
    gateway.controller.shown = showing(DRAINED)
    result = await gateway.run("backend", "show", "web/web1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, SCREEN, "")
    for name in ([], ["web"]):
        shown = (await gateway.run("backend", "show", *name)).stdout
        assert "web2" in shown
        assert "connection refused" in shown
    result = await gateway.run("backend", "show", "-o", "json")
    sent = as_json(gateway.controller.shown)["services"][0]["backends"]
    assert json.loads(result.stdout) == [{"service": "web", **backend} for backend in sent]


class Draining(FakeController):
    """Shows one snapshot after the other, the last one for ever."""

    def __init__(self, *shown: Callable[[float], Snapshot]) -> None:
        super().__init__()
        self.later = list(shown)

    async def snapshot(self) -> Snapshot:
        asked_s = max(held.at_timestamp_s for held in self.held)
        step = self.later.pop(0) if len(self.later) > 1 else self.later[0]
        return step(asked_s)


def step(backend: BackendStatus, after_s: float) -> Callable[[float], Snapshot]:
    """Return a snapshot whose look at the flows began so long after the drain was asked for."""
    return lambda asked_s: showing(backend, looked_timestamp_s=asked_s + after_s)


EMPTY = replace(DRAINED, recorded=0, connections=None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb_xdp.cli.draining.POLL_S", 0.001)


@pytest.mark.usefixtures("quick")
async def test_drain_says_what_is_left_until_nothing_is(gateway: Gateway) -> None:
    """Only a look after the drain counts, and only if no flow may hide; lines are not repeated."""
    gateway.controller = Draining(
        step(EMPTY, -1),
        step(DRAINED, 60),
        step(DRAINED, 61),
        step(replace(DRAINED, recorded=1, connections=1), 62),
        step(replace(EMPTY, hidden=True), 63),
        step(replace(DRAINED, recorded=2, connections=None, hidden=True), 64),
        step(EMPTY, 65),
    )
    result = await gateway.run("backend", "drain", "web/web1", "--wait")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "web/web1: drain",
        "web/web1: 0 recorded flows left",
        "web/web1: 7 recorded flows, 12 connections left",
        "web/web1: 1 recorded flow, 1 connection left",
        "web/web1: 0 recorded flows, perhaps silent flows left",
        f"web/web1: {WHY_PERHAPS}",
        "web/web1: 2 recorded flows, perhaps silent flows left",
        "web/web1: no flow is left",
    ]


@pytest.mark.usefixtures("quick")
async def test_drain_waits_no_longer_than_told(gateway: Gateway) -> None:
    """Exit code 1, how much is left, and what to do; the backend stays drained."""
    gateway.controller = Draining(step(DRAINED, 60))
    result = await gateway.run("backend", "drain", "web/web1", "--wait", "--timeout", "20ms")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: after 20ms 7 recorded flows, 12 connections left on web/web1; it stays drained: "
        "wait again, or cut them: lb-xdp backend disable --cut web/web1\n"
    )
    assert [held.value for held in gateway.controller.held] == ["drain"]


@pytest.mark.usefixtures("quick")
async def test_a_drain_that_somebody_ends_is_not_waited_for(gateway: Gateway) -> None:
    """New flows come again, so there is no end to wait for."""
    gateway.controller = Draining(step(DRAINED, 60), step(WEB1, 61))
    result = await gateway.run("backend", "drain", "web/web1", "--wait")
    assert (result.exit_code, "drained no more" in result.stderr) == (1, True)


@pytest.mark.usefixtures("quick")
async def test_a_backend_that_is_gone_has_no_flows(gateway: Gateway) -> None:
    """It was taken out of the file meanwhile, and is forgotten."""
    gone = replace(SNAPSHOT, services=(replace(WEB, backends=WEB.backends[1:]),))
    gateway.controller = Draining(lambda _: gone)
    result = await gateway.run("backend", "drain", "web/web1", "--wait")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "web/web1: no flow is left")


def test_the_table_says_who_when_and_why() -> None:
    """Times are from now on; what has no end has a dash."""
    asked = {"service": "web", "backend": "web1", "author": "root (uid 0)", "at_timestamp_s": 100}
    drain = {**asked, "kind": "admin", "value": "drain", "reason": "new disks"}
    weight = {**asked, "kind": "weight", "value": "50", "reason": ""}
    shown = render(
        [{**drain, "expires_timestamp_s": 3760}, {**weight, "expires_timestamp_s": None}],
        now_s=160,
        columns=100,
    )
    assert shown == (
        "backend   asked      by            since  ends in  reason\n"
        "web/web1  drain      root (uid 0)  1m0s   1h0m     new disks\n"
        "web/web1  weight 50  root (uid 0)  1m0s   -\n"
    )


async def test_overrides_are_listed_and_cleared(gateway: Gateway) -> None:
    """Of a backend or of all; without any the file holds."""
    nothing = "no overrides: the file holds\n"
    assert (await gateway.run("override", "list")).stdout == nothing
    assert (await gateway.run("override", "clear", "--all")).stdout == nothing
    gateway.controller.held = Overrides().having(
        Override(Subject("web", "web1", Kind.ADMIN), "drain", "ann", "", 1.0),
        Override(Subject("web", "web1", Kind.WEIGHT), "50", "ann", "", 1.0),
        Override(Subject("web", "web2", Kind.ADMIN), "maint", "ann", "", 1.0),
    )
    assert (await gateway.run("override", "list")).stdout.count("web/web") == 3
    listed = json.loads((await gateway.run("override", "list", "-o", "json")).stdout)
    assert [one["value"] for one in listed] == ["drain", "50", "maint"]
    result = await gateway.run("override", "clear", "web/web1")
    assert result.stdout == "web/web1: drain is cleared\nweb/web1: weight 50 is cleared\n"
    result = await gateway.run("override", "clear", "web/web1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no override web/web1; overrides: web/web2 admin" in result.stderr
    result = await gateway.run("override", "clear", "--all")
    assert result.stdout == "web/web2: maint is cleared\n"
