"""The API over TCP: tokens, TLS, and what the command line needs to get there."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner, Result

from lb_xdp.api.callers import Tokens
from lb_xdp.api.client import Client
from lb_xdp.api.connection import Remote
from lb_xdp.api.door import CONNECTIONS_MAX
from lb_xdp.api.listener import open_socket
from lb_xdp.api.server import serve
from lb_xdp.api.strangers import Strangers
from lb_xdp.cli import main
from lb_xdp.core.model import ApiListener, Listen
from lb_xdp.errors import AddressInUseError, DaemonUnreachableError, HostError, LbError
from tests.support.certificates import Authority
from tests.support.controller import FakeController

READ, WRITE = "r" * 32, "w" * 32


def token_line(name: str, scope: str, token: str) -> str:
    return f"{name}:{scope}:{sha256(token.encode()).hexdigest()}\n"


@dataclass
class Site:
    """An API over TCP in a folder, with a token for each right."""

    folder: Path
    controller: FakeController
    port: int

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    def remote(self, token: str, scheme: str = "http", authority: Path | None = None) -> Remote:
        file = self.folder / "token"
        file.write_text(f"{token}\n")
        return Remote(f"{scheme}://127.0.0.1:{self.port}", file, authority)

    @asynccontextmanager
    async def served(
        self, certificate: Path | None = None, key: Path | None = None
    ) -> AsyncIterator[None]:
        files = [str(file) if file else None for file in (certificate, key)]
        listener = ApiListener(Listen("127.0.0.1", self.port), str(self.tokens), *files)
        async with serve(self.folder / "api.sock", self.controller, remote=listener):
            yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Site(tmp_path, FakeController(), port)
    found.tokens.write_text(
        "# who may ask\n\n"
        + token_line("grafana", "read", READ)
        + token_line("ann", "write", WRITE)
    )
    found.tokens.chmod(0o640)
    return found


async def asked(site: Site, method: str, target: str, authorization: str | None) -> tuple[int, str]:
    """Return the status of a request and what it says of its error; see that a 401 says how."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, f"http://127.0.0.1:{site.port}{target}", headers=headers, json={"weight": 1}
        ) as answer,
    ):
        assert ("WWW-Authenticate" in answer.headers) is (answer.status == 401)
        return answer.status, (await answer.json()).get("error", "")


@pytest.mark.parametrize(
    ("authorization", "read", "write"),
    [
        (None, 401, 401),
        ("Bearer", 401, 401),
        (f"Basic {WRITE}", 401, 401),
        (f"Bearer {WRITE[:-1]}", 401, 401),
        (f"Bearer {sha256(WRITE.encode()).hexdigest()}", 401, 401),
        (f"Bearer {READ}", 200, 403),
        (f"bearer {WRITE}", 200, 200),
    ],
)
async def test_a_token_says_who_may_do_what(
    site: Site, authorization: str | None, read: int, write: int
) -> None:
    """Without one that is known nobody learns anything; a reader changes nothing."""
    async with site.served():
        assert (await asked(site, "GET", "/v1/status", authorization))[0] == read
        status, words = await asked(site, "PUT", "/v1/overrides/web/web1", authorization)
    assert status == write
    assert len(site.controller.held) == (write == 200)
    if write == 403:
        assert words == "token grafana may read only"


async def test_the_tokens_name_is_the_author(site: Site) -> None:
    """What was changed says by whose token."""
    async with site.served():
        await asked(site, "PUT", "/v1/overrides/web/web1", f"Bearer {WRITE}")
    assert [held.author for held in site.controller.held] == ["token ann"]


async def test_strangers_are_told_of_and_counted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The first at once, the others together, however many; whoever may only read is none."""
    async with site.served():
        for authorization in (None, "Bearer ", "Bearer x", f"Bearer {READ}", "Bearer y"):
            await asked(site, "PUT", "/v1/overrides/web/web1", authorization)
        (first,) = caplog.messages
        assert "refused a request: a token is needed" in first
    (_, last) = caplog.messages
    assert "refused 3 requests, the last one: the token is not known peer=127.0.0.1" in last
    assert site.controller.strangers == 4


class Lines(logging.Handler):
    """The log, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.queue.put_nowait(record.getMessage())


async def test_strangers_get_a_line_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they come; what comes in between is told when the while is over."""
    monkeypatch.setattr("lb_xdp.api.strangers.PERIOD_S", 0.01)
    strangers, log, lines = Strangers(lambda: None), logging.getLogger("lb_xdp.api"), Lines()
    log.addHandler(lines)
    try:
        for number in range(1, 4):
            strangers.note(f"192.0.2.{number}", "no token")
        assert lines.queue.get_nowait().endswith("a request: no token peer=192.0.2.1")
        async with asyncio.timeout(10):
            assert "2 requests, the last one: no token peer=192.0.2.3" in await lines.queue.get()
            strangers.note("192.0.2.4", "no token")
            assert "a request: no token peer=192.0.2.4" in await lines.queue.get()
        strangers.close()
        assert lines.queue.empty()
    finally:
        log.removeHandler(lines)


async def test_a_token_is_taken_back_at_once(site: Site) -> None:
    """The file is read again when it has changed; one that is wrong lets nobody in."""
    async with site.served():
        assert (await asked(site, "GET", "/v1/status", f"Bearer {READ}"))[0] == 200
        site.tokens.write_text(token_line("ann", "write", WRITE))
        assert (await asked(site, "GET", "/v1/status", f"Bearer {READ}"))[0] == 401
        site.tokens.write_text("nonsense\n")
        status, words = await asked(site, "GET", "/v1/status", f"Bearer {WRITE}")
        assert (status, "tokens:1: is no NAME:read:SHA256" in words) == (409, True)


@pytest.mark.parametrize(
    ("mode", "words"), [(0o644, "chmod 0640"), (0o660, "chmod 0640"), (0o602, "chmod 0640")]
)
def test_tokens_that_others_could_read_or_write_are_refused(
    site: Site, mode: int, words: str
) -> None:
    """With the command that mends it."""
    site.tokens.chmod(mode)
    with pytest.raises(HostError, match=words):
        Tokens(site.tokens).load()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_tokens_of_another_user_are_refused(site: Site) -> None:
    """Their owner could let anybody in."""
    os.chown(site.tokens, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(HostError, match="belongs to another user"):
        Tokens(site.tokens).load()


async def test_the_port_may_be_taken(site: Site) -> None:
    """The message says where and how to see by whom; the socket is not left behind."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", site.port))
        other.listen()
        with pytest.raises(AddressInUseError, match=f"127.0.0.1:{site.port}: the address is in"):
            async with site.served():
                pass
    assert not (site.folder / "api.sock").exists()


async def answered(site: Site) -> bool:
    """Say whether there is room for one more."""
    with suppress(aiohttp.ClientConnectionError):
        return (await asked(site, "GET", "/v1/status", f"Bearer {READ}"))[0] == 200
    return False


async def test_strangers_shut_out_each_other_alone(site: Site) -> None:
    """Connections beyond the limit are closed at once; the socket, and later callers, do well."""
    async with site.served(), AsyncExitStack() as stack:
        lines = []
        for _ in range(CONNECTIONS_MAX + 3):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            stack.callback(writer.close)
            lines.append((reader, writer))
        for reader, _ in lines[CONNECTIONS_MAX:]:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        assert not any(reader.at_eof() for reader, _ in lines[:CONNECTIONS_MAX])
        assert await asyncio.to_thread(Client(site.folder / "api.sock").ping)
        for _, writer in lines:
            writer.close()
        async with asyncio.timeout(10):
            while not await answered(site):
                pass


async def test_who_does_not_shake_hands_is_let_go(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS has its time, and silence or nonsense disturbs nobody."""
    monkeypatch.setattr("lb_xdp.api.door.HANDSHAKE_S", 0.05)
    certificate, key = Authority(site.folder / "ca").sign("gw1", "IP:127.0.0.1")
    key.chmod(0o600)
    async with site.served(certificate, key):
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(said)
            with suppress(ConnectionResetError):
                assert not (await reader.read()).startswith(b"HTTP")
            writer.close()


async def test_tls_by_an_authority_of_ones_own(site: Site) -> None:
    """The right authority vouches; without it, or for another name, no token is sent."""
    authority = Authority(site.folder / "ca")
    certificate, key = authority.sign("gw1", "IP:127.0.0.1")
    key.chmod(0o600)
    async with site.served(certificate, key):
        client = Client(site.remote(WRITE, "https", authority.certificate))
        assert await asyncio.to_thread(client.snapshot) == site.controller.shown
        assert await asyncio.to_thread(client.set_override, "web", "web1", admin="drain")
        stranger = Client(site.remote(WRITE, "https"))
        with pytest.raises(DaemonUnreachableError, match="give its authority with --ca"):
            await asyncio.to_thread(stranger.ping)
        plain = Client(site.remote(WRITE))
        with pytest.raises(LbError):
            await asyncio.to_thread(plain.ping)


async def test_old_tls_is_refused(site: Site) -> None:
    """Nothing before TLS 1.2."""
    certificate, key = Authority(site.folder / "ca").sign("gw1", "IP:127.0.0.1")
    key.chmod(0o600)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with site.served(certificate, key):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", site.port, ssl=old)


async def test_a_key_that_others_could_read_is_refused(site: Site) -> None:
    """And so is one that does not fit its certificate."""
    authority = Authority(site.folder / "ca")
    certificate, key = authority.sign("gw1", "IP:127.0.0.1")
    _, other = authority.sign("gw2", "IP:127.0.0.1")
    key.chmod(0o644)
    other.chmod(0o600)
    for wrong, words in ((key, r"gateway\.api\.key: .* chmod 0640"), (other, "cannot be used")):
        with pytest.raises(HostError, match=words):
            async with site.served(certificate, wrong):
                pass


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://192.0.2.1:8443", "without TLS everybody on the way reads the token"),
        ("http://gw1.example.net", "without TLS"),
        ("gw1:8443", "is no address of a daemon"),
        ("https://", "is no address of a daemon"),
        ("https://gw1/v1/status", "is no address of a daemon"),
        ("https://gw1:99999", "is no address of a daemon"),
        ("https://[::1", "is no address of a daemon"),
    ],
)
def test_no_token_goes_astray(site: Site, url: str, words: str) -> None:
    """Addresses without TLS, but on this host, and what is no address at all."""
    remote = Remote(url, site.remote(WRITE).token_file)
    with pytest.raises(LbError, match=words):
        Client(remote).ping()


@pytest.mark.parametrize("text", ["", "two\nlines", "\x00"])
def test_a_token_file_has_a_token(site: Site, text: str) -> None:
    """Nothing else is sent as a header."""
    remote = site.remote(WRITE)
    remote.token_file.write_text(text)
    with pytest.raises(LbError, match="has no token"):
        Client(remote).ping()


async def command(*arguments: str, **environment: str) -> Result:
    """Run ``lb-xdp`` in a thread."""
    runner = CliRunner(env=environment)
    return await asyncio.to_thread(runner.invoke, main, arguments, prog_name="lb-xdp")


async def test_commands_go_to_an_address(site: Site) -> None:
    """By options or by the environment; everything that a command does, it does there too."""
    remote = site.remote(WRITE)
    where = ("--url", remote.url, "--token-file", str(remote.token_file))
    environment = {"LB_XDP_URL": remote.url, "LB_XDP_TOKEN_FILE": str(remote.token_file)}
    async with site.served():
        result = await command(*where, "backend", "drain", "web/web1")
        assert (result.exit_code, result.stdout) == (0, "web/web1: drain\n")
        result = await command("override", "list", "-o", "json", **environment)
        assert '"author": "token ann"' in result.stdout
        result = await command(*where, "detach", "--yes")
        assert remote.url in result.stdout
    assert site.controller.calls[-1] == "detach"
    gone = await command(*where, "detach", "--yes")
    assert (gone.exit_code, "gateway.api.listen is where it listens" in gone.stderr) == (4, True)


async def test_places_exclude_each_other(site: Site) -> None:
    """One place at a time, but what is typed goes before the environment; and a token is needed."""
    url = site.remote(WRITE).url
    assert (await command("--url", url, "--name", "gw1", "status")).exit_code == 2
    told = await command("--url", url, "status")
    assert (told.exit_code, "--url needs --token-file" in told.stderr) == (2, True)
    told = await command("--socket", "/nowhere/api.sock", "status", LB_XDP_URL=url)
    assert (told.exit_code, "no daemon answers on /nowhere" in told.stderr) == (4, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a socket to a group needs root")
def test_the_socket_is_the_groups(tmp_path: Path) -> None:
    """Mode 0660, and a group that is not there is named with its remedy."""
    path = tmp_path / "api.sock"
    with open_socket(path, "nogroup"):
        found = path.stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, pwd.getpwnam("nobody").pw_gid)
    with pytest.raises(HostError, match="groupadd --system lbops"):
        open_socket(tmp_path / "other.sock", "lbops")
