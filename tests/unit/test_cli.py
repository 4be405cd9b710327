"""The commands as a user meets them: output, exit codes, and the daemon on a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lb_xdp import __version__
from lb_xdp.api.client import socket_of
from lb_xdp.api.server import serve
from lb_xdp.cli import COMMANDS, main, reference
from lb_xdp.cli.target import Target
from lb_xdp.errors import AttachError, ConfigProblem, InvalidConfigError, LbError
from tests.support.controller import FakeController
from tests.support.snapshots import SNAPSHOT, as_json

ROOT = Path(__file__).parents[2]

CONFIG = """\
gateway: {name: gw1, interfaces: [eth0]}
pools:
  - name: web
    backends:
      - {name: web1, host: 10.0.0.11, port: 8080}
      - {name: web2, host: 10.0.0.12, port: 8080}
    health: {type: tcp}
services:
  - {name: web, vip: 203.0.113.10, port: 80, protocol: tcp, mode: nat, pool: web}
  - {name: also, vip: 203.0.113.10, port: 81, protocol: tcp, mode: nat, pool: web}
"""

SCREEN = """\
gw1  ready  lb-xdp 0.1.0  pid 4242  up 3h12m
config    /etc/lb-xdp/gw1.yaml  loaded 3m20s ago
datapath  eth0 native id 51, eth1 generic id 52  netns 4026531840  generation 3
flows     500 recorded, 5.0% of the table

web  203.0.113.10:80/tcp  nat  maglev  pool web  2 of 3 up
  backend address        state health weight share packets bytes flows
  web1    10.0.0.11:8080 up    up        100 33.3%   12.3M  1.2G 20000
  web2    10.0.0.12:8080 up    up        200 66.7%   12.3M  1.2G 20000
          10.0.0.13:8080 down  down      100  0.0%  999999 77000     7
  10.0.0.13:8080: down for 12s: connection refused

packets
  packets   share  verdict  reason
    25.0M  100.0%  forward  nat_to_backend
     1200   <0.1%  pass     not_vip
"""


class FakeDaemon(ModuleType):
    """Stands for ``lb_xdp.daemon``, which the commands import when they need it."""

    def __init__(self, pinned: tuple[str, ...] = (), failure: BaseException | None = None) -> None:
        super().__init__("lb_xdp.daemon")
        self.pinned = pinned
        self.failure = failure
        self.ran: list[tuple[Path, bool]] = []
        self.detached: list[str] = []

    def run(self, config_path: Path, replace: bool) -> None:  # noqa: FBT001 - the daemon's face
        self.ran.append((config_path, replace))
        if self.failure:
            raise self.failure

    def detach(self, name: str) -> list[str]:
        self.detached.append(name)
        return [f"link {name}/eth0"] if name in self.pinned else []

    def pinned_names(self) -> list[str]:
        return list(self.pinned)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that puts a fake daemon in the place of the real one."""

    def put(daemon: FakeDaemon) -> FakeDaemon:
        monkeypatch.setitem(sys.modules, "lb_xdp.daemon", daemon)
        return daemon

    return put


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Give the root logger back as it was: ``run`` sets it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def invoke(*arguments: str, run_directory: Path = Path("/nonexistent")) -> Result:
    """Run a command that finds its daemons under ``run_directory``; 80 columns, no terminal."""
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(main, arguments, prog_name="lb-xdp", obj=Target(None, None, run_directory))


async def ask(run_directory: Path, *arguments: str) -> Result:
    """Run a command in a thread, so that the daemon in this one can answer."""
    return await asyncio.to_thread(invoke, *arguments, run_directory=run_directory)


@asynccontextmanager
async def running(
    run_directory: Path, *names: str, controller: FakeController | None = None
) -> AsyncIterator[FakeController]:
    """Serve a daemon of each name under ``run_directory``."""
    controller = controller or FakeController()
    if not names:
        yield controller
        return
    path = socket_of(names[0], run_directory)
    await asyncio.to_thread(path.parent.mkdir)
    async with serve(path, controller), running(run_directory, *names[1:], controller=controller):
        yield controller


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "lb.yaml"
    path.write_text(CONFIG)
    return path


def test_help_lists_every_command_with_its_own_words() -> None:
    """The list that --help prints without importing a command says what the command says."""
    output = invoke("--help").output
    for name, words in COMMANDS.items():
        command = main.get_command(None, name)  # type: ignore[arg-type] # it does not look at it
        assert command
        assert command.get_short_help_str(limit=100) == words
        assert words in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example(name: str) -> None:
    """Each command's --help shows how it is called."""
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"lb-xdp {name}" in result.output.partition("Example:")[2]


def test_help_imports_no_command() -> None:
    """--help stays fast: neither aiohttp, rich, pydantic nor numpy is imported for it."""
    script = (
        "import sys; from lb_xdp.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'aiohttp', 'rich', 'pydantic', 'numpy', 'http.client'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.splitlines()[-1] == "[]"


def test_reference_is_up_to_date() -> None:
    """docs/cli.md is what the commands' help renders to."""
    assert (ROOT / "docs" / "cli.md").read_text() == reference.render(), (
        "run: python -m lb_xdp.cli.reference > docs/cli.md"
    )


def test_version() -> None:
    """--version names the program and its version."""
    assert invoke("--version").output == f"lb-xdp {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("statu",),
        ("status", "-o", "xml"),
        ("run",),
        ("check",),
        ("completion", "tcsh"),
        ("--name", "gw1", "--socket", "/x", "status"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    """What was not understood leaves with 2 and says how to get help."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: lb-xdp")
    assert not result.stdout


def test_nobody_running_is_4(tmp_path: Path) -> None:
    """Without a daemon the exit code is 4 and stderr says how to start one."""
    for arguments in (("status",), ("reload",), ("--name", "gw1", "status")):
        result = invoke(*arguments, run_directory=tmp_path)
        assert result.exit_code == 4
        assert result.stderr.startswith("error: no daemon answers")
        assert "lb-xdp run -c FILE" in result.stderr
        assert not result.stdout


async def test_status_fits_80_columns(tmp_path: Path) -> None:
    """The screen of a gateway with a backend down, as it stands on a terminal of 80 columns."""
    async with running(tmp_path, "gw1"):
        result = await ask(tmp_path, "status")
    assert (result.exit_code, result.stdout, result.stderr) == (0, SCREEN, "")
    assert max(map(len, SCREEN.splitlines())) <= 80


async def test_status_json_is_the_whole_snapshot(tmp_path: Path) -> None:
    """-o json prints what the daemon sent, with exact counters and whole names."""
    async with running(tmp_path, "gw1"):
        result = await ask(tmp_path, "status", "-o", "json")
    assert json.loads(result.stdout) == as_json(SNAPSHOT)


async def test_several_daemons_are_listed(tmp_path: Path) -> None:
    """With two daemons and no name the command lists them; a name or a socket chooses."""
    async with running(tmp_path, "gw1", "gw2"):
        result = await ask(tmp_path, "status")
        assert result.exit_code == 2
        assert "gw1, gw2" in result.stderr
        assert (await ask(tmp_path, "--name", "gw2", "status")).exit_code == 0
        socket = str(socket_of("gw1", tmp_path))
        assert (await ask(tmp_path, "--socket", socket, "status")).exit_code == 0


async def test_reload_prints_the_summary(tmp_path: Path) -> None:
    """An accepted reload says what changed."""
    async with running(tmp_path, "gw1") as controller:
        result = await ask(tmp_path, "reload")
    assert (result.exit_code, controller.calls) == (0, ["reload"])
    assert result.stdout == "reloaded: 1 backend added, 1200 of 65537 slots moved\n"


async def test_refused_reload_is_3_with_bare_lines(tmp_path: Path) -> None:
    """Each problem stands on a line of its own that begins with its place; the exit code is 3."""
    problems = [ConfigProblem("lb.yaml", line, 5, "a", "wrong") for line in (9, 3)]
    controller = FakeController(refusal=InvalidConfigError(problems))
    async with running(tmp_path, "gw1", controller=controller):
        result = await ask(tmp_path, "reload")
    assert result.exit_code == 3
    assert result.stderr == "lb.yaml:3:5: a: wrong\nlb.yaml:9:5: a: wrong\n"


async def test_failed_reload_is_1(tmp_path: Path) -> None:
    """Another failure leaves with 1 and its message behind error:."""
    controller = FakeController(refusal=LbError("the interface eth9 has gone"))
    async with running(tmp_path, "gw1", controller=controller):
        result = await ask(tmp_path, "reload")
    assert (result.exit_code, result.stderr) == (1, "error: the interface eth9 has gone\n")


async def test_detach_asks_the_daemon(tmp_path: Path, install: Any) -> None:
    """While a daemon runs it removes its program itself; the pins are not touched behind it."""
    fake = install(FakeDaemon(pinned=("gw1",)))
    async with running(tmp_path, "gw1") as controller:
        result = await ask(tmp_path, "detach", "--yes")
    assert (result.exit_code, controller.calls, fake.detached) == (0, ["detach"], [])
    assert result.stdout.startswith("detached: ")


@pytest.mark.parametrize("arguments", [("detach",), ("--name", "gw1", "detach")])
def test_detach_without_daemon_removes_the_pins(
    tmp_path: Path, install: Any, arguments: tuple[str, ...]
) -> None:
    """What a dead daemon left is removed directly, also when it is the only one and not named."""
    fake = install(FakeDaemon(pinned=("gw1",)))
    result = invoke(*arguments, run_directory=tmp_path)
    assert (result.exit_code, fake.detached) == (0, ["gw1"])
    assert result.stdout == "removed link gw1/eth0\n"


def test_detach_does_not_guess(tmp_path: Path, install: Any) -> None:
    """Several pinned gateways need a name; a socket nobody answers on names no pins."""
    fake = install(FakeDaemon(pinned=("gw1", "gw2")))
    result = invoke("detach", run_directory=tmp_path)
    assert result.exit_code == 2
    assert "gw1, gw2" in result.stderr
    assert invoke("--socket", str(tmp_path / "x"), "detach").exit_code == 4
    assert fake.detached == []


def test_detach_twice_is_no_error(tmp_path: Path, install: Any) -> None:
    """With nothing left to remove the command says so and is done."""
    install(FakeDaemon())
    for arguments in (("detach",), ("--name", "gw1", "detach")):
        result = invoke(*arguments, run_directory=tmp_path)
        assert result.exit_code == 0
        assert result.stdout.startswith("nothing to detach")


def test_run_hands_over_to_the_daemon(config_path: Path, install: Any) -> None:
    """``run`` passes file and --replace on and logs as asked."""
    fake = install(FakeDaemon())
    result = invoke("run", "-c", str(config_path), "--replace", "--log-level", "warning")
    assert result.exit_code == 0
    assert fake.ran == [(config_path, True)]
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (AttachError("eth0: busy"), 1, "error: eth0: busy\n"),
        (InvalidConfigError([ConfigProblem("f", 1, 2, "a", "b")]), 3, "f:1:2: a: b\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_run_leaves_with_the_errors_code(
    install: Any, failure: BaseException, code: int, words: str
) -> None:
    """What ends the daemon decides the exit code, and no traceback is shown."""
    install(FakeDaemon(failure=failure))
    result = invoke("run", "-c", "lb.yaml")
    assert (result.exit_code, result.stderr) == (code, words)


def test_check_counts(config_path: Path) -> None:
    """A good file is ok, with shared backends counted once."""
    result = invoke("check", str(config_path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{config_path}: ok, 2 services, 2 backends\n"


def test_check_effective_is_a_configuration(config_path: Path, tmp_path: Path) -> None:
    """--effective prints a file that is itself accepted, and nothing else on stdout."""
    result = invoke("check", "--effective", str(config_path))
    assert result.exit_code == 0
    again = tmp_path / "effective.yaml"
    again.write_text(result.stdout)
    assert invoke("check", str(again)).exit_code == 0


def test_check_refuses_with_3(config_path: Path) -> None:
    """Mistakes are listed with their places, one per line, and nothing is printed to stdout."""
    config_path.write_text(CONFIG.replace("10.0.0.11, port: 8080", "10.0.0.11, port: -1"))
    result = invoke("check", str(config_path))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"{config_path}:5:")


def test_check_of_a_missing_file_names_it(tmp_path: Path) -> None:
    """A file that does not exist is named, without a traceback."""
    result = invoke("check", str(tmp_path / "none.yaml"))
    assert result.exit_code == 3
    assert "none.yaml" in result.stderr


def test_schema_is_json() -> None:
    """The schema is JSON and describes an object."""
    result = invoke("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["type"] == "object"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    """Each shell's script completes lb-xdp."""
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_LB_XDP_COMPLETE" in result.stdout


def test_a_closed_pipe_is_quiet() -> None:
    """``lb-xdp schema | head -c 0`` prints no traceback."""
    command = f"{sys.executable} -m lb_xdp completion bash | head -c 0"
    result = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    assert result.stderr == ""
