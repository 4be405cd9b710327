"""``lb-xdp service show``: its table, its JSON, and names that nobody knows."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lb_xdp.api.client import socket_of
from lb_xdp.api.server import serve
from lb_xdp.cli import main
from lb_xdp.cli.service_table import render
from lb_xdp.cli.target import Target
from lb_xdp.core.snapshot import Records, ServiceStatus
from tests.support.controller import FakeController
from tests.support.snapshots import SNAPSHOT, WEB, WEB1, WEB2, as_json

DNS = replace(
    WEB,
    name="dns",
    vip="2001:db8::10",
    port=0,
    protocol="udp",
    mode="gue",
    algorithm="round_robin",
    affinity="client_prefix",
    no_backend="reject",
    why_tracked="round_robin needs to know every flow",
    records=Records.ALL,
    backends=(
        replace(WEB1, connections=12, max_connections=None),
        replace(WEB2, connections=None, max_connections=None),
    ),
)
BOTH = replace(SNAPSHOT, services=(WEB, DNS))

SCREEN = """\
web
  address     203.0.113.10:80/tcp
  mode        nat
  algorithm   maglev
  affinity    none
  records     none now: the ring alone places every flow
  no backend  drop
  backend         address         state  weight  slots  recorded  connections
  web1            10.0.0.11:8080  up        100  21846         7   12 of 1000
  web2            10.0.0.12:8080  up        200  43691         7   12 of 1000
  10.0.0.13:8080  10.0.0.13:8080  down      100      0         7   12 of 1000

dns
  address     [2001:db8::10]:any/udp
  mode        gue
  algorithm   round_robin
  affinity    client_prefix: a client's new flows follow its earlier ones
  records     every flow: round_robin needs to know every flow
  no backend  reject
  backend  address         state  weight  slots  recorded  connections
  web1     10.0.0.11:8080  up        100  21846         7           12
  web2     10.0.0.12:8080  up        200  43691         7            -
"""


async def show(run_directory: Path, *arguments: str) -> Result:
    """Serve a daemon with two services and ask it, in a thread, so that it can answer in this."""
    path = socket_of("gw1", run_directory)
    await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
    async with serve(path, FakeController(BOTH)):
        return await asyncio.to_thread(
            CliRunner(env={"COLUMNS": "80"}).invoke,
            main,
            ["service", "show", *arguments],
            prog_name="lb-xdp",
            obj=Target(None, None, run_directory),
        )


async def test_all_services_are_shown(tmp_path: Path) -> None:
    """Without a name each service has its facts, its reason for records and its backends."""
    result = await show(tmp_path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, SCREEN, "")
    assert max(map(len, SCREEN.splitlines())) <= 80


async def test_named_services_come_in_the_order_of_the_names(tmp_path: Path) -> None:
    """Names choose, in the order in which they are given."""
    result = await show(tmp_path, "dns", "web")
    assert [line for line in result.stdout.splitlines() if line in {"web", "dns"}] == ["dns", "web"]
    assert (await show(tmp_path, "dns")).stdout.startswith("dns\n")


async def test_json_is_what_the_daemon_sent(tmp_path: Path) -> None:
    """-o json prints a list of the chosen services, backends included, as in the status."""
    whole = as_json(BOTH)["services"]
    result = await show(tmp_path, "-o", "json")
    assert json.loads(result.stdout) == whole
    chosen = await show(tmp_path, "dns", "-o", "json")
    assert json.loads(chosen.stdout) == whole[1:]


async def test_an_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    """The exit code is 2; the message names what is unknown and what there is."""
    result = await show(tmp_path, "web", "wbe", "dsn")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No service is named wbe, dsn. There are: web, dns." in result.stderr


def test_nobody_running_is_4(tmp_path: Path) -> None:
    """Without a daemon there is nothing to show, and the exit code says so."""
    result = CliRunner().invoke(main, ["service", "show"], obj=Target(None, None, tmp_path))
    assert (result.exit_code, result.stdout) == (4, "")


def records(service: ServiceStatus) -> str:
    """Return what the table says of a service's records."""
    lines = render([service], columns=120).splitlines()
    return next(line for line in lines if line.startswith("  records ")).removeprefix("  records")


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (replace(WEB, records=Records.NONE), "none: session.flows is none"),
        (
            replace(WEB, unsettled_slots=16_000, marked_slots=42),
            "flows on 16042 slots: 16000 changed hands a while ago, 42 may still have records",
        ),
    ],
)
def test_records_are_explained(service: ServiceStatus, words: str) -> None:
    """Slots that are not settled are counted; a service without records says what forbids them."""
    assert records(service).strip() == words
