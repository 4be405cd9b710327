"""plan, reload, confirm, rollback, flows, pool: what they ask of the daemon, print and refuse."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from lb_xdp.api.client import socket_of
from lb_xdp.api.server import serve
from lb_xdp.cli import main
from lb_xdp.cli.plan_text import render
from lb_xdp.cli.target import Target
from lb_xdp.core.preview import Preview
from lb_xdp.core.touched import Basis, FlowsTouched
from tests.support.controller import PREVIEW, FakeController

Answer = TypeVar("Answer")

PLAN = """\
~ gateway.gue_port: 6080 -> 6081

~ web  203.0.113.10:80/tcp
  + backend web4
  ~ backend web2: weight 200 -> 100
  ~ health.interval: 2s -> 1s
  slots: 6,553 of 65,537 move, 10.0%
  flows: 0 would break, 12 stay where they are while their slots move (every
      flow is recorded: 120 now)

new, and not up yet, so without slots: web/web4
/etc/lb-xdp/gw1.yaml: 1 service would change, 1 would not
6,553 slots would move, at most 10.0% of one service's
another program would take the present one's place; it was compiled and tried
"""


class Gateway:
    """A controller behind a socket, and commands to it."""

    def __init__(self, run_directory: Path) -> None:
        self.target = Target(None, None, run_directory)
        self.controller = FakeController()

    async def run(self, *arguments: str, stdin: str | None = None) -> Result:
        """Serve, and run a command in a thread, so that it can be answered in this one."""
        return await self._served(
            lambda: CliRunner(env={"COLUMNS": "80"}).invoke(
                main, arguments, input=stdin, prog_name="lb-xdp", obj=self.target
            )
        )

    async def complete(self, *words: str) -> list[str]:
        """Return what a shell would be offered for the last of these words."""

        def ask() -> list[str]:
            shell = ShellComplete(main, {"obj": self.target}, "lb-xdp", "_LB_XDP_COMPLETE")
            return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]

        return await self._served(ask)

    async def _served(self, work: Callable[[], Answer]) -> Answer:
        path = socket_of("gw1", self.target.run_directory)
        await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
        async with serve(path, self.controller):
            return await asyncio.to_thread(work)


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new.yaml"
    path.write_text("gateway: {}\n")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text("services: []\n")
    return path


async def test_a_plan_fits_a_terminal(gateway: Gateway) -> None:
    """What differs, service by service, then what it costs in all."""
    result = await gateway.run("plan")
    assert (result.exit_code, result.stdout, result.stderr) == (0, PLAN, "")
    assert gateway.controller.calls == ["plan"]


async def test_a_plan_of_a_file_is_json_as_it_came(gateway: Gateway, file: Path) -> None:
    """The file is read by the command, and called by its whole path."""
    result = await gateway.run("plan", str(file), "-o", "json")
    assert gateway.controller.calls == [f"plan {file}"]
    found = json.loads(result.stdout)
    assert found["services"][0]["flows"] == asdict(PREVIEW.services[0].flows)
    await gateway.run("plan", "-", stdin="gateway: {}\n")
    assert gateway.controller.calls[-1] == "plan standard input"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--max-moved", "5%"], "10.0% of a service's slots would move, more than 5.0%"),
        (["reload", "--dry-run", "--max-moved", "0.05"], "more than 5.0%"),
        (["reload", "--max-moved", "5%"], "10.0% of the slots of web would move"),
    ],
)
async def test_more_than_is_allowed_is_exit_1(
    gateway: Gateway, arguments: Sequence[str], said: str
) -> None:
    """A plan says so after it is shown, a reload instead of what it would do."""
    result = await gateway.run(*arguments)
    assert (result.exit_code, said in result.stderr) == (1, True)
    assert gateway.controller.loaded == "file"


def shown(preview: Preview, *losses: str) -> dict[str, Any]:
    """Return what the command makes of an answer."""
    return {**asdict(preview), "restart_loses": list(losses)}


def test_texts_of_a_plan() -> None:
    """Estimates, what nobody knows, refusals and plans of nothing have words of their own."""
    (web,) = PREVIEW.services
    about = FlowsTouched(10, 20, Basis.ESTIMATED, "share of slots x 99 flows")
    guessed = shown(replace(PREVIEW, services=(replace(web, flows=about),)))
    assert "about 20 would break, about 10 stay" in render(guessed, columns=200)
    unknown = replace(web, flows=FlowsTouched(0, 0, Basis.UNKNOWN, "udp"))
    of_udp = replace(PREVIEW, services=(unknown,))
    assert "flows: unknown: udp" in render(shown(of_udp), columns=80)
    nothing = replace(PREVIEW, services=(), settings=(), generation=False, not_up=())
    assert render(shown(nothing), columns=80) == "/etc/lb-xdp/gw1.yaml: nothing would change\n"
    refused = shown(replace(PREVIEW, refused="no"))
    assert "slots would move, at most" not in render(refused, columns=80)
    assert "would lose flow records" in render(shown(nothing, "flow records"), columns=80)


async def test_a_file_with_mistakes_is_exit_3(gateway: Gateway, broken: Path) -> None:
    """They are listed as check does; a file that is not there is the command's own mistake."""
    for command in ("plan", "reload"):
        result = await gateway.run(command, str(broken))
        assert (result.exit_code, f"{broken}:1:1: " in result.stderr) == (3, True)
        missing = await gateway.run(command, "missing.yaml")
        assert (missing.exit_code, "cannot be read" in missing.stderr) == (2, True)


async def test_a_reload_says_what_waits(gateway: Gateway, file: Path) -> None:
    """The wish has everything that was asked for; what to say next goes to stderr."""
    result = await gateway.run("reload", str(file), "--confirm", "60s", "--max-moved", "20%")
    assert (result.exit_code, "lb-xdp confirm" in result.stderr) == (0, True)
    (wish,) = gateway.controller.wishes
    assert (wish.source, wish.confirm_s, wish.moved_share_max) == (str(file), 60.0, 0.2)
    assert (await gateway.run("reload")).exit_code == 1
    assert (await gateway.run("confirm")).stdout == "confirmed\n"
    again = await gateway.run("rollback")
    assert (again.exit_code, "no reload waits" in again.stderr) == (1, True)


@pytest.mark.parametrize("share", ["5", "-1%", "x", "nan", "101%"])
async def test_what_is_no_share_is_a_usage_error(gateway: Gateway, share: str) -> None:
    """Before the daemon is asked anything."""
    result = await gateway.run("reload", f"--max-moved={share}")
    assert (result.exit_code, gateway.controller.calls) == (2, [])


FLOWS = """\
backend   flows  open
web/web1      3     3

client           service  backend  state  silent
192.0.2.7:40000  web      web1     open       3s
192.0.2.7:40001  web      web1     open       3s

2 of 3 flows shown; 3 records in all
of web most flows have no record
"""


async def test_flows_as_tables_and_json(gateway: Gateway) -> None:
    """The counts are of all, the list is as long as asked for."""
    assert (await gateway.run("flows", "-n", "2")).stdout == FLOWS
    found = json.loads((await gateway.run("flows", "--client", "10.0.0.0/8", "-o", "json")).stdout)
    assert (found["matched"], len(found["flows"])) == (3, 3)
    wrong = await gateway.run("flows", "--client", "nobody")
    assert (wrong.exit_code, "192.0.2.0/24" in wrong.stderr) == (1, True)


async def test_pools_and_services_in_lines(gateway: Gateway) -> None:
    """A line each in a list, the backends in a show; nobody's name is a usage error."""
    lines = (await gateway.run("pool", "list")).stdout.splitlines()
    assert lines[1].split() == ["web", "2", "3", "web"]
    assert "web/web1" in (await gateway.run("pool", "show", "web")).stdout
    assert json.loads((await gateway.run("pool", "show", "-o", "json")).stdout)[0]["name"] == "web"
    assert (await gateway.run("pool", "show", "wbe")).exit_code == 2
    listed = (await gateway.run("service", "list")).stdout.splitlines()
    assert listed[1].split()[:2] == ["web", "203.0.113.10:80/tcp"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["service", "show", ""], ["web"]),
        (["pool", "show", "w"], ["web"]),
        (["backend", "drain", "web/web"], ["web/web1", "web/web2"]),
        (["override", "clear", "w"], ["web/web1", "web/web2", "web/10.0.0.13:8080"]),
        (["flows", "--backend", "web2"], ["web2"]),
        (["flows", "--service", "dns"], []),
        (["events", "--service", ""], ["web"]),
    ],
)
async def test_names_are_completed(gateway: Gateway, words: list[str], offered: list[str]) -> None:
    """A shell is offered what the daemon knows."""
    assert await gateway.complete(*words) == offered


def test_without_a_daemon_nothing_is_completed(tmp_path: Path) -> None:
    """And nobody waits, or reads an error in the middle of a line."""
    target = {"obj": Target(None, None, tmp_path)}
    shell = ShellComplete(main, target, "lb-xdp", "_LB_XDP_COMPLETE")
    for words in (["service", "show"], ["pool", "show"], ["--name", "x", "backend", "drain"]):
        assert shell.get_completions(words, "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_all_shells(shell: str) -> None:
    """Each is printed; bash itself finds nothing wrong with its own."""
    script = CliRunner().invoke(main, ["completion", shell]).stdout
    assert "_LB_XDP_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
